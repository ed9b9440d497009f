"""Messages to devices. They are written with what they tell, in one transaction, and sent by the link afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from wherry.messages import PollNow, Retry, TelemetryAck
from wherry.topics import Kind, Topic
from wherry_server.services.context import Context
from wherry_server.store.schema import AssignmentRow, Device, Outbox


@dataclass(frozen=True, slots=True)
class OutMessage:
    """A message that waits for the link."""

    id: int
    topic: Topic
    payload: bytes


def put_assignment(session: Session, device: str, payload: bytes, now: datetime) -> None:
    """Queue a device's assignment. Only the newest matters, so one that still waits is replaced."""
    _put_newest(session, device, Kind.ASSIGN, payload, now)


def put_cleared(session: Session, device: str, kind: Kind, now: datetime) -> None:
    """Queue the empty message that makes the broker forget what it retains of a device."""
    _put_newest(session, device, kind, b"", now)


def _put_newest(session: Session, device: str, kind: Kind, payload: bytes, now: datetime) -> None:
    session.execute(delete(Outbox).where(Outbox.device == device, Outbox.kind == kind.value))
    session.add(Outbox(device=device, kind=kind.value, payload=payload, created=now))


def put_command(session: Session, device: str, command: TelemetryAck | PollNow | Retry, now: datetime) -> None:
    """Queue a command."""
    session.add(Outbox(device=device, kind=Kind.CMD.value, payload=command.to_bytes(), created=now))


def pending(context: Context, limit: int = 100) -> list[OutMessage]:
    """The oldest messages that wait."""
    with context.store.read() as session:
        rows = session.scalars(select(Outbox).order_by(Outbox.id).limit(limit))
        return [OutMessage(row.id, Topic(row.device, Kind(row.kind)), row.payload) for row in rows]


def sent(context: Context, ids: Sequence[int]) -> None:
    """The link has handed these to the broker."""
    if ids:
        with context.store.write() as session:
            session.execute(delete(Outbox).where(Outbox.id.in_(ids)))


def current_assignments(context: Context, after: str, limit: int) -> list[OutMessage]:
    """Assignments of all devices that are not revoked, a page by device id: a broker may have lost them."""
    query = (
        select(AssignmentRow)
        .join(Device, Device.id == AssignmentRow.device)
        .where(AssignmentRow.device > after, Device.revoked.is_(None))
        .order_by(AssignmentRow.device)
        .limit(limit)
    )
    with context.store.read() as session:
        return [OutMessage(0, Topic(row.device, Kind.ASSIGN), row.payload) for row in session.scalars(query)]
