"""After the commit: a release that dies again and again, or fails its callers, gives way; nothing flaps."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from itertools import pairwise

import pytest
from agent_fakes import START, Device, make_image

from wherry.messages import LATENCY_EDGES_US, GateResult
from wherry.release import SoakGate
from wherry_agent import gates, long_soak
from wherry_agent.containers import _from_list
from wherry_agent.entry import Deployment, SlotEntry
from wherry_agent.gates import Traffic
from wherry_agent.steps import FallBack


def crash(device: Device, name: str, times: int = 1) -> None:
    """The container died and the engine brought it back."""
    found = device.world.containers[name]
    device.world.containers[name] = replace(found, restarts=found.restarts + times)


def committed(device: Device, *versions: str) -> str:
    for sequence, version in enumerate(versions, 1):
        device.assign(sequence, main=version)
    assert device.serves() == versions[-1]
    device.tick(1)
    return device.name(device.catalogue[versions[-1]])


def statistics(requests: int, failures: int, mean_ms: float = 5) -> dict:
    latency = [requests] + [0] * len(LATENCY_EDGES_US)
    ours = {"latency": latency, "latency_sum_us": round(requests * mean_ms * 1000), "instance": "i"}
    done = {"success": {"count": requests}, "fail": {"count": failures}}
    return {"model_stats": [{"name": "vision", "inference_stats": done, "wherry": ours}]}


def test_five_crashes_within_ten_minutes_are_too_many_and_four_are_not():
    times = [START + timedelta(seconds=2 * second) for second in range(5)]
    found = long_soak.crash_loop(times, times[-1], "no such file")
    assert (found.ok, found.detail) == (False, "the container crashed 5 times in 8 s: no such file")
    assert (found.numbers["crashes"], found.numbers["most_crashes"]) == (5, 4)
    assert long_soak.crash_loop(times[1:], times[-1], "") is None
    assert long_soak.crash_loop(times, times[-1] + timedelta(minutes=10), "") is None
    assert long_soak.crash_loop(times, START - timedelta(days=1), "") is None, "the clock was set back"


@pytest.mark.parametrize(
    ("words", "young"),
    [
        ("Up Less than a second", True),
        ("Up 1 second", True),
        ("Up 59 seconds (healthy)", True),
        ("Restarting (1) 2 seconds ago", True),
        ("Exited (0) 3 minutes ago", True),
        ("", True),
        ("läuft seit 3 Minuten", True),
        ("Up About a minute", False),
        ("Up 2 minutes (Paused)", False),
        ("Up About an hour", False),
        ("Up 5 weeks", False),
    ],
)
def test_the_engines_list_tells_who_cannot_have_died_lately(words, young):
    item = {"Names": ["/a"], "State": "running", "Labels": {}, "Status": words}
    assert _from_list(item).young is young


def test_a_known_good_that_dies_again_and_again_gives_way_to_the_release_before(device):
    name = committed(device, "1", "2")
    device.world.registry = "down"
    for _ in range(4):
        crash(device, name)
        device.tick(2)
    assert device.state.problem is None
    assert device.serves() == "2"
    crash(device, name)
    device.tick(2)
    assert device.serves() == "1"
    slot = device.state.slots[0]
    assert (slot.known_good.version, slot.deployment.phase) == ("1", "rejected")
    reason = "soak gate, after it was committed: the container crashed 5 times in 8 s: these are my last words"
    assert slot.deployment.problem.reason == reason
    assert slot.deployment.gates[-1].numbers["crashes"] == 5
    assert device.state.rejected == [device.catalogue["2"].digest]
    assert device.state.problem is None
    assert device.world.violations == []
    device.tick(60, times=30)
    assert device.serves() == "1", "it is not tried again by itself"


def test_what_was_gone_back_to_is_not_judged_into_a_loop(device):
    name = committed(device, "1", "2")
    crash(device, name)
    device.tick(1)
    crash(device, name, 5)
    device.tick(1)
    assert device.serves() == "1"
    old = device.name(device.catalogue["1"])
    device.tick(1)
    crash(device, old, 5)
    device.tick(1)
    assert device.serves() == "1"
    assert "crashed 5 times" in device.state.problem.reason
    assert "there is no release before it to go back to" in device.state.problem.reason
    history = len(device.world.history)
    device.tick(30, times=10)
    assert device.world.history[history:] == [], "there is nothing better to do than to let the engine bring it back"
    device.tick(60, times=11)
    assert device.state.problem is None, "calm for ten minutes"


def test_a_device_that_can_run_neither_says_so_and_goes_on_trying_with_growing_waits(device):
    name = committed(device, "1", "2")
    old = device.name(device.catalogue["1"])
    device.world.hold_allowed = True
    device.world.behaviours[old] = "wrong"
    tries = []
    submit = device.worker.submit

    def noting(step):
        if isinstance(step, FallBack):
            tries.append(device.now)
        submit(step)

    device.worker.submit = noting
    crash(device, name, 5)
    for _ in range(600):
        crash(device, name)
        device.tick(2)
    reason = device.state.problem.reason
    assert "crashed" in reason
    assert "the release before cannot take its place and is tried again: release vision 1: golden gate" in reason
    slot = device.state.slots[0]
    assert (slot.serving.version, slot.known_good.version) == ("2", "2")
    waits = [(after - before).total_seconds() for before, after in pairwise(tries)]
    assert waits == sorted(waits)
    assert waits[0] <= 4
    assert 512 <= waits[-1] <= 600
    device.world.behaviours[old] = "good"
    while name in device.world.containers:
        crash(device, name)
        device.tick(2)
        assert device.now < START + timedelta(hours=1)
    assert device.state.slots[0].known_good.version == "1"
    assert device.state.problem is None


def test_deaths_that_nobody_saw_count_as_one(device):
    name = committed(device, "1", "2")
    crash(device, name, 50)
    device.tick(3600)
    assert device.serves() == "2"
    assert device.state.problem is None


def test_an_engine_that_counts_anew_is_followed(device):
    name = committed(device, "1", "2")
    device.world.containers[name] = replace(device.world.containers[name], restarts=3)
    device.tick(1)
    device.world.containers[name] = replace(device.world.containers[name], restarts=1)
    device.tick(1)
    assert device.serves() == "2"
    crash(device, name, 1)
    device.tick(1)
    assert device.serves() == "1"


def test_who_runs_for_long_is_not_asked(device):
    name = committed(device, "1", "2")
    asked = []
    real = device.reconciler._later._look
    device.reconciler._later._look = lambda *who: (asked.append(who[1].name), real(*who))[1]
    device.tick(5, times=3)
    assert asked == [name] * 3
    device.world.containers[name] = replace(device.world.containers[name], young=False)
    device.tick(5, times=3)
    assert asked == [name] * 6, "for an hour its traffic is looked at"
    device.tick(3600)
    asked.clear()
    device.tick(5, times=3)
    assert asked == []


# -- traffic


@pytest.fixture
def judged(device):
    """A device that serves version 5, whose release signs a soak gate, after version 1; and its container."""
    gates_of = [*make_image(5).image.gates, SoakGate(least=20, error_percent=5, factor="3", floor_ms=10)]
    device.release("5", gates=gates_of)
    name = committed(device, "1", "5")
    device.world.statistics[name] = statistics(100, 1)
    device.tick(5)
    return device, name


def test_a_release_that_fails_its_callers_after_the_commit_gives_way(judged):
    device, name = judged
    device.world.statistics[name] = statistics(130, 1)
    device.tick(5)
    assert device.serves() == "5"
    device.world.statistics[name] = statistics(140, 11)
    device.tick(5)
    assert device.serves() == "1"
    found = device.state.slots[0].deployment
    assert found.phase == "rejected"
    assert "10 of 20 requests failed (50.0 %, before 0.0 %)" in found.problem.reason
    assert found.gates[-1].numbers["failed_percent"] == 50.0


def test_a_release_that_grows_slow_gives_way(judged):
    device, name = judged
    device.world.statistics[name] = statistics(130, 1)
    device.tick(5)
    device.world.statistics[name] = statistics(200, 1, mean_ms=100)
    device.tick(5)
    assert device.serves() == "1"
    assert "answers take" in device.state.slots[0].deployment.problem.reason


def test_after_an_hour_traffic_is_no_reason_any_more(judged):
    device, name = judged
    device.tick(5)
    device.tick(3600)
    device.world.statistics[name] = statistics(1000, 900)
    device.tick(5, times=5)
    assert device.serves() == "5"
    assert device.state.problem is None


def test_what_is_usual_is_what_the_soak_measured():
    image = make_image(1, gates=[*make_image(1).image.gates, SoakGate(least=20)])
    before, after = Traffic(80, 20, 7.0), Traffic(50, 1, 6.0)

    def slot(result: GateResult, known_good=image) -> SlotEntry:
        last = Deployment("1", image, 1, "committed", START, START, gates=(result,))
        return SlotEntry("main", 8500, known_good=known_good, deployment=last)

    gate = gates.soak_gate(image)
    assert long_soak.usual_traffic(slot(gates.soak(gate, before, after, 0, 1.0))) == after
    assert long_soak.usual_traffic(slot(gates.soak(gate, before, Traffic(3, 0, 1.0), 0, 1.0))) == before
    assert long_soak.usual_traffic(slot(gates.soak(gate, Traffic(3, 0, 1.0), None, 0, 1.0))) is None
    assert long_soak.usual_traffic(slot(gates.soak(gate, before, after, 0, 1.0), make_image(2))) is None
