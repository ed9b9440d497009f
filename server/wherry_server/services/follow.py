"""From a device's report to its targets in rollouts."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from wherry_server.domain import rollout as plan
from wherry_server.store.documents import read_problem, read_slots, write
from wherry_server.store.schema import Device, RolloutRow, RolloutTarget

_NEVER = datetime.fromtimestamp(0, UTC)
TARGET_COLUMNS = (
    RolloutTarget.device,
    RolloutTarget.digest,
    RolloutTarget.state,
    RolloutTarget.sequence,
    RolloutTarget.assigned,
    RolloutTarget.problem,
)
"""What `make_target` takes."""
_FOLLOWED = RolloutTarget.state.in_(("assigned", "running"))
_MAY_RESUME = (RolloutTarget.state == "refused") & RolloutRow.state.in_(("running", "paused"))
"""A rollout that has ended does not begin again by itself."""


def device_report(device: Device, slot: str) -> plan.DeviceReport:
    """What a device says about one of its slots."""
    return plan.DeviceReport(
        sequence=device.reported_sequence,
        received=device.report_received or _NEVER,
        slot=next((report for report in read_slots(device.slots) if report.slot == slot), None),
        rejected=frozenset(json.loads(device.rejected)),
        problem=read_problem(device.problem),
        refused=device.refused,
    )


def make_target(*values: Any) -> plan.Target:
    """A target as the domain sees it, from the values of `TARGET_COLUMNS`."""
    device, digest, state, sequence, assigned, problem = values
    return plan.Target(device, digest, state, sequence, assigned, read_problem(problem))


def _to_target(row: RolloutTarget) -> plan.Target:
    return make_target(row.device, row.digest, row.state, row.sequence, row.assigned, row.problem)


def mark_target(row: RolloutTarget, mark: plan.Mark) -> None:
    """Write down what a device's report said about its target."""
    row.state = mark.state
    row.deployment = write(mark.deployment) or row.deployment
    row.problem = write(mark.problem)


def follow_device(session: Session, device: Device, now: datetime) -> dict[int, bool]:
    """Update a device's newest target of each slot; the rollouts where one moved on: id to whether it settled."""
    query = (
        select(RolloutTarget)
        .join(RolloutRow, RolloutRow.id == RolloutTarget.rollout)
        .where(RolloutTarget.device == device.id, _FOLLOWED | _MAY_RESUME)
        .order_by(RolloutTarget.sequence.desc(), RolloutTarget.rollout.desc())
    )
    newest: dict[str, RolloutTarget] = {}
    for target in session.scalars(query):
        newest.setdefault(target.slot, target)
    moved = {}
    for slot, target in newest.items():
        mark = plan.follow(_to_target(target), device_report(device, slot), now)
        if mark is not None:
            moved[target.rollout] = mark.state != target.state and mark.state in plan.SETTLED
            mark_target(target, mark)
    session.flush()
    return moved
