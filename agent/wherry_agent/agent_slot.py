"""The slot that holds the agent itself: what to do next, and what becomes of its deployment. Pure.

Its deployments go through the phases of all others; only what a step means is another thing (see `self_update`): the
agent before stages the release and leaves for it (Start), the new one proves itself (Probe, Soak) and stays (Commit).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from wherry.agent_release import AGENT_SLOT, misplaced
from wherry.errors import AdmissionError, DeploymentError, GateFailed, WherryError
from wherry.messages import Phase
from wherry_agent.assignment import Assignment, TrustedImage
from wherry_agent.endings import advanced, problem_of, with_slot
from wherry_agent.entry import Deployment, Entry, Limits, Rejection, SlotEntry, same, withdrawn
from wherry_agent.observed import Observed
from wherry_agent.own_version import Running
from wherry_agent.states import allows
from wherry_agent.steps import Commit, Fetch, GoBack, Probe, Prune, Remove, Rollback, Soak, Stage, Start, Step, Switch

_Make = Callable[[TrustedImage], Step]
_WAY: tuple[tuple[Phase, str, _Make], ...] = (
    ("fetching", "Fetch", lambda image: Fetch(AGENT_SLOT, image)),
    ("staging", "Stage", lambda image: Stage(AGENT_SLOT, image, 0)),
    ("starting", "Start", lambda image: Start(AGENT_SLOT, image, "replace")),
    ("probing", "Probe", lambda image: Probe(AGENT_SLOT, image)),
    ("switching", "Switch", lambda image: Switch(AGENT_SLOT, image, 0)),
    ("soaking", "Soak", lambda image: Soak(AGENT_SLOT, image)),
    ("committing", "Commit", lambda image: Commit(AGENT_SLOT, image)),
)
_POSITION: Mapping[str, int] = {"admitted": 0, **{phase: index for index, (phase, _, _) in enumerate(_WAY)}}
_PROVING = ("starting", "probing", "switching", "soaking", "committing")
_BEFORE_START = ("admitted", "fetching")


@dataclass(frozen=True, slots=True)
class OwnVersionNoticed:
    """Another agent runs than the journal says: the supervisor went back, or somebody did."""

    running: Running


def refusal(slot: str, image: TrustedImage, own: Running) -> WherryError | None:
    """Why a release may not even be tried in a slot: the agent itself goes into its own, and needs a supervisor."""
    thing = f"release {image.image.label()}"
    reason = misplaced(image.image.model, slot)
    if reason:
        return AdmissionError(thing, reason, "Assign it to the slot where it belongs")
    if slot == AGENT_SLOT and not own.supervised:
        reason = "would take the place of this agent, which runs without its supervisor, so there would be no way back"
        return AdmissionError(thing, reason, "Start the agent with `wherry-agent supervise` on the device")
    return None


def proving(entry: Entry) -> bool:
    """Whether this agent, or the next one, is on trial: deployments of models wait for the short while."""
    slot = entry.slots.get(AGENT_SLOT)
    return slot is not None and slot.trial is not None and slot.trial.phase in _PROVING


def runs(slot: SlotEntry, own: Running) -> TrustedImage | None:
    """The release that this agent was started from, as far as the journal knows it."""
    trial = slot.trial.image if slot.trial else None
    known = (slot.known_good, trial, slot.previous, *slot.litter)
    return next((image for image in known if image and image.digest == own.digest), None)


def plan_agent(
    desired: Assignment | None, observed: Observed, entry: Entry, now: datetime, limits: Limits
) -> list[Step]:  # fmt: skip
    """The steps that bring the agent itself from what runs to what should run."""
    slot, own = entry.slots.get(AGENT_SLOT), observed.agent
    if slot is None or not own.supervised:
        return []
    image = runs(slot, own)
    if image and withdrawn(image, entry.marks):
        return [GoBack(AGENT_SLOT, image, slot.known_good or slot.previous)]
    if slot.trial:
        return _deploying(slot.trial, desired, entry, now, limits)
    return _settled(slot, desired, observed, entry)


def _deploying(
    trial: Deployment, desired: Assignment | None, entry: Entry, now: datetime, limits: Limits
) -> list[Step]:  # fmt: skip
    if not limits.due(trial.retry_at, now):
        return []
    if trial.phase == "rolling_back":
        return [Rollback(AGENT_SLOT, trial.image)]
    position = _POSITION[trial.phase]
    if trial.phase != "admitted" and trial.finished == _WAY[position][1]:
        position += 1
    way = [make(trial.image) for _, _, make in _WAY[position:]]
    if trial.phase in _PROVING[1:] and desired is None:
        return []  # what it should run it must be able to read: part of the proof, and the supervisor's clock ticks
    busy = any(s.trial and s.trial.phase not in _BEFORE_START for n, s in entry.slots.items() if n != AGENT_SLOT)
    return [step for step in way if isinstance(step, Fetch | Stage)] if busy and position <= 2 else way


def _settled(slot: SlotEntry, desired: Assignment | None, observed: Observed, entry: Entry) -> list[Step]:
    strays = tuple(sorted(c.name for c in observed.containers.values() if c.slot == AGENT_SLOT))
    if desired is not None and AGENT_SLOT not in desired.slots and (slot.known_good or slot.previous):
        return [Remove(AGENT_SLOT, 0, strays, 0)]
    wanted = desired.slots.get(AGENT_SLOT) if desired else None
    needed = entry.needed_digests() | {observed.agent.digest}
    if wanted and wanted.digest not in entry.rejected and not withdrawn(wanted, entry.marks):
        needed |= {wanted.digest}
    images = tuple(image for image in slot.litter if image.digest not in needed)
    return [Prune(AGENT_SLOT, strays, images)] if strays or images else []


def noticed(entry: Entry, own: Running) -> OwnVersionNoticed | None:
    """What this agent sees of itself, when the journal must learn it. Ask while no step is under way."""
    slot = entry.slots.get(AGENT_SLOT)
    if slot is None or not own.supervised:
        return None
    if slot.trial:
        other = slot.trial.phase in _PROVING and slot.trial.image.digest != own.digest
    elif slot.known_good:
        other = slot.known_good.digest != own.digest
    else:  # the owner withdrew it, and the one before was gone back to
        other = slot.previous is not None and slot.previous.digest == own.digest
    return OwnVersionNoticed(own) if other else None


def own_version_noticed(entry: Entry, fact: OwnVersionNoticed, now: datetime, limits: Limits) -> Entry:
    """The deployment fails, or the committed release gives way to what runs."""
    slot = entry.slots[AGENT_SLOT]
    if slot.trial:
        return with_slot(entry, replace(slot, deployment=_failed(slot.trial, fact.running, now, limits)))
    known = slot.known_good
    back = slot.previous if slot.previous and slot.previous.digest == fact.running.digest else None
    if known is None:
        return with_slot(entry, replace(slot, known_good=back, previous=None, since=now)) if back else entry
    gone = [image for image in (known, slot.previous) if image and not same(image, back)]
    last, rejected = slot.deployment, dict(entry.rejected)
    reason = fact.running.verdicts.get(known.digest)
    if reason:
        problem = problem_of(GateFailed(f"release {known.image.label()}", f"after it was committed: {reason}"))
        rejected[known.digest] = Rejection(known.digest, AGENT_SLOT, problem, now)
        if last and same(last.image, known) and allows(last.phase, "fall_back"):
            last = advanced(last, "fall_back", now, problem=problem)
    elif last and same(last.image, known) and allows(last.phase, "remove"):
        last = advanced(last, "remove", now)
    slot = replace(
        slot, known_good=back, previous=None, deployment=last, litter=(*slot.litter, *gone), since=now
    )  # fmt: skip
    return with_slot(entry, slot, rejected=rejected)


def _failed(trial: Deployment, own: Running, now: datetime, limits: Limits) -> Deployment:
    thing, reason = f"release {trial.image.image.label()}", own.verdicts.get(trial.image.digest)
    changes: dict[str, Any] = {"attempts": trial.attempts + 1, "retry_at": None}
    if reason:
        error: WherryError = GateFailed(thing, reason, "Read the agent's log on the device; then publish a new version")
        return advanced(trial, "fail", now, verdict="reject", problem=problem_of(error), **changes)
    error = DeploymentError(thing, "was to take over, but another agent was started")
    unclear = trial.unclear + 1
    verdict = "reject" if unclear >= limits.unclear_attempts else "retry"
    return advanced(trial, "fail", now, verdict=verdict, problem=problem_of(error), unclear=unclear, **changes)
