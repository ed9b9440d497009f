"""A device that takes several releases in one rollout: all of its slots seen as one target. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from wherry.api.rollouts import TargetPartView, TargetState
from wherry_server.domain.rollout import SETTLED, DeviceReport, Mark, Target, follow

_WORST_FIRST: tuple[TargetState, ...] = ("rejected", "refused", "misfit", "superseded")


@dataclass(frozen=True, slots=True)
class Moved:
    """What a device's report says about its slots in a rollout.

    Attributes:
        marks: slots that moved on.
        state: of the device as a whole.
    """

    marks: Mapping[str, Mark]
    state: TargetState


def joint_state(states: Sequence[TargetState]) -> TargetState:
    """How a device is whose slots are in these states: settled only when all of them are, well only when all are."""
    open_ones = [state for state in states if state not in SETTLED]
    if len(open_ones) == len(states) and "running" not in states:
        return "pending" if set(states) == {"pending"} else "assigned"
    if open_ones:
        return "running"
    return next((state for state in _WORST_FIRST if state in states), "committed")


def follow_all(
    parts: Mapping[str, Target], reports: Mapping[str, DeviceReport], now: datetime
) -> Moved | None:  # fmt: skip
    """What a report says about all slots of a device in one rollout; None for nothing new."""
    marks = {slot: mark for slot, part in parts.items() if (mark := follow(part, reports[slot], now))}
    if not marks:
        return None
    state = joint_state([marks[slot].state if slot in marks else part.state for slot, part in parts.items()])
    return Moved(marks, state)


def telling(parts: Sequence[TargetPartView]) -> TargetPartView:
    """The slot that tells most about a device: the one to blame, else one with a problem, else one under way."""

    def rank(part: TargetPartView) -> tuple[bool, bool, bool]:
        blameless = part.deployment is not None and part.deployment.culprit is not None
        return part.problem is None, blameless, part.state in SETTLED

    return min(parts, key=rank)
