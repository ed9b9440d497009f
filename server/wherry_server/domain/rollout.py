"""A rollout: a release brought to a selection of devices in ordered waves, and what to do about it next.

Values in, actions out; whoever calls this does what the actions say and asks again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from wherry.api.rollouts import RolloutState, TargetState
from wherry.errors import Conflict, Rejected
from wherry.messages import FINAL_PHASES, DeploymentReport, Problem, SlotReport

SETTLED: frozenset[TargetState] = frozenset({"committed", "rejected", "refused", "misfit", "superseded"})
FAILED: frozenset[TargetState] = frozenset({"rejected", "refused"})
REFUSAL_PATIENCE = timedelta(seconds=5)
"""How long after an assignment a device's trust problem may still be about the assignment before it."""


@dataclass(frozen=True, slots=True)
class Target:
    """One device in a rollout, or one of its slots where the rollout has several releases (see `domain.parts`).

    Attributes:
        digest: the image it is to run; empty for a misfit.
        sequence: of the assignment that names the image; 0 before.
        assigned: when that was.
    """

    device: str
    digest: str = ""
    state: TargetState = "pending"
    sequence: int = 0
    assigned: datetime | None = None
    problem: Problem | None = None

    @property
    def settled(self) -> bool:
        """Whether nothing more is expected of this device."""
        return self.state in SETTLED


@dataclass(frozen=True, slots=True)
class Wave:
    """Devices that go together. The next wave opens when this one is settled and not too many of it failed.

    Attributes:
        tolerate: how many devices may fail before the rollout pauses instead of opening the next wave.
    """

    devices: tuple[str, ...]
    tolerate: int = 0


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """What a device says that matters to a rollout of one slot.

    Attributes:
        sequence: the newest assignment it accepted.
        slot: the slot as reported, if it reported it.
        rejected: digests it will not try again by itself.
        problem: why it cannot converge.
        refused: sequence of the assignment that it refused for that; 0 for none, and from agents that do not tell.
        received: when the server got this.
    """

    sequence: int
    received: datetime
    slot: SlotReport | None = None
    rejected: frozenset[str] = frozenset()
    problem: Problem | None = None
    refused: int = 0


@dataclass(frozen=True, slots=True)
class Rollout:
    """A release on its way to devices. Every target belongs to exactly one wave."""

    state: RolloutState
    waves: tuple[Wave, ...]
    targets: Mapping[str, Target] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Assign:
    """Sign and send this device its assignment."""

    device: str


@dataclass(frozen=True, slots=True)
class Mark:
    """A target has moved on."""

    device: str
    state: TargetState
    deployment: DeploymentReport | None = None
    problem: Problem | None = None


@dataclass(frozen=True, slots=True)
class Pause:
    """Stop opening waves: too many devices of one failed."""

    reason: str


@dataclass(frozen=True, slots=True)
class Finish:
    """Nothing more will happen."""

    state: RolloutState


Action = Assign | Pause | Finish


def one_wave(targets: Iterable[Target]) -> tuple[Wave, ...]:
    """All devices at once, in order of their ids."""
    return (Wave(tuple(sorted(target.device for target in targets))),)


def next_actions(rollout: Rollout) -> list[Action]:
    """What to do about a rollout: open the next wave, or end it. Paused and aborted ones assign nothing more."""
    return _open_or_end(rollout.waves, rollout.targets) if rollout.state == "running" else []


def _open_or_end(waves: Sequence[Wave], targets: Mapping[str, Target]) -> list[Action]:
    for number, wave in enumerate(waves, start=1):
        members = [targets[device] for device in wave.devices]
        if not all(target.settled for target in members):
            return [Assign(target.device) for target in members if target.state == "pending"]
        failed = [target.device for target in members if target.state in FAILED]
        if len(failed) > wave.tolerate and number < len(waves):
            return [Pause(f"{len(failed)} of {len(members)} devices of wave {number} failed: {', '.join(failed[:3])}")]
    return [Finish(outcome([target.state for target in targets.values()]))]


def outcome(states: Sequence[TargetState]) -> RolloutState:
    """How a rollout ended whose targets are all settled.

    Any failed device makes it failed. Devices that the release does not fit do not, unless no device was left.
    """
    if any(state in FAILED for state in states):
        return "failed"
    if "committed" in states:
        return "completed"
    # A rollout whose devices have all left the fleet has nobody who failed.
    return "aborted" if "superseded" in states or not states else "failed"


def follow(target: Target, report: DeviceReport, now: datetime) -> Mark | None:
    """What a device's report says about its target; None for nothing new.

    What has ended stays as it ended, with its first cause: what the device does later is told by its own history.
    Only a refusal may pass, such as a full disk's or a wrong clock's: when the device goes on, so does its target.
    """
    if target.state == "refused":
        return _resumed(target, report, now)
    if target.sequence == 0 or target.settled or target.state == "pending":
        return None
    found = _judge(target, report, now)
    if found is None or (found.state == target.state and found.deployment is None and found.problem == target.problem):
        return None
    return found


def _judge(target: Target, report: DeviceReport, now: datetime) -> Mark | None:
    slot = report.slot
    deployment = slot.deployment if slot else None
    if deployment and _is_about(deployment, target, report):
        return Mark(target.device, _state_of(deployment), deployment, deployment.problem)
    if report.sequence < target.sequence:
        return _not_accepted(target, report, now)
    if slot and slot.serving and slot.known_good and slot.serving.digest == slot.known_good.digest == target.digest:
        return Mark(target.device, "committed")
    if target.digest in report.rejected:
        return Mark(target.device, "rejected", problem=_rejected_before(target.device))
    return Mark(target.device, target.state, problem=report.problem) if report.problem else None


def _resumed(target: Target, report: DeviceReport, now: datetime) -> Mark | None:
    """A device that refused tries again by itself after a while; whatever else it says leaves the refusal as it is."""
    found = _judge(target, report, now)
    return found if found and found.state in ("running", "committed", "rejected") else None


def _is_about(deployment: DeploymentReport, target: Target, report: DeviceReport) -> bool:
    """Whether a deployment answers our assignment: asked for by it, or begun before and still what happens to it."""
    if deployment.release.digest != target.digest:
        return False
    if deployment.sequence >= target.sequence:
        return True
    accepted = report.sequence >= target.sequence
    standing = deployment.phase not in FINAL_PHASES or (
        deployment.phase == "rejected" and target.digest in report.rejected
    )
    return accepted and standing


def _not_accepted(target: Target, report: DeviceReport, now: datetime) -> Mark | None:
    """The device still stands at an older assignment: on its way, or refused."""
    problem = report.problem
    if problem is None or target.assigned is None or not problem.code.startswith(("trust", "contract")):
        return None
    if report.refused:  # it says which: an older one that it refused says nothing of ours
        return Mark(target.device, "refused", problem=problem) if report.refused >= target.sequence else None
    fresh = report.received > target.assigned and now - target.assigned >= REFUSAL_PATIENCE
    return Mark(target.device, "refused" if fresh else target.state, problem=problem)


def _state_of(deployment: DeploymentReport) -> TargetState:
    match deployment.phase:
        case "committed" | "rejected" | "refused":
            return deployment.phase
        case "removed":
            return "superseded"
        case _:
            return "running"


def _rejected_before(device: str) -> Problem:
    error = Rejected(f"release on {device}", "this device tried the image before and rejected it")
    return Problem.model_validate(error.as_dict())


def change_state(state: RolloutState, verb: Literal["start", "pause", "abort", "retry"]) -> RolloutState:
    """The state after an operator's word.

    Raises:
        Conflict: the word makes no sense in this state.
    """
    allowed: dict[tuple[str, RolloutState], RolloutState] = {
        ("start", "running"): "running",
        ("start", "paused"): "running",
        ("pause", "running"): "paused",
        ("pause", "paused"): "paused",
        ("abort", "running"): "aborted",
        ("abort", "paused"): "aborted",
        ("abort", "aborted"): "aborted",
        ("retry", "running"): "running",
        ("retry", "paused"): "running",
        ("retry", "failed"): "running",
        ("retry", "completed"): "running",
    }
    try:
        return allowed[verb, state]
    except KeyError:
        raise Conflict(f"rollout in state {state}", f"cannot {verb}", "Create a new rollout") from None
