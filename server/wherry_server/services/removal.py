"""A device that is gone for good: it leaves the fleet; what must outlive it stays."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from wherry.errors import Conflict
from wherry.topics import Kind
from wherry_server.services import outbox
from wherry_server.services.changes import FLEET, ROLLOUTS, TELEMETRY, device_topic, rollout_topic
from wherry_server.services.context import Context
from wherry_server.services.enrolment import refresh_acl
from wherry_server.services.rollouts import advance
from wherry_server.services.targets import UNSETTLED
from wherry_server.store.documents import read_slots
from wherry_server.store.missing import no_device
from wherry_server.store.schema import (
    FIRST,
    Device,
    DeviceKey,
    EnrolToken,
    Outbox,
    RemovedDevice,
    RolloutRow,
    RolloutTarget,
)

_RETAINED = tuple(kind for kind in Kind if kind.retained)


def remove(context: Context, device: str, force: bool = False) -> None:
    """Take a device out of the fleet: keys, certificate, tokens, twin, history, and what the broker retains of it.

    The audit trail keeps its past. The broker denies its certificate for as long as it could be used, and its
    sequence goes on where it stood should it ever be enrolled again.

    Raises:
        NotFound: no such device.
        Conflict: it is online, and nobody said `force`.
        StoreError: the broker's acl cannot be written; the device is removed all the same.
    """
    now = context.clock()
    with context.store.write() as session:
        row = session.get(Device, device, with_for_update=True)
        if row is None:
            raise no_device(session, device)
        if row.online and not force:
            fix = "Run `wherry-agent uninstall` on it first; or `wherry device remove --force`: it serves on, unseen"
            raise Conflict(f"device {device}", "is online", fix)
        left = _rollouts_that_wait(session, device)
        context.record(session, "device.remove", device, _last_words(row))
        _keep_what_outlives(session, row, now)
        _forget(session, device, now)
        context.announce(session, device_topic(device), FLEET, ROLLOUTS, TELEMETRY, *map(rollout_topic, left))
    try:
        refresh_acl(context)
    finally:  # it is gone, whatever becomes of the acl
        context.wake()
        for rollout in left:
            advance(context, rollout)


def _rollouts_that_wait(session: Session, device: str) -> list[int]:
    """Running rollouts that expect something of a device: they may end without it."""
    query = select(RolloutTarget.rollout).join(RolloutRow, RolloutRow.id == RolloutTarget.rollout)
    query = query.where(RolloutTarget.device == device, RolloutTarget.state.in_(UNSETTLED), FIRST)
    return list(session.scalars(query.where(RolloutRow.state == "running").order_by(RolloutTarget.rollout)))


def _last_words(row: Device) -> str:
    """What the trail tells of a device that has no page any more."""
    served = [
        f"{slot.slot}: {slot.serving.model} {slot.serving.version}" for slot in read_slots(row.slots) if slot.serving
    ]
    seen = f"last seen {row.last_seen:%Y-%m-%d %H:%M} UTC" if row.last_seen else "never seen"
    forced = ["online, removed by force"] if row.online else []
    return "; ".join([row.profile, f"enrolled {row.enrolled:%Y-%m-%d}", seen, *served, *forced])


def _keep_what_outlives(session: Session, row: Device, now: datetime) -> None:
    expires = session.scalar(select(func.max(DeviceKey.expires)).where(DeviceKey.device == row.id))
    kept = RemovedDevice(id=row.id, removed=now, sequence=row.sequence, denied_until=expires or now)
    session.merge(kept)


def _forget(session: Session, device: str, now: datetime) -> None:
    """The database drops whatever belongs to the row of a device together with it."""
    for table in (EnrolToken, Outbox):
        session.execute(delete(table).where(table.device == device))
    session.execute(delete(Device).where(Device.id == device).execution_options(synchronize_session=False))
    for kind in _RETAINED:
        outbox.put_cleared(session, device, kind, now)
