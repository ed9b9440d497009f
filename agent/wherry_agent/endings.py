"""How steps that succeed end a deployment or empty a slot. Pure; part of `progress`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from wherry.agent_release import AGENT_SLOT
from wherry.errors import DeploymentError, GateFailed, Revoked, WherryError
from wherry.messages import GateResult, Problem
from wherry_agent import steps
from wherry_agent.assignment import Marks
from wherry_agent.entry import Deployment, Entry, Limits, Rejection, SlotEntry, Verdict, same, withdrawn
from wherry_agent.states import Move, allows, next_phase
from wherry_agent.together import falling_back, members, partners

_PHASES_KEPT = 40


def problem_of(error: WherryError) -> Problem:
    """An error as reports carry it."""
    return Problem(**error.as_dict())


def advanced(deployment: Deployment, move: Move, now: datetime, **changes: Any) -> Deployment:
    """The deployment after a move of the phase table; what belonged to the step before is forgotten."""
    phase = next_phase(deployment.phase, move)
    phases = deployment.phases
    if phase != deployment.phase:
        phases = (*phases, (phase, now))
        if len(phases) > _PHASES_KEPT:
            phases = (*phases[: _PHASES_KEPT // 2], *phases[-_PHASES_KEPT // 2 :])
    rest: dict[str, Any] = {"finished": None, "gate": None, "deadline": None} | changes
    return replace(deployment, phase=phase, phases=phases, updated=now, **rest)


def with_slot(entry: Entry, slot: SlotEntry, **changes: Any) -> Entry:
    """The entry with a slot in place of the one of its name."""
    return replace(entry, slots={**entry.slots, slot.slot: slot}, **changes)


def partners_go_back(entry: Entry, slot: SlotEntry, now: datetime) -> Entry:
    """The entry with a slot whose attempt failed, and those that go together with it on the same way, in one write.

    Only the culprit's digest may be rejected; the others name it as their reason.
    """
    last = slot.deployment
    entry = with_slot(entry, slot)
    if last is None:
        return entry
    verdict: Verdict = last.verdict or "reject"
    for other in partners(entry, slot):
        trial = other.trial
        if trial is None or not allows(trial.phase, "fail"):
            continue
        reason = f"went back with slot {slot.slot}, since they go together"
        if last.problem:
            reason += f": {last.problem.thing}: {last.problem.reason}"
        error = DeploymentError(
            f"release {trial.image.image.label()}", reason, last.problem.fix if last.problem else None
        )
        moved = advanced(
            trial, "fail", now, verdict=verdict, problem=problem_of(error), culprit=slot.slot,
            attempts=last.attempts, retry_at=None,
        )  # fmt: skip
        entry = with_slot(entry, replace(other, deployment=moved))
    return entry


def _after_commit(entry: Entry, slot: SlotEntry, step: steps.Step, now: datetime, _limits: Limits) -> Entry:
    """It becomes known-good, at once with all that it goes together with: one write says so of them all."""
    trial = slot.trial
    if trial is None:
        return entry
    slot = replace(slot, deployment=replace(trial, finished=step.kind))
    entry = with_slot(entry, slot)
    group = [(member, member.trial) for member in members(entry, slot) if member.trial]
    if any((one.phase, one.finished) != ("committing", step.kind) for _, one in group):
        return entry
    for member, one in group:
        if withdrawn(one.image, entry.marks):  # while it was being committed
            error = Revoked(f"release {one.image.image.label()}", "the owner withdrew it while it was committed")
            moved = advanced(one, "fail", now, verdict="supersede", problem=problem_of(error))
            return partners_go_back(entry, replace(member, deployment=moved), now)
    for member, one in group:
        entry = with_slot(entry, _committed(member, one, now))
    return entry


def _committed(slot: SlotEntry, trial: Deployment, now: datetime) -> SlotEntry:
    old = slot.previous if slot.known_good else None
    previous = slot.known_good or slot.previous
    moved = advanced(trial, "committed", now, attempts=0, unclear=0)
    litter = (*slot.litter, old) if old else slot.litter
    return replace(
        slot, known_good=trial.image, previous=previous, deployment=moved, litter=litter, since=trial.turned
    )  # fmt: skip


def _after_prune(entry: Entry, slot: SlotEntry, step: steps.Step, _now: datetime, _limits: Limits) -> Entry:
    images = step.images if isinstance(step, steps.Prune) else ()
    return with_slot(entry, replace(slot, litter=tuple(image for image in slot.litter if image not in images)))


_ROLLED_BACK: Mapping[Verdict, Move] = {"reject": "reject", "retry": "retry", "supersede": "withdrawn"}


def _after_rollback(entry: Entry, slot: SlotEntry, _step: steps.Step, now: datetime, limits: Limits) -> Entry:
    trial = slot.trial
    if trial is None:
        return entry
    if trial.turned:  # callers had reached the candidate: now they reach the known-good again
        slot = replace(slot, since=now)
    verdict = trial.verdict or "retry"
    moved = advanced(trial, _ROLLED_BACK[verdict], now, verdict=None, retry_at=None)
    if verdict == "retry":
        moved = replace(moved, mode=None, culprit="", retry_at=now + limits.wait(trial.attempts))
        return with_slot(entry, replace(slot, deployment=moved))
    rejected = dict(entry.rejected)
    if verdict == "reject" and trial.problem and not trial.culprit:
        rejected[trial.image.digest] = Rejection(trial.image.digest, slot.slot, trial.problem, now)
    return with_slot(entry, replace(slot, deployment=moved, litter=(*slot.litter, trial.image)), rejected=rejected)


def after_commit(result: GateResult) -> str:
    """Why a release that was committed is no good any more."""
    return f"{result.kind} gate, after it was committed: {result.detail}"


def _after_fall_back(
    entry: Entry, slot: SlotEntry, step: steps.FallBack, now: datetime, _limits: Limits
) -> Entry:  # fmt: skip
    """The release before is known-good again, in all slots that went together; what failed is not tried again."""
    if any(withdrawn(turn.image, entry.marks) for turn in (step, *step.partners)):
        return entry  # meanwhile: the next plan turns callers back
    problem = problem_of(GateFailed(f"release {step.rejected.image.label()}", after_commit(step.why)))
    entry = with_slot(entry, _fallen_back(slot, step, problem, now, gate=step.why))
    for turn in step.partners:
        words = f"went back with slot {step.slot}, since they go together: {problem.thing}: {problem.reason}"
        error = DeploymentError(f"release {turn.rejected.image.label()}", words, problem.fix)
        other = _fallen_back(entry.slots[turn.slot], turn, problem_of(error), now, culprit=step.slot)
        entry = with_slot(entry, other)
    rejection = Rejection(step.rejected.digest, slot.slot, problem, now)
    return replace(entry, rejected={**entry.rejected, step.rejected.digest: rejection})


def _fallen_back(
    slot: SlotEntry, step: steps.FallBack, problem: Problem, now: datetime, gate: GateResult | None = None,
    culprit: str = "",
) -> SlotEntry:  # fmt: skip
    last = slot.deployment
    if last and same(last.image, step.rejected) and allows(last.phase, "fall_back"):
        gates = (*last.gates, gate) if gate else last.gates
        last = advanced(last, "fall_back", now, problem=problem, gates=gates, culprit=culprit)
    litter = (*slot.litter, step.rejected)
    return replace(slot, known_good=step.image, previous=None, deployment=last, litter=litter, since=now)


def without_withdrawn(slot: SlotEntry, marks: Marks, now: datetime) -> SlotEntry:
    """The slot without what the owner withdrew. The release before a withdrawn known-good takes its place.

    Not where that one is on trial anyway, and not the agent's own, which is another program already.
    """
    gone = tuple(image for image in (slot.known_good, slot.previous) if image and withdrawn(image, marks))
    good, before = (None if image in gone else image for image in (slot.known_good, slot.previous))
    slot = replace(slot, known_good=good, previous=before, litter=(*slot.litter, *gone))
    on_trial = slot.trial is not None and same(slot.trial.image, before)
    if good is not None or before is None or on_trial or slot.slot == AGENT_SLOT:
        return slot
    return replace(slot, known_good=before, previous=None, since=now)


def partners_of_withdrawn(entry: Entry, after: Mapping[str, SlotEntry], now: datetime) -> dict[str, SlotEntry]:
    """The slots after a withdrawal, with those gone back, too, that were committed together with one that went back."""
    found = dict(after)
    for name, slot in entry.slots.items():
        good, back = slot.known_good, after[name].known_good
        if good is None or back is None or same(good, back):
            continue
        words = GateResult(kind="withdrawn", ok=False, detail="the owner withdrew it", seconds=0.0)
        for turn in falling_back(steps.FallBack(name, back, slot.port, good, words), entry).partners:
            other = found[turn.slot]
            if other.previous is None or not same(other.known_good, turn.rejected):
                continue
            reason = f"went back with slot {name}, since they go together: the owner withdrew {good.image.label()}"
            error = DeploymentError(
                f"release {turn.rejected.image.label()}", reason, "Roll out another release to both"
            )
            found[turn.slot] = _fallen_back(other, turn, problem_of(error), now, culprit=name)
    return found


def _after_remove(entry: Entry, slot: SlotEntry, _step: steps.Step, now: datetime, _limits: Limits) -> Entry:
    gone = tuple(image for image in (slot.known_good, slot.previous) if image)
    last = slot.deployment
    if last and allows(last.phase, "remove"):
        last = advanced(last, "remove", now)
    return with_slot(
        entry, replace(slot, known_good=None, previous=None, deployment=last, litter=(*slot.litter, *gone))
    )  # fmt: skip


def _after_verify(entry: Entry, _slot: SlotEntry, step: steps.Verify, _now: datetime, _limits: Limits) -> Entry:
    return replace(entry, unverified=entry.unverified - {step.image.digest})


ENDINGS: Mapping[type, Callable[[Entry, SlotEntry, Any, datetime, Limits], Entry]] = {
    steps.Commit: _after_commit,
    steps.Prune: _after_prune,
    steps.Rollback: _after_rollback,
    steps.Remove: _after_remove,
    steps.FallBack: _after_fall_back,
    steps.Verify: _after_verify,
}
