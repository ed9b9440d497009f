"""From a device's report to its targets in rollouts."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from wherry_server.domain import rollout as plan
from wherry_server.store.documents import read_problem, read_slots, write
from wherry_server.store.schema import Device, RolloutRow, RolloutTarget

_NEVER = datetime.fromtimestamp(0, UTC)
_FOLLOWED = ("assigned", "running", "rejected", "refused")


def device_report(device: Device, slot: str) -> plan.DeviceReport:
    """What a device says about one of its slots."""
    return plan.DeviceReport(
        sequence=device.reported_sequence,
        received=device.report_received or _NEVER,
        slot=next((report for report in read_slots(device.slots) if report.slot == slot), None),
        rejected=frozenset(json.loads(device.rejected)),
        problem=read_problem(device.problem),
    )


def to_target(row: RolloutTarget) -> plan.Target:
    """A stored target as the domain sees it."""
    return plan.Target(
        device=row.device,
        digest=row.digest,
        state=row.state,  # type: ignore[arg-type]  # only such states are stored
        sequence=row.sequence,
        assigned=row.assigned,
        problem=read_problem(row.problem),
    )


def mark_target(row: RolloutTarget, mark: plan.Mark) -> None:
    """Write down what a device's report said about its target."""
    row.state = mark.state
    row.deployment = write(mark.deployment) or row.deployment
    row.problem = write(mark.problem)


def follow_device(session: Session, device: Device, now: datetime) -> list[int]:
    """Update a device's newest target of each slot; ids of rollouts where one became settled."""
    query = (
        select(RolloutTarget)
        .where(RolloutTarget.device == device.id, RolloutTarget.state.in_(_FOLLOWED))
        .order_by(RolloutTarget.rollout.desc())
    )
    newest: dict[str, RolloutTarget] = {}
    for target in session.scalars(query):
        newest.setdefault(target.slot, target)
    settled = []
    for slot, target in newest.items():
        mark = plan.follow(to_target(target), device_report(device, slot), now)
        if mark is not None:
            changed = mark.state != target.state
            mark_target(target, mark)
            if changed and mark.state in plan.SETTLED:
                settled.append(target.rollout)
    session.flush()
    for rollout in settled:
        _judge_again(session, rollout)
    return settled


def _judge_again(session: Session, rollout: int) -> None:
    """A device may come round after its rollout ended (an operator had it retry): then the outcome changes."""
    row = session.get(RolloutRow, rollout)
    if row is not None and row.state in ("failed", "completed"):
        states = list(session.scalars(select(RolloutTarget.state).where(RolloutTarget.rollout == rollout)))
        row.state = plan.outcome(states)  # type: ignore[arg-type]  # only such states are stored
