"""Rollout targets that another decision ends: a newer rollout, an emptied slot, a revoked device."""

from __future__ import annotations

from sqlalchemy import ColumnElement, select, update
from sqlalchemy.orm import Session, aliased

from wherry.errors import Conflict
from wherry.messages import Problem
from wherry_server.store.documents import read_parts, write
from wherry_server.store.schema import RolloutRow, RolloutTarget

UNSETTLED = ("pending", "assigned", "running")


def settle_slot(session: Session, device: str, slot: str, thing: str, reason: str) -> None:
    """End every open target of one slot of a device as superseded; slots that go together with it end with it."""
    rollouts = select(RolloutTarget.rollout).where(RolloutTarget.device == device, RolloutTarget.slot == slot)
    where = (RolloutTarget.device == device, RolloutTarget.rollout.in_(rollouts))
    _settle(session, "superseded", thing, reason, *where)


def supersede(session: Session, row: RolloutRow) -> None:
    """End what older rollouts still wanted of the same slots of the devices that this one goes to."""
    ours = select(RolloutTarget.device).where(RolloutTarget.rollout == row.id, RolloutTarget.state == "pending")
    slots = [part.slot for part in read_parts(row.together)] or [row.slot]
    other = aliased(RolloutTarget)
    taken = select(other.slot).where(
        other.rollout == RolloutTarget.rollout, other.device == RolloutTarget.device, other.slot.in_(slots)
    )
    problem = Problem(
        code="conflict",
        thing=f"slot {' and '.join(slots)}",
        reason=f"rollout {row.id} ({row.model} {row.version}{' and others' if len(slots) > 1 else ''}) took over",
        fix=f"Look at rollout {row.id}",
    )
    session.execute(
        update(RolloutTarget)
        .where(
            RolloutTarget.rollout != row.id,
            RolloutTarget.state.in_(UNSETTLED),
            RolloutTarget.device.in_(ours),
            taken.exists(),
        )
        .values(state="superseded", own="superseded", problem=write(problem))
        .execution_options(synchronize_session=False)
    )


def settle_all(session: Session, device: str, state: str, thing: str, reason: str) -> None:
    """End every open target of a device."""
    _settle(session, state, thing, reason, RolloutTarget.device == device)


def _settle(session: Session, state: str, thing: str, reason: str, *where: ColumnElement[bool]) -> None:
    problem = Problem.model_validate(Conflict(thing, reason, "Create a new rollout").as_dict())
    session.execute(
        update(RolloutTarget)
        .where(RolloutTarget.state.in_(UNSETTLED), *where)
        .values(state=state, own=state, problem=write(problem))
        .execution_options(synchronize_session="fetch")
    )


def has_open_targets(session: Session, rollout: int) -> bool:
    """Whether something is still expected of any device of a rollout."""
    query = select(RolloutTarget.device).where(RolloutTarget.rollout == rollout, RolloutTarget.state.in_(UNSETTLED))
    return session.scalar(query.limit(1)) is not None
