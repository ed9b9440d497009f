"""Faults at any call of a port, and what must hold at every instant: put around the fakes by the state machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from agent_fakes import Device, FakeTrust, InlineAide, InlineWorker, World

from wherry.errors import EngineError, InferenceError, RegistryError, RouteError, ServerError, StoreError, Tampered
from wherry_agent.assignment import Assignment, Marks, TrustedImage, mark_above
from wherry_agent.entry import Entry, SlotEntry, container_name, withdrawn
from wherry_agent.journal import Journal
from wherry_agent.observed import Container
from wherry_agent.steps import Step
from wherry_agent.trust_rules import raise_accepted

BAD = frozenset({"wrong", "crash", "other_signature", "refuses", "forged"})
"""Behaviours that a gate must see: callers never reach a release that has one."""
LATE_SECONDS = 90
"""How long a release that crashes later lives."""
_FLAKY = {
    "FakeEngine": EngineError("containers", "the engine is flaky"),
    "FakeRoute": RouteError("nft", "is flaky"),
    "FakeFetcher": RegistryError("registry", "is flaky"),
    "FakeProber": InferenceError("model vision", "is flaky"),
    "Journal": StoreError("journal", "cannot be written (database or disk is full)"),
}
PORTS = sorted(_FLAKY)
_SILENT = {"ready": False, "keeps_connection": False, "status": None}
"""Questions that are never answered by an error."""


KINDS: dict[str, tuple[str, int]] = {
    "good": ("good", 100), "big": ("good", 600), "late": ("late", 100), "wrong": ("wrong", 100),
    "crash": ("crash", 100), "other": ("other_signature", 100), "needs": ("good", 100),
}  # fmt: skip
"""Releases by what becomes of them: behaviour and memory limit. One of kind "needs" needs slot aux."""


class Killed(BaseException):
    """The agent was killed: nothing after this line happens. No handler may catch it."""


@dataclass
class Fault:
    """At the nth call of a port from now: killed, or the call fails. After the call, its effect stays."""

    port: str
    nth: int
    kills: bool
    after: bool
    times: int = 1


class Chaos:
    """Wraps ports; looks like a `Killer`."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.writes = 0

    def arm(self, fault: Fault) -> None:
        self.faults.append(fault)

    def disarm(self) -> None:
        self.faults.clear()

    def wrap(self, target: Any, _names: object) -> Any:
        if isinstance(target, Journal):
            self._wrap_writes(target)
            return target
        chaos, port = self, type(target).__name__

        class Wrapped:
            def __getattr__(self, name: str) -> Any:
                found = getattr(target, name)
                return chaos.around(port, found) if callable(found) else found

        return Wrapped()

    def _wrap_writes(self, journal: Journal) -> None:
        write = journal._write

        def counted(*arguments: Any) -> None:
            self.writes += 1
            write(*arguments)

        journal._write = self.around("Journal", counted)  # type: ignore[method-assign]

    def around(self, port: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            due = self._due(port)
            if due and not due.kills and function.__name__ in _SILENT:
                return _SILENT[function.__name__]
            if due and not due.after:
                self._strike(due)
            result = function(*arguments, **options)
            if due and due.after:
                if port == "Journal" and not due.kills:
                    return result  # a commit is told to have failed only when it did
                self._strike(due)
            return result

        return call

    def _due(self, port: str) -> Fault | None:
        for fault in self.faults:
            if fault.port == port:
                fault.nth -= 1
                if fault.nth <= 0:
                    fault.times -= 1
                    if fault.times <= 0:
                        self.faults.remove(fault)
                    return fault
        return None

    @staticmethod
    def _strike(fault: Fault) -> None:
        if fault.kills:
            raise Killed
        raise _FLAKY[fault.port]


class PatientWorker(InlineWorker):
    """Begins steps and does each when told to, so that anything may happen in between."""

    begun = False
    device: ChaoticDevice
    known: Entry

    def submit(self, step: Step) -> None:
        self.step, self.cancel_asked, self.begun = step, False, True
        self.known = self.device.journal.entry

    def work(self) -> bool:
        """Do the step that was begun; whether there was one."""
        if not self.begun:
            return False
        self.begun = False
        self.finish()
        return True


class PatientAide(InlineAide):
    """Keeps jobs until it is told to do them; of one name only the newest."""

    def __init__(self) -> None:
        self.jobs: dict[str, Callable[[], None]] = {}

    def submit(self, name: str, job: Callable[[], None]) -> None:
        self.jobs[name] = job

    def work(self) -> bool:
        if not self.jobs:
            return False
        self.jobs.pop(next(iter(self.jobs)))()
        return True


class WatchfulTrust(FakeTrust):
    """Trust that needs the network and knows what the owner withdrew, as the real one does."""

    def __init__(self, world: WatchedWorld, catalogue: dict[str, TrustedImage]) -> None:
        super().__init__(catalogue, frozenset())
        self._world = world

    def _online(self) -> None:
        if self._world.offline:
            raise ServerError("release metadata", "cannot be fetched (no route to host)")

    def _raised(self, marks: Marks, now: datetime) -> Marks:
        return replace(marks, revoked=marks.revoked | self._world.withdrawn, floor=max(marks.floor, now))

    def verify(self, payload: bytes, marks: Marks, now: datetime, online: bool = True, serving: Any = None) -> Any:
        serving = serving or {}
        self._online()
        if payload.startswith(b"forged"):
            raise Tampered("assignment", "nobody we trust signed it")
        assignment, _ = super().verify(payload, marks, now, online, serving)
        known = self._raised(marks, now)
        back = {
            slot
            for slot, image in assignment.slots.items()
            if serving.get(slot) != image.digest and mark_above(slot, image, marks.counters)
        }
        return assignment, raise_accepted(assignment, known, back)

    def refresh(self, marks: Marks, now: datetime) -> Marks:
        self._online()
        return self._raised(marks, now)

    def withdrawals(self, marks: Marks) -> Marks:
        return replace(marks, revoked=marks.revoked | self._world.withdrawn)

    def stored(self, payload: bytes, marks: Marks, now: datetime) -> Assignment:
        return self._read(payload)


@dataclass
class WatchedWorld(World):
    """A world that judges every change of it at once.

    Attributes:
        agent: who changes it now, unless `outside` does.
        wanted: slots of the newest assignment that the agent accepted.
        withdrawn: digests that the owner withdrew, whether or not the agent knows.
        stolen: digests of images that somebody removed.
        rotten: containers whose model has gone wrong since they were made.
        started: when each running container began.
    """

    agent: ChaoticDevice | None = None
    outside: int = 0
    offline: bool = False
    withdrawn: frozenset[str] = frozenset()
    stolen: set[str] = field(default_factory=set)
    rotten: set[str] = field(default_factory=set)
    started: dict[str, datetime] = field(default_factory=dict)
    answering: dict[int, str] = field(default_factory=dict)
    before: dict[str, Container] = field(default_factory=dict)
    present: set[str] = field(default_factory=set)

    def __enter__(self) -> None:
        """What happens now is not the agent's doing."""
        self.outside += 1

    def __exit__(self, *_: object) -> None:
        self.outside -= 1
        self._note()

    def sound(self, image: TrustedImage) -> bool:
        """Whether a release does what it should, for ever."""
        return image.image.run.env["BEHAVIOUR"] == "good"

    def bad(self, image: TrustedImage) -> bool:
        return image.image.run.env["BEHAVIOUR"] in BAD

    def _note(self) -> None:
        self.answering = {port: name for port in self.routes if (name := self.answers(port))}
        self.before, self.present = dict(self.containers), set(self.images)
        now = self.agent.now if self.agent else None
        up = [name for name, container in self.containers.items() if container.state == "running"]
        for name in set(up) - self.started.keys():
            revive(self, name)
        self.started = {name: self.started.get(name, now) for name in up} if now else {}
        self.rotten &= self.containers.keys()

    def answers(self, stable: int) -> str | None:
        for name, container in self.containers.items():
            if container.port == self.routes.get(stable) and container.state == "running":
                return name if self.behaviours[name] in ("good", "late") else None
        return None

    def _watch(self) -> None:
        if self.agent is not None and not self.outside:
            step, entry = self.agent.worker.step, self.agent.journal.entry
            known = self.agent.worker.known if step else entry
            kind = f"{step.kind} of slot {step.slot}" if step else "nothing"
            wrong = self._wrong(step, entry, known)
            self.violations += [f"{said}, by {kind}, after: {self.history[-1]}" for said in wrong]
        self._note()

    def _wrong(self, step: Step | None, entry: Entry, known: Entry) -> list[str]:
        """What is wrong with the last change; `known` is what was known when the step was begun."""
        if step is None:
            return ["the world changed outside of any step"]
        return [
            *self._silenced(step, entry), *self._misled(), *self._started_wrongly(known), *self._removed(step, entry),
            *self._fetched(step),
        ]  # fmt: skip

    def _silenced(self, step: Step, entry: Entry) -> list[str]:
        """No step of the agent takes a port from a release that answers well to nothing."""
        found = []
        for port, name in self.answering.items():
            slot = next((slot for slot in entry.slots.values() if slot.port == port), None)
            silent = self.answers(port) is None and port not in self.waiting
            if slot and silent and not self._may_silence(step, entry, slot, self.before[name]):
                found.append(f"port {port} answered by {name} answers nobody")
        return found

    def _may_silence(self, step: Step, entry: Entry, slot: SlotEntry, container: Container) -> bool:
        if container.image and withdrawn(container.image, entry.marks):
            return True
        match step.kind:
            case "Retire":
                return slot.trial is not None and slot.trial.mode == "replace"
            case "Remove":
                return (
                    self.agent is not None
                    and slot.slot not in self.agent.wishes[self.agent.worker.known.marks.sequence]
                )
            case "EnsureServing":
                return bool(getattr(step, "restart", False))
            case "Rollback":  # a first release; there is nothing to go back to
                return slot.known_good is None
        return False

    def _misled(self) -> list[str]:
        """No port leads to what a gate must see, or to another slot's container."""
        strange = [
            f"port {port} leads to {container.name} of another slot"
            for port, target in self.routes.items()
            for container in self.containers.values()
            if container.port == target and container.running and container.slot_port != port
        ]
        return strange + [
            f"port {port} leads to {container.name}, which is bad"
            for port, target in self.routes.items()
            for container in self.containers.values()
            if container.port == target and container.running and container.image and self.bad(container.image)
        ]

    def _started_wrongly(self, entry: Entry) -> list[str]:
        found = []
        for name, container in self.containers.items():
            before, image = self.before.get(name), container.image
            if (before and before.running) or not container.running or image is None:
                continue
            slot = entry.slots.get(container.slot)
            rights = [slot.known_good, slot.previous, slot.trial.image if slot.trial else None] if slot else []
            if image not in rights:
                found.append(f"{name} was started, which nobody wants")
            if withdrawn(image, entry.marks):
                found.append(f"{name} was started, which the owner withdrew")
            if image.digest in entry.rejected and image not in rights[:2]:
                found.append(f"{name} was started, which was rejected")
            if self.agent and image not in self.agent.catalogue.values():
                found.append(f"{name} was started, which nobody signed")
        return found

    def _removed(self, step: Step, entry: Entry) -> list[str]:
        needed = {
            container_name(entry.device, slot.slot, slot.known_good): slot
            for slot in entry.slots.values()
            if slot.known_good
        }
        found = [
            f"{name}, known-good, was removed"
            for name in self.before.keys() - self.containers.keys()
            if name in needed and step.kind not in ("EnsureServing", "Remove", "FallBack")
        ]
        gone = self.present - self.images.keys()
        return found + [f"image {digest} was removed, which is needed" for digest in gone & entry.needed_digests()]

    def _fetched(self, step: Step) -> list[str]:
        came = self.images.keys() - self.present
        wrong = [digest for digest in came if step.kind != "Fetch" and digest not in self.stolen]
        self.stolen -= came
        return [f"image {digest} was fetched" for digest in wrong]


class ChaoticDevice(Device):
    """An agent that can be killed anywhere, on a world that watches it."""

    worker_type = PatientWorker
    aide_type = PatientAide
    world: WatchedWorld
    worker: PatientWorker
    aide: PatientAide

    def __init__(self, folder: Path, world: WatchedWorld, chaos: Chaos, wishes: dict[int, dict[str, str]]) -> None:
        self.wishes = wishes
        super().__init__(folder, world, {}, chaos)  # type: ignore[arg-type]

    def boot(self) -> None:
        self.world.agent = None
        self.alive = False
        super().boot()

    def make_trust(self) -> FakeTrust:
        return WatchfulTrust(self.world, self.catalogue)

    def put(self, event: Any) -> None:
        self.world.agent, self.alive, self.worker.device = self, True, self
        self.queue.append(event)

    def accepted(self) -> dict[str, str]:
        """Slot to catalogue key, of the newest assignment that the journal holds."""
        return self.wishes.get(self.journal.entry.marks.sequence, {})

    def pump(self, steps: int = 200, jobs: bool = True) -> None:
        """Turns of the loop until nothing is left to do, or that many steps were done."""
        for _ in range(1000):
            if self.queue:
                self.reconciler.handle(self.queue.popleft())
            elif jobs and self.aide.work():
                continue
            elif steps > 0 and self.worker.work():
                steps -= 1
            else:
                return
        raise AssertionError(f"the agent does not come to rest: {self.world.history[-12:]}")

    def halt(self) -> None:
        """It was killed: what was not journaled is lost."""
        self.alive = False
        self.world.agent = None
        self.journal.close()

    def age(self, seconds: float) -> None:
        """Time passes for the world: what crashes later does."""
        self.now += timedelta(seconds=seconds)
        with self.world:
            for name in [n for n, b in self.world.behaviours.items() if b == "late" and n in self.world.containers]:
                since = self.world.started.get(name)
                if since is not None and abs(self.now - since) >= timedelta(seconds=LATE_SECONDS):
                    end_process(self.world, name, 1, self.now)


def end_process(world: WatchedWorld, name: str, code: int, now: datetime) -> None:
    """A container's process ends by itself; the engine does what its restart policy says."""
    container = world.containers[name]
    if not container.running:
        return
    if container.restart == "unless-stopped":
        world.containers[name] = replace(container, state="running", restarts=container.restarts + 1)
        world.started[name] = now
        revive(world, name)
    else:
        world.containers[name] = replace(container, state="exited", exit_code=code)


def revive(world: WatchedWorld, name: str) -> None:
    """A process that starts anew hangs no more; a model that answers wrongly still does."""
    image = world.containers[name].image
    if world.behaviours[name] == "hung" and image:
        world.behaviours[name] = image.image.run.env["BEHAVIOUR"]
