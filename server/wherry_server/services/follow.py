"""From a device's report to its targets in rollouts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from wherry_server.domain import rollout as plan
from wherry_server.domain.parts import follow_all
from wherry_server.store.documents import read_problem, read_slots, write
from wherry_server.store.schema import Device, RolloutRow, RolloutTarget

_NEVER = datetime.fromtimestamp(0, UTC)
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


def _to_target(row: RolloutTarget) -> plan.Target:
    """A slot of a device in a rollout, as the domain sees it."""
    problem = read_problem(row.problem)
    return plan.Target(row.device, row.digest, row.own, row.sequence, row.assigned, problem)  # type: ignore[arg-type]


def follow_rows(rows: Sequence[RolloutTarget], device: Device, now: datetime) -> bool | None:
    """Write down what a device's report says about its slots in one rollout; whether it settled, None for no news."""
    parts = {row.slot: _to_target(row) for row in rows}
    moved = follow_all(parts, {slot: device_report(device, slot) for slot in parts}, now)
    if moved is None:
        return None
    settled = moved.state != rows[0].state and moved.state in plan.SETTLED
    for row in rows:
        row.state = moved.state
        mark = moved.marks.get(row.slot)
        if mark:
            row.own, row.problem = mark.state, write(mark.problem)
            row.deployment = write(mark.deployment) or row.deployment
    return settled


def follow_device(session: Session, device: Device, now: datetime) -> dict[int, bool]:
    """Update a device's newest target of each slot; the rollouts where one moved on: id to whether it settled."""
    query = (
        select(RolloutTarget)
        .join(RolloutRow, RolloutRow.id == RolloutTarget.rollout)
        .where(RolloutTarget.device == device.id, _FOLLOWED | _MAY_RESUME)
        .order_by(RolloutTarget.sequence.desc(), RolloutTarget.rollout.desc(), RolloutTarget.position)
    )
    rollouts: dict[int, list[RolloutTarget]] = {}
    for target in session.scalars(query):
        rollouts.setdefault(target.rollout, []).append(target)
    moved: dict[int, bool] = {}
    seen: set[str] = set()
    for rollout, rows in rollouts.items():
        slots = {row.slot for row in rows}
        settled = follow_rows(rows, device, now) if slots.isdisjoint(seen) else None
        seen |= slots
        if settled is not None:
            moved[rollout] = settled
    session.flush()
    return moved
