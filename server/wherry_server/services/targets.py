"""Rollout targets that another decision ends: a newer rollout, an emptied slot, a revoked device."""

from __future__ import annotations

from sqlalchemy import ColumnElement, select, update
from sqlalchemy.orm import Session

from wherry.errors import Conflict
from wherry.messages import Problem
from wherry_server.store.documents import write
from wherry_server.store.schema import RolloutTarget

UNSETTLED = ("pending", "assigned", "running")


def settle_slot(session: Session, device: str, slot: str, thing: str, reason: str) -> None:
    """End every open target of one slot of a device as superseded."""
    _settle(session, "superseded", thing, reason, RolloutTarget.device == device, RolloutTarget.slot == slot)


def settle_all(session: Session, device: str, state: str, thing: str, reason: str) -> None:
    """End every open target of a device."""
    _settle(session, state, thing, reason, RolloutTarget.device == device)


def _settle(session: Session, state: str, thing: str, reason: str, *where: ColumnElement[bool]) -> None:
    problem = Problem.model_validate(Conflict(thing, reason, "Create a new rollout").as_dict())
    session.execute(
        update(RolloutTarget)
        .where(RolloutTarget.state.in_(UNSETTLED), *where)
        .values(state=state, problem=write(problem))
        .execution_options(synchronize_session="fetch")
    )


def has_open_targets(session: Session, rollout: int) -> bool:
    """Whether something is still expected of any device of a rollout."""
    query = select(RolloutTarget.device).where(RolloutTarget.rollout == rollout, RolloutTarget.state.in_(UNSETTLED))
    return session.scalar(query.limit(1)) is not None
