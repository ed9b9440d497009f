"""The agent against a model of what must be: releases, faults, reboots and clock jumps in any order.

The decisions, the executor, the reconciler and the journal are the real ones; engine, route, registry, model servers
and trust are pretended and may fail, or the agent be killed, at any call. `WatchedWorld` judges every change at once;
this machine judges after every turn, and at the end, when all faults are gone, that the device is as it should be.

`make machine` runs it for long, with other examples every time.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from agent_chaos import BAD, KINDS, PORTS, Chaos, ChaoticDevice, Fault, Killed, WatchedWorld, end_process
from agent_fakes import START
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from wherry.errors import StoreError
from wherry.messages import PollNow, Retry, StateReport, UpdateLock
from wherry.release import Needs
from wherry_agent.assignment import Marks, TrustedImage, mark_above
from wherry_agent.entry import Entry, SlotEntry, container_name, same, withdrawn
from wherry_agent.events import AssignmentReceived, CommandReceived, Tick

EXAMPLES = int(os.environ.get("WHERRY_MACHINE_EXAMPLES", "0"))
DISKS = (10**9, 10**9, 12_000_000)
"""Each release takes 2 MB, and 3 MB while it is fetched."""
SLOTS = ("main", "aux")
_SHARED_MEMORY = Path("/dev/shm")

slots = st.sampled_from(SLOTS)
kinds = st.sampled_from(["good", *KINDS])
picks = st.integers(0, 30)
work = st.sampled_from([0, 1, 2, 3, 5, 8, 200, 200, 200])
"""How many steps the worker does before the next thing happens."""


class AgentMachine(RuleBasedStateMachine):
    """One device and its server, its owner, its operator and its bad luck."""

    def __init__(self) -> None:
        super().__init__()
        place = _SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK) else None
        self.folder = Path(tempfile.mkdtemp(prefix="wherry-machine-", dir=place))
        self.chaos = Chaos()
        self.world = WatchedWorld()
        self.wishes: dict[int, dict[str, str]] = {0: {}}
        self.wanted: dict[str, str] = {}
        self.payloads: list[bytes] = []
        self.grouped = False
        self.disturbed = False
        self.best = Marks()
        self.ports: dict[str, int] = {}
        self.device: Any = None

    def teardown(self) -> None:
        try:
            if self.device is not None:
                self.calm()
                self.end_in_peace()
        finally:
            if self.device is not None:
                self.device.journal.close()
            shutil.rmtree(self.folder)

    # -- the agent's life --------------------------------------------------------------------------------

    @initialize(memory=st.sampled_from([1000, 1000, 10]), disk=st.sampled_from(DISKS))
    def begin(self, memory: int, disk: int) -> None:
        self.world.available_mb = memory
        self.world.disk_free, self.world.disk_fills = disk, True
        self.device = ChaoticDevice(self.folder, self.world, self.chaos, self.wishes)
        self.turn()

    @property
    def alive(self) -> bool:
        return self.device is not None and self.device.alive

    def turn(self, *events: object, steps: int = 200, jobs: bool = True) -> None:
        """Something reaches the inbox, and the agent does what it does then."""
        if not self.alive:
            return
        self.device.queue.extend(events)
        try:
            self.device.pump(steps, jobs)
        except Killed:
            self.device.halt()
        self.nothing_went_wrong_in_between()
        if self.alive:
            self.judge()

    def boot(self) -> None:
        """Start the agent on what is left; systemd tries again when it cannot start."""
        for _ in range(20):
            try:
                self.device.boot()
            except (Killed, StoreError):
                self.device.halt()
                continue
            self.turn(steps=0)
            if self.alive:
                self.deliver("mqtt")  # the broker keeps it
                return
        raise AssertionError("the agent does not start")

    def deliver(self, source: str, steps: int = 200) -> None:
        if self.payloads and not self.world.offline:
            self.device.server.assignment = self.payloads[-1]
            self.turn(AssignmentReceived(self.payloads[-1], source), steps=steps)  # type: ignore[arg-type]

    # -- the server and the owner ------------------------------------------------------------------------

    def wish(self, arrives: bool, steps: int) -> None:
        sequence = max(self.wishes) + 1
        self.wishes[sequence] = dict(self.wanted)
        together = [sorted(self.wanted)] if self.grouped and len(self.wanted) > 1 else []
        body = {"sequence": sequence, "slots": self.wanted, "together": together}
        self.payloads.append(json.dumps(body).encode())
        if arrives and self.alive:
            self.deliver("mqtt", steps)

    @rule(slot=slots, kind=kinds, arrives=st.sampled_from([True, True, True, False]), steps=work)
    def push(self, slot: str, kind: str, arrives: bool, steps: int) -> None:
        self.wanted[slot] = self.made(kind)
        self.wish(arrives, steps)

    def made(self, kind: str) -> str:
        """The catalogue key of a new release of a kind."""
        key = str(len(self.device.catalogue) + 1)
        behaviour, memory = KINDS[kind]
        needs = Needs(slots=["aux"] if kind == "needs" else [])
        self.device.release(key, behaviour, memory_mb=memory, needs=needs)
        return key

    @rule(slot=slots, steps=work)
    def empty(self, slot: str, steps: int) -> None:
        self.wanted.pop(slot, None)
        self.wish(True, steps)

    @rule(slot=slots, pick=picks, steps=work)
    @precondition(lambda self: self.device.catalogue)
    def step_back(self, slot: str, pick: int, steps: int) -> None:
        """An older image is released again, under a new number."""
        catalogue = self.device.catalogue
        counter, image = len(catalogue) + 1, catalogue[str(1 + pick % len(catalogue))]
        again = image.image.model_copy(update={"counter": counter})
        catalogue[str(counter)] = replace(image, path=again.target_path(), image=again)
        self.wanted[slot] = str(counter)
        self.wish(True, steps)

    @rule(grouped=st.booleans(), kind=kinds, steps=work)
    def push_to_all(self, grouped: bool, kind: str, steps: int) -> None:
        """Another good release in one slot, of that kind in the other; together or not at all, if `grouped`."""
        self.grouped = grouped
        for slot, what in zip(SLOTS, ("good", kind), strict=True):
            self.wanted[slot] = self.made(what)
        self.wish(True, steps)

    @rule(slot=slots, other=slots, steps=work)
    @precondition(lambda self: self.wanted)
    def same_everywhere(self, slot: str, other: str, steps: int) -> None:
        """One release in two slots."""
        if slot in self.wanted:
            self.wanted[other] = self.wanted[slot]
            self.wish(True, steps)

    @rule(pick=picks, source=st.sampled_from(["mqtt", "https"]), steps=work)
    @precondition(lambda self: self.alive and self.payloads)
    def stale_or_twice(self, pick: int, source: str, steps: int) -> None:
        payload = self.payloads[-1 - pick % len(self.payloads)]
        self.turn(AssignmentReceived(payload, source), steps=steps)  # type: ignore[arg-type]

    @rule()
    @precondition(lambda self: self.alive)
    def forged(self) -> None:
        self.turn(AssignmentReceived(b"forged assignment", "mqtt"))

    @rule(pick=picks, arrives=st.booleans(), steps=work)
    @precondition(lambda self: self.device.catalogue)
    def withdraw(self, pick: int, arrives: bool, steps: int) -> None:
        image = self.device.catalogue[str(1 + pick % len(self.device.catalogue))]
        self.world.withdrawn |= {image.digest}
        if arrives:
            self.poll(steps)

    @rule(steps=work)
    @precondition(lambda self: self.alive)
    def poll(self, steps: int) -> None:
        self.device.server.assignment = self.payloads[-1] if self.payloads and not self.world.offline else None
        self.turn(CommandReceived(PollNow()), steps=steps)

    @rule(steps=work)
    @precondition(lambda self: self.alive and self.device.journal.entry.rejected)
    def operator_retries(self, steps: int) -> None:
        digest = min(self.device.journal.entry.rejected)
        slot = self.device.journal.entry.rejected[digest].slot
        self.turn(CommandReceived(Retry(slot=slot, digest=digest)), steps=steps)

    # -- time --------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([1, 5, 5, 31, 61, 120, 700]), steps=work, jobs=st.booleans())
    def time_passes(self, seconds: float, steps: int, jobs: bool) -> None:
        self.device.age(seconds)
        self.turn(Tick(), steps=steps, jobs=jobs)

    @rule(days=st.sampled_from([-20_000, -1, 1, 3650]))
    def clock_is_set(self, days: int) -> None:
        self.device.now = max(START - timedelta(days=20_000), self.device.now + timedelta(days=days))
        with self.world:
            self.world.started = dict.fromkeys(self.world.started, self.device.now)
        self.turn(Tick())

    # -- bad luck ----------------------------------------------------------------------------------------

    @rule(
        port=st.sampled_from(PORTS), nth=st.integers(1, 25), kills=st.booleans(), after=st.booleans(),
        times=st.sampled_from([1, 1, 2, 10]),
    )  # fmt: skip
    def trouble_ahead(self, port: str, nth: int, kills: bool, after: bool, times: int) -> None:
        self.disturbed = True
        self.chaos.arm(Fault(port, nth, kills, after, 1 if kills else times))

    @rule()
    @precondition(lambda self: self.alive)
    def kill_agent(self) -> None:
        self.device.halt()

    @rule()
    @precondition(lambda self: not self.alive)
    def start_agent(self) -> None:
        self.boot()

    @rule(alive=st.booleans())
    def reboot(self, alive: bool) -> None:
        self.disturbed = True
        if self.alive:
            self.device.halt()
        with self.world:
            self.world.power_cut()
        if alive:
            self.boot()

    @rule()
    def engine_restarts(self) -> None:
        """Containers live on by their restart policy only."""
        self.disturbed = True
        with self.world:
            for name, container in self.world.containers.items():
                if container.running and container.restart != "unless-stopped":
                    self.world.containers[name] = replace(container, state="exited", exit_code=137)
        self.turn(Tick())

    @rule(
        what=st.sampled_from(["engine", "registry", "tampered", "route", "offline"]), steps=work,
    )  # fmt: skip
    def outage(self, what: str, steps: int) -> None:
        self.disturbed = True
        if what == "engine":
            self.world.engine_down = True
        elif what in ("registry", "tampered"):
            self.world.registry = {"registry": "down"}.get(what, what)
        elif what == "route":
            self.world.route_broken = True
        else:
            self.world.offline = True
        self.turn(Tick(), steps=steps)

    @rule(steps=work)
    def outages_end(self, steps: int) -> None:
        self.world.engine_down = self.world.route_broken = self.world.offline = False
        self.world.registry = "good"
        self.turn(Tick(), steps=steps)

    @rule(memory=st.sampled_from([10, 300, 1000]), disk=st.sampled_from([1000, 7_000_000, 10**9]))
    def room_changes(self, memory: int, disk: int) -> None:
        self.disturbed = True
        self.world.available_mb, self.world.disk_free = memory, disk
        self.turn(Tick())

    @rule(pick=picks, how=st.sampled_from(["dies", "stopped", "removed", "taken"]))
    @precondition(lambda self: self.world.containers)
    def container_is_hurt(self, pick: int, how: str) -> None:
        """From outside: its process is killed, or somebody stops or removes it, or takes its name."""
        name = sorted(self.world.containers)[pick % len(self.world.containers)]
        if name in self.world.foreign:
            return
        with self.world:
            if how == "dies":
                end_process(self.world, name, 137, self.device.now)
            elif how == "stopped":
                self.world.containers[name] = replace(self.world.containers[name], state="exited", exit_code=137)
            else:
                del self.world.containers[name]
                if how == "taken":
                    self.world.foreign.add(name)
                    self.disturbed = True
        self.turn(Tick())
        if not self.disturbed:
            self.everything_serves()

    @rule()
    def foreign_containers_go(self) -> None:
        self.world.foreign.clear()
        self.turn(Tick())

    @rule(pick=picks, how=st.sampled_from(["wrong", "hung", "good"]))
    @precondition(lambda self: self.world.containers)
    def model_rots(self, pick: int, how: str) -> None:
        """A model that was good answers wrongly, or not at all; or it is good again."""
        self.disturbed = True
        name = sorted(self.world.containers)[pick % len(self.world.containers)]
        image = self.world.containers[name].image
        if image is None or image.image.run.env["BEHAVIOUR"] in BAD:
            return
        with self.world:
            self.world.behaviours[name] = how
        self.turn(Tick())

    @rule(pick=picks)
    @precondition(lambda self: self.world.images)
    def image_is_stolen(self, pick: int) -> None:
        self.disturbed = True
        digest = sorted(self.world.images)[pick % len(self.world.images)]
        with self.world:
            self.world.disk_free += self.world.images.pop(digest).image.unpacked_bytes
            self.world.stolen.add(digest)
        self.turn(Tick())

    @rule()
    def routes_are_flushed(self) -> None:
        with self.world:
            self.world.routes = {}
        self.device.age(31)
        self.turn(Tick())
        if not self.disturbed:
            self.everything_serves()

    @rule(held=st.booleans())
    @precondition(lambda self: self.alive)
    def application_holds_swaps_off(self, held: bool) -> None:
        self.disturbed = True
        expires = self.device.now + timedelta(hours=1)
        self.device.lock.held = UpdateLock(holder="belt", reason="it runs", expires=expires) if held else None
        self.turn(Tick())

    # -- what must be ------------------------------------------------------------------------------------

    def nothing_went_wrong_in_between(self) -> None:
        assert not self.world.violations, self.world.violations

    def judge(self) -> None:
        """After every turn of a living agent."""
        entry: Entry = self.device.journal.entry
        self.marks_never_fall(entry.marks)
        for name, slot in entry.slots.items():
            assert self.ports.setdefault(name, slot.port) == slot.port, f"slot {name} moved"
            self.kept_releases_are_there(entry, slot)
        assert len(set(self.ports.values())) == len(self.ports)
        self.what_is_not_so_is_explained(entry, self.device.state)

    def marks_never_fall(self, marks: Marks) -> None:
        best = self.best
        assert marks.sequence >= best.sequence
        assert marks.revoked >= best.revoked
        assert marks.floor >= best.floor
        falls = [key for key, counter in best.counters.items() if ":" not in key and marks.counters[key] < counter]
        assert not falls
        self.best = marks

    def kept_releases_are_there(self, entry: Entry, slot: SlotEntry) -> None:
        for image in (slot.known_good, slot.previous):
            if image is None:
                continue
            assert not self.world.bad(image), f"{image.image.label()} became known-good"
            assert not withdrawn(image, entry.marks), f"{image.image.label()} is kept although it was withdrawn"
            assert image.digest in self.world.images.keys() | self.world.stolen, f"{image.image.label()} was pruned"

    def what_is_not_so_is_explained(self, entry: Entry, state: StateReport) -> None:
        reported = {slot.slot: slot for slot in state.slots}
        newest = max(self.wishes)
        for name, key in self.device.accepted().items():
            image, slot = self.device.catalogue[key], reported.get(name)
            assert slot is not None or state.problem, f"nobody says what is with slot {name}"
            if slot is None or (slot.serving and slot.serving.digest == image.digest):
                continue
            deployment = slot.deployment
            explained = (
                (deployment and deployment.release.digest == image.digest and _explains(deployment.problem))
                or self.device.worker.step is not None
                or (entry.slots[name].trial is not None)
                or image.digest in state.rejected
                or state.lock
                or _explains(state.problem)
            )
            assert explained, f"slot {name} does not serve {image.image.label()} and nobody says why"
        assert state.sequence <= newest

    def everything_serves(self) -> None:
        """Every slot with a known-good that is well answers."""
        if not self.alive or self.world.engine_down:
            return
        for slot in self.device.journal.entry.slots.values():
            if slot.known_good is None or (slot.trial and slot.trial.mode == "replace"):
                continue
            name = container_name(self.device.journal.entry.device, slot.slot, slot.known_good)
            if self.world.sound(slot.known_good) and self.world.behaviours.get(name) == "good":
                assert self.world.answers(slot.port), f"slot {slot.slot} is silent: {self.world.history[-8:]}"

    # -- in the end --------------------------------------------------------------------------------------

    @rule()
    @precondition(lambda self: self.disturbed)
    def calm(self) -> None:
        """All faults are gone and time passes: the device is as it should be, or says why it is not."""
        self.chaos.disarm()
        world = self.world
        world.engine_down = world.route_broken = world.offline = False
        world.registry, world.disk_free = "good", 10**9
        world.foreign.clear()
        self.device.lock.held = None
        if not self.alive:
            self.boot()
        self.deliver("mqtt")
        self.poll(200)
        for seconds in (31, *[5] * 8, *[31] * 8, *[700] * 6):
            self.device.age(seconds)
            self.turn(Tick())
        self.disturbed = False
        self.nothing_went_wrong_in_between()
        self.all_is_settled()
        writes = self.chaos.writes
        for _ in range(12):
            self.device.age(5)
            self.turn(Tick())
        assert self.chaos.writes == writes, "a device that is as it should be wears out its flash"

    def all_is_settled(self) -> None:
        entry: Entry = self.device.journal.entry
        assert entry.marks.sequence == max(self.wishes), "the newest wish was not accepted"
        assert entry.marks.revoked >= self.world.withdrawn if self.payloads else True
        assert self.device.worker.step is None
        for name, slot in entry.slots.items():
            self.slot_is_settled(entry, name, slot)
        for name, container in self.world.containers.items():
            image = container.image
            assert image is not None
            assert not withdrawn(image, entry.marks), f"{name} was withdrawn and is still there"
            empty = container.slot not in self.wanted and not self.is_needed(entry, container.slot)
            assert not empty, f"{name} is in a slot that is to be empty"
        assert {container.port for container in self.world.containers.values()} >= set(self.world.routes.values())
        assert not self.world.waiting, "callers wait for ever"

    def slot_is_settled(self, entry: Entry, name: str, slot: SlotEntry) -> None:
        wanted = self.device.catalogue[self.wanted[name]] if name in self.wanted else None
        if wanted is None and slot.known_good and self.is_needed(entry, name):
            assert _explains(self.device.state.problem), f"nobody says why slot {name} is not emptied"
            return
        if wanted is None:
            assert slot.known_good is None
            assert slot.port not in self.world.routes
            return
        if slot.trial and wanted.image.needs.slots:
            assert _explains(self.device.state.problem), f"nobody says what slot {name} waits for"
            return
        assert slot.trial is None or self.world.bad(wanted), f"slot {name} is still at {slot.trial}"
        waiting = {self.device.catalogue[key].digest for key in self.wanted.values()} - entry.rejected.keys()
        useful = entry.needed_digests() | (waiting - entry.marks.revoked)
        idle = [image.image.label() for image in slot.litter if image.digest not in useful]
        assert not idle, f"slot {name} keeps {idle}"
        if same(slot.known_good, wanted):
            assert not self.world.bad(wanted)
        else:
            self.is_explained_for_good(entry, name, slot, wanted)
        self.serves_what_it_can(slot)

    def is_needed(self, entry: Entry, name: str) -> bool:
        """Whether another slot's release needs a slot."""
        found = [slot.known_good for slot in entry.slots.values()] + [
            slot.trial.image for slot in entry.slots.values() if slot.trial
        ]
        return any(image is not None and name in image.image.needs.slots for image in found)

    def is_explained_for_good(self, entry: Entry, name: str, slot: SlotEntry, wanted: TrustedImage) -> None:
        last = slot.deployment
        assert last is not None
        hindered = withdrawn(wanted, entry.marks) or mark_above(name, wanted, entry.marks.counters)
        if hindered or last.culprit or wanted.image.needs.slots:
            assert same(last.image, wanted)
            assert _explains(last.problem)
            return
        assert wanted.digest in entry.rejected, f"{wanted.image.label()} is neither served nor rejected"
        assert _explains(entry.rejected[wanted.digest].problem)
        assert wanted.digest in self.device.state.rejected

    def serves_what_it_can(self, slot: SlotEntry) -> None:
        """Known-good or the release before it, if one of them is well."""
        kept = [image for image in (slot.known_good, slot.previous) if image and self.world.sound(image)]
        names = [container_name(self.device.journal.entry.device, slot.slot, image) for image in kept]
        if any(self.world.behaviours.get(name, "good") == "good" for name in names):
            assert self.world.answers(slot.port), f"slot {slot.slot} is silent: {self.world.history[-8:]}"

    def end_in_peace(self) -> None:
        """The operator clears what was rejected by bad luck: now every good release that is wanted serves."""
        entry: Entry = self.device.journal.entry
        for digest, rejection in entry.rejected.items():
            self.turn(CommandReceived(Retry(slot=rejection.slot, digest=digest)))
        self.calm()
        possible = {name for name in self.wanted if self.can_run(name)}
        if self.grouped and possible < self.wanted.keys():
            return  # those that go together wait for the one that cannot run
        for name in possible:
            found = self.device.journal.entry.slots[name].known_good
            assert same(found, self.device.catalogue[self.wanted[name]]), self.world.history[-20:]

    def can_run(self, name: str) -> bool:
        image, marks = self.device.catalogue[self.wanted[name]], self.device.journal.entry.marks
        if image.image.needs.slots:
            return False  # it may wait for ever, or be refused
        return self.world.sound(image) and not withdrawn(image, marks) and not mark_above(name, image, marks.counters)


def _explains(problem: Any) -> bool:
    return bool(problem and problem.reason and problem.fix)


AgentMachine.TestCase.settings = settings(
    max_examples=EXAMPLES or 120,
    stateful_step_count=40,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=bool(EXAMPLES),
)
TestAgentMachine = pytest.mark.timeout(0 if EXAMPLES else 900)(AgentMachine.TestCase)
