"""How the journal's entry changes: pure reducers, one for each fact. Phases move by the phase table only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from wherry.errors import Tampered
from wherry.messages import GateResult, Problem
from wherry_agent import steps
from wherry_agent.agent_slot import OwnVersionNoticed, own_version_noticed
from wherry_agent.assignment import Marks, TrustedImage
from wherry_agent.endings import (
    ENDINGS,
    advanced,
    partners_go_back,
    partners_of_withdrawn,
    problem_of,
    with_slot,
    without_withdrawn,
)
from wherry_agent.entry import Deployment, Entry, Limits, SlotEntry, same
from wherry_agent.events import Cancelled, Done, Failed, GateAsked, StepFinished, StepProgress
from wherry_agent.room import GaveUp, gave_up
from wherry_agent.states import Move, allows, next_phase
from wherry_agent.together import JOINT_MOVES, members, partners
from wherry_agent.verification import carried, doubtful


@dataclass(frozen=True, slots=True)
class Booted:
    """The agent started; a changed boot id means that the device did, too."""

    boot_id: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The agent was told to end: what is on the device will have been written when it boots again."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """An assignment passed trust."""

    payload: bytes
    marks: Marks
    ports: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Admitted:
    """A new attempt at a release begins.

    Attributes:
        group: all slots that move together in it; empty when it is alone.
    """

    slot: str
    image: TrustedImage
    group: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refused:
    """A release is not even tried, for now.

    Attributes:
        culprit: the slot that is to blame, if it is another one that goes together with this.
    """

    slot: str
    image: TrustedImage
    problem: Problem
    culprit: str = ""


@dataclass(frozen=True, slots=True)
class Together:
    """Several facts, taken in by one write."""

    facts: tuple[Admitted | Refused, ...]


@dataclass(frozen=True, slots=True)
class Began:
    """A step is about to act."""

    step: steps.Step


@dataclass(frozen=True, slots=True)
class Superseded:
    """The server wants something else in the slot now."""

    slot: str
    by: str


@dataclass(frozen=True, slots=True)
class Cleared:
    """The operator wants a rejected digest tried again."""

    digest: str


Fact = (
    Booted
    | Ended
    | Accepted
    | Admitted
    | Refused
    | Together
    | Began
    | StepFinished
    | StepProgress
    | GateAsked
    | Superseded
    | Cleared
    | OwnVersionNoticed
    | GaveUp
)


def advance(entry: Entry, fact: Fact, now: datetime, limits: Limits) -> Entry:
    """The entry after a fact.

    Raises:
        PhaseError: the phase table does not allow it; the entry stays as it was.
    """
    after = _REDUCERS[type(fact)](entry, fact, now, limits)
    return replace(after, unverified=carried(entry, after)) if entry.unverified else after


def _booted(entry: Entry, fact: Booted, now: datetime, limits: Limits) -> Entry:
    slots = dict(entry.slots)
    if entry.boot_id and entry.boot_id != fact.boot_id:
        for name, slot in slots.items():
            trial = slot.trial
            if trial and allows(trial.phase, "reboot"):
                slots[name] = replace(slot, deployment=_rebooted(trial, now, limits))
    booted = replace(
        entry, boot_id=fact.boot_id, starts=entry.starts + 1, slots=slots, ended="",
        unverified=doubtful(entry, fact.boot_id),
    )  # fmt: skip
    for name, slot in slots.items():
        before = entry.slots[name].trial
        if slot.trial and before and slot.trial.phase == "rolling_back" != before.phase:
            booted = partners_go_back(booted, slot, now)
    return booted


def _ended(entry: Entry, _fact: Ended, _now: datetime, _limits: Limits) -> Entry:
    return replace(entry, ended=entry.boot_id)


def _rebooted(trial: Deployment, now: datetime, limits: Limits) -> Deployment:
    """A candidate that takes the device down again and again is not tried for ever."""
    if trial.unclear + 1 < limits.unclear_attempts:
        return advanced(trial, "reboot", now, unclear=trial.unclear + 1, mode=None)
    thing, reason = f"release {trial.image.image.label()}", f"the device rebooted {trial.unclear + 1} times during it"
    problem = Problem(code="deployment", thing=thing, reason=reason, fix="Look for what makes the device reboot")
    return advanced(trial, "fail", now, verdict="reject", problem=problem)


def _accepted(entry: Entry, fact: Accepted, now: datetime, _limits: Limits) -> Entry:
    names = {*entry.slots, *fact.ports}
    known = {name: entry.slots.get(name) or SlotEntry(name, fact.ports[name]) for name in names}
    slots = {name: without_withdrawn(slot, fact.marks, now) for name, slot in known.items()}
    slots = partners_of_withdrawn(entry, slots, now)
    return replace(entry, payload=fact.payload, marks=fact.marks, slots=slots)


def _new(entry: Entry, slot: SlotEntry, image: TrustedImage, move: Move, now: datetime) -> Deployment:
    phase = next_phase(None, move)
    good = slot.known_good.ref if slot.known_good else None
    number = f"{entry.stream[:6]}-{entry.deployments + 1}"
    return Deployment(
        number, image, entry.marks.sequence, phase, now, now, previous=good, phases=((phase, now),),
        total_bytes=image.image.download_bytes,
    )  # fmt: skip


def _admitted(entry: Entry, fact: Admitted, now: datetime, _limits: Limits) -> Entry:
    slot = entry.slots[fact.slot]
    last = slot.deployment
    if last and last.phase == "refused" and same(last.image, fact.image):
        deployment = advanced(last, "admit", now, problem=None, retry_at=None, group=fact.group, culprit="")
        return with_slot(entry, replace(slot, deployment=deployment))
    deployment = replace(_new(entry, slot, fact.image, "admit", now), group=fact.group)
    return with_slot(entry, replace(slot, deployment=deployment), deployments=entry.deployments + 1)


def _refused(entry: Entry, fact: Refused, now: datetime, limits: Limits) -> Entry:
    slot = entry.slots[fact.slot]
    last, count = slot.deployment, entry.deployments
    if last and last.phase == "refused" and same(last.image, fact.image):
        deployment = advanced(last, "refuse", now)
    else:
        deployment, count = _new(entry, slot, fact.image, "refuse", now), count + 1
    attempts = deployment.attempts + 1
    deployment = replace(
        deployment, problem=fact.problem, attempts=attempts, retry_at=now + limits.wait(attempts + 4),
        culprit=fact.culprit,
    )  # fmt: skip
    return with_slot(entry, replace(slot, deployment=deployment), deployments=count)


def _together(entry: Entry, fact: Together, now: datetime, limits: Limits) -> Entry:
    for one in fact.facts:
        entry = advance(entry, one, now, limits)
    return entry


def _began(entry: Entry, fact: Began, now: datetime, _limits: Limits) -> Entry:
    step = fact.step
    slot = entry.slots.get(step.slot)
    if step.move is None or slot is None or slot.deployment is None or isinstance(step, steps.Remove):
        return entry
    changes: dict[str, Any] = {}
    if isinstance(step, steps.Start):
        changes["mode"] = step.mode
    elif isinstance(step, steps.Retire):
        changes["mode"] = "replace"
    move: Move = step.move  # type: ignore[assignment]
    for other in partners(entry, slot):
        if other.trial and move in JOINT_MOVES and next_phase(other.trial.phase, move) != other.trial.phase:
            entry = with_slot(entry, replace(other, deployment=advanced(other.trial, move, now)))
        elif other.trial and changes:  # overlap for all, or replace for all
            entry = with_slot(entry, replace(other, deployment=replace(other.trial, **changes)))
    return with_slot(entry, replace(slot, deployment=advanced(slot.deployment, move, now, **changes)))


def _superseded(entry: Entry, fact: Superseded, now: datetime, _limits: Limits) -> Entry:
    """A deployment gives way, and with it those that go together with it."""
    for slot in members(entry, entry.slots[fact.slot]):
        if slot.deployment is None or not allows(slot.deployment.phase, "supersede"):
            continue  # it gave way with another one
        thing, reason = f"release {slot.deployment.image.image.label()}", f"gave way to {fact.by}"
        problem = Problem(code="conflict", thing=thing, reason=reason, fix="Nothing to do")
        moved = advanced(slot.deployment, "supersede", now, problem=problem, verdict="supersede", retry_at=None)
        litter = slot.litter if moved.active else (*slot.litter, moved.image)
        entry = with_slot(entry, replace(slot, deployment=moved, litter=litter))
    return entry


def _cleared(entry: Entry, fact: Cleared, _now: datetime, _limits: Limits) -> Entry:
    slots = dict(entry.slots)
    meant = {name for name, slot in slots.items() if slot.deployment and slot.deployment.image.digest == fact.digest}
    for name, slot in slots.items():
        deployment = slot.deployment
        if deployment and (name in meant or deployment.culprit in meant) and deployment.retry_at:
            slots[name] = replace(slot, deployment=replace(deployment, retry_at=None, attempts=0))
    return replace(entry, slots=slots, rejected={k: v for k, v in entry.rejected.items() if k != fact.digest})


def _progress(entry: Entry, fact: StepProgress, _now: datetime, _limits: Limits) -> Entry:
    slot = entry.slots.get(fact.step.slot)
    if slot is None or slot.trial is None:
        return entry
    deployment = replace(slot.trial, fetched_bytes=fact.fetched_bytes, total_bytes=fact.total_bytes)
    return with_slot(entry, replace(slot, deployment=deployment))


def _asked(entry: Entry, fact: GateAsked, now: datetime, _limits: Limits) -> Entry:
    slot = entry.slots.get(fact.step.slot)
    if slot is None or slot.trial is None:
        return entry
    # To the second: reports that differ in less are not worth a message.
    deadline = (now + timedelta(seconds=fact.seconds)).replace(microsecond=0)
    return with_slot(entry, replace(slot, deployment=replace(slot.trial, gate=fact.gate, deadline=deadline)))


def _finished(entry: Entry, fact: StepFinished, now: datetime, limits: Limits) -> Entry:
    slot = entry.slots.get(fact.step.slot)
    if slot is None or isinstance(fact.outcome, Cancelled):
        return entry
    if isinstance(fact.outcome, Failed):
        return _failed(entry, slot, fact.step, fact.outcome, now, limits)
    ending = ENDINGS.get(type(fact.step))
    if ending is not None:
        return ending(entry, slot, fact.step, now, limits)
    if fact.step.move is None or slot.trial is None:
        return entry
    entry = with_slot(entry, replace(slot, deployment=_succeeded(slot.trial, fact.step, fact.outcome)))
    for other in partners(entry, slot) if isinstance(fact.step, steps.Switch) else ():
        if other.trial:
            entry = with_slot(entry, replace(other, deployment=replace(other.trial, finished=fact.step.kind)))
    return entry


def _succeeded(trial: Deployment, step: steps.Step, outcome: Done) -> Deployment:
    fetched = trial.total_bytes if isinstance(step, steps.Fetch) else trial.fetched_bytes
    return replace(
        trial, finished=step.kind, gates=_gates(trial, step, outcome.gates), retry_at=None, problem=None,
        fetched_bytes=fetched, gate=None, deadline=None,
    )  # fmt: skip


def _gates(trial: Deployment, step: steps.Step, found: tuple[GateResult, ...]) -> tuple[GateResult, ...]:
    """A probe's results stand; what a soak adds comes after them, its repeated questions only when one failed."""
    if not isinstance(step, steps.Soak):
        return found or trial.gates
    kept = tuple(gate for gate in trial.gates if gate.kind != "soak")
    return (*kept, *(gate for gate in found if gate.kind == "soak" or not gate.ok))


def _failed(
    entry: Entry, slot: SlotEntry, step: steps.Step, outcome: Failed, now: datetime, limits: Limits
) -> Entry:  # fmt: skip
    trial = slot.trial
    if trial is None or step.move is None or isinstance(step, steps.Remove):
        return entry
    attempts = trial.attempts + 1
    problem, wait = problem_of(outcome.error), now + limits.wait(attempts)
    if isinstance(step, steps.Rollback):
        return with_slot(entry, replace(slot, deployment=replace(trial, attempts=attempts, retry_at=wait)))
    if isinstance(step, steps.Fetch):
        refused = isinstance(outcome.error, Tampered) and attempts >= limits.tampered_attempts
        at = now + limits.wait(attempts + 4) if refused else wait
        moved = advanced(trial, "refuse" if refused else "retry", now, attempts=attempts, retry_at=at, problem=problem)
        slot = replace(slot, deployment=moved)
        return partners_go_back(entry, slot, now) if refused else with_slot(entry, slot)
    return partners_go_back(entry, replace(slot, deployment=_failed_trial(trial, step, outcome, now, limits)), now)


def _failed_trial(
    trial: Deployment, step: steps.Step, outcome: Failed, now: datetime, limits: Limits
) -> Deployment:  # fmt: skip
    unclear = trial.unclear + (outcome.blame == "unclear")
    blamed = outcome.blame == "release" or unclear >= limits.unclear_attempts
    return advanced(
        trial, "fail", now, verdict="reject" if blamed else "retry", problem=problem_of(outcome.error),
        unclear=unclear, attempts=trial.attempts + 1, retry_at=None, gates=_gates(trial, step, outcome.gates),
    )  # fmt: skip


_REDUCERS: Mapping[type, Callable[[Entry, Any, datetime, Limits], Entry]] = {
    Booted: _booted,
    Ended: _ended,
    Accepted: _accepted,
    Admitted: _admitted,
    Refused: _refused,
    Together: _together,
    Began: _began,
    StepFinished: _finished,
    StepProgress: _progress,
    GateAsked: _asked,
    Superseded: _superseded,
    Cleared: _cleared,
    OwnVersionNoticed: own_version_noticed,
    GaveUp: gave_up,
}
