"""The bell: who listens hears what was stored, once for a burst, from any thread; and never what was not stored."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest

from wherry.errors import Conflict, NotFound
from wherry.messages import Presence
from wherry_server.services import reports, rollouts
from wherry_server.services.changes import AUDIT, FLEET, ROLLOUTS, Changes, device_topic, rollout_topic


def hear(changes, topics, act, timeout=5.0):
    """What is heard of an act in another thread; empty when nothing."""

    async def listen():
        with changes.listen(topics, gap=0) as listener:
            await asyncio.to_thread(act)
            return await listener.wait(timeout)

    return asyncio.run(listen())


def test_only_who_listens_to_a_topic_hears_it():
    changes = Changes()
    assert hear(changes, {"a", "b"}, lambda: changes.ring("b", "c")) == {"b"}
    assert hear(changes, {"a"}, lambda: changes.ring("b"), timeout=0.05) == frozenset()


def test_what_rang_before_the_wait_is_heard_and_a_burst_is_one_wake():
    changes = Changes()

    async def listen():
        with changes.listen({f"t{n}" for n in range(50)}, gap=0.2) as listener:
            threads = [
                threading.Thread(target=lambda n=n: [changes.ring(f"t{n}") for _ in range(100)]) for n in range(50)
            ]
            for thread in threads:
                thread.start()
            await asyncio.to_thread(lambda: [thread.join() for thread in threads])
            first = await listener.wait(5)
            begin = asyncio.get_running_loop().time()
            changes.ring("t1")
            second = await listener.wait(5)
            return first, second, asyncio.get_running_loop().time() - begin

    first, second, waited = asyncio.run(listen())
    assert first == {f"t{n}" for n in range(50)}
    assert second == {"t1"}
    assert waited >= 0.19


def test_listeners_are_bounded_and_go_by_themselves():
    changes = Changes(limit=2)

    async def listen():
        refused = pytest.raises(Conflict, match="open 2 times already")
        with changes.listen({"a"}), changes.listen({"a"}), refused:
            changes.listen({"a"})
        abandoned = [changes.listen({"a"}), changes.listen({"a"})]
        del abandoned
        gc.collect()
        with changes.listen({"a"}):
            pass

    asyncio.run(listen())


def test_taking_the_bell_down_ends_every_wait_at_once():
    changes = Changes()

    async def listen():
        with changes.listen({"a"}, gap=60) as listener:
            wait = asyncio.create_task(listener.wait(60))
            await asyncio.sleep(0)
            await asyncio.to_thread(changes.close)
            assert await asyncio.wait_for(wait, 5) == frozenset()
            assert listener.closed
            assert await asyncio.wait_for(listener.wait(60), 5) == frozenset()

    asyncio.run(listen())


def test_a_ring_after_the_loop_has_ended_is_harmless():
    changes, kept = Changes(), []

    async def listen():
        kept.append(changes.listen({"a"}))

    asyncio.run(listen())
    changes.ring("a")
    changes.close()


def test_reports_presence_rollouts_and_changes_ring(sqlite_context, make_api, make_owner, device_class):
    context = sqlite_context
    api, owner = make_api(context), make_owner(context)
    device = device_class(api, "dev-1").enrol()
    release = owner.release("1")
    topics = {FLEET, ROLLOUTS, AUDIT, device_topic("dev-1"), rollout_topic(1)}
    bell = context.changes
    roll = {"model": "vision", "version": "1", "selector": {"everything": True}}
    assert hear(bell, topics, lambda: api.post("/v1/rollouts", roll)) == {AUDIT, ROLLOUTS, FLEET, rollout_topic(1)}
    device.sequence = 1
    committed = hear(bell, topics, lambda: reports.ingest_state(context, device.runs(release)))
    assert committed >= {FLEET, device_topic("dev-1"), ROLLOUTS, rollout_topic(1)}
    away = Presence(device="dev-1", online=False)
    assert hear(bell, topics, lambda: reports.ingest_presence(context, away)) == {FLEET, device_topic("dev-1")}
    assert hear(bell, topics, lambda: reports.ingest_presence(context, away), timeout=0.1) == frozenset()


def test_what_is_not_committed_does_not_ring(sqlite_context):
    def undone():
        with sqlite_context.store.write() as session:
            sqlite_context.record(session, "nothing", "nothing")
            raise NotFound("thing", "is not there")

    def fail():
        with pytest.raises(NotFound):
            rollouts.change_rollout(sqlite_context, 99, "pause")
        with pytest.raises(NotFound):
            undone()

    assert hear(sqlite_context.changes, {AUDIT, ROLLOUTS, FLEET}, fail, timeout=0.1) == frozenset()
