"""Who did what, newest first."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from wherry.api.operators import AuditEntry, AuditPage
from wherry_server.store.schema import Audit


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which lines to show: all conditions given must hold.

    Attributes:
        action: this one, or all that begin with it and a dot: "rollout" finds "rollout.create".
    """

    action: str | None = None
    thing: str | None = None
    actor: str | None = None


def audit_page(session: Session, wanted: AuditFilter, after: int | None, limit: int) -> AuditPage:
    """The audit trail, newest first."""
    query = select(Audit).order_by(Audit.id.desc()).limit(limit + 1)
    if after is not None:
        query = query.where(Audit.id < after)
    if wanted.action is not None:
        # A range, not LIKE: it uses the index on every database. "/" comes after ".".
        below = (Audit.action > f"{wanted.action}.") & (Audit.action < f"{wanted.action}/")
        query = query.where(or_(Audit.action == wanted.action, below))
    if wanted.thing is not None:
        query = query.where(Audit.thing == wanted.thing)
    if wanted.actor is not None:
        query = query.where(Audit.actor == wanted.actor)
    rows = list(session.scalars(query))
    items = [_entry(row) for row in rows[:limit]]
    return AuditPage(items=items, next=str(items[-1].id) if len(rows) > limit else None)


def audit_actions(session: Session) -> list[str]:
    """Every action that the trail knows."""
    return list(session.scalars(select(Audit.action).distinct().order_by(Audit.action)))


def _entry(row: Audit) -> AuditEntry:
    return AuditEntry(id=row.id, at=row.at, actor=row.actor, action=row.action, thing=row.thing, detail=row.detail)
