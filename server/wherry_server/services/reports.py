"""What devices say of themselves: state and presence."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from wherry.errors import MalformedMessage
from wherry.messages import DeploymentReport, Presence, SlotReport, StateReport
from wherry.metadata import MAX_VERSION
from wherry_server.domain.twin import ReportMark, is_news
from wherry_server.services.assignments import update_drift
from wherry_server.services.changes import FLEET, ROLLOUTS, device_topic, rollout_topic
from wherry_server.services.context import Context
from wherry_server.services.follow import follow_device
from wherry_server.services.rollouts import advance, needs_attention
from wherry_server.store.documents import write, write_slots
from wherry_server.store.schema import Deployment, Device, ServingSlot

MAX_SLOTS = 64
MAX_FACTS = 64
DEPLOYMENTS_KEPT = 500
"""Of one device in the history, however many it tells of."""
_FUTURE = timedelta(minutes=10)


def ingest_state(context: Context, report: StateReport) -> bool:
    """Take over a device's reported state; whether it was news. Rollouts move on with it.

    Raises:
        MalformedMessage: a number is out of range, or there are too many slots.
    """
    _check(report)
    now = context.clock()
    with context.store.write() as session:
        device = session.get(Device, report.device, with_for_update=True)
        if device is None or device.revoked is not None:
            return False
        if not is_news(ReportMark(device.report_stream, device.report_number), report):
            return False
        _take_over(session, device, report, now)
        moved = follow_device(session, device, now)
        context.announce(session, device_topic(device.id), FLEET, *([ROLLOUTS] if moved else []))
        context.announce(session, *map(rollout_topic, moved))
        due = [rollout for rollout, settled in moved.items() if settled and needs_attention(session, rollout)]
    for rollout in due:
        advance(context, rollout)
    return True


def ingest_presence(context: Context, presence: Presence) -> None:
    """A device came or went."""
    now = context.clock()
    with context.store.write() as session:
        device = session.get(Device, presence.device, with_for_update=True)
        if device is not None and device.revoked is None:
            if device.online != presence.online:
                context.announce(session, device_topic(device.id), FLEET)
            device.online = presence.online
            device.last_seen = now if presence.online else device.last_seen or now


def mark_stale(context: Context) -> int:
    """Count devices as offline that have been silent for too long; how many."""
    oldest = context.clock() - timedelta(seconds=context.config.presence_stale_seconds)
    with context.store.write() as session:
        changed = session.execute(
            update(Device)
            .where(Device.online, Device.last_seen < oldest)
            .values(online=False)
            .returning(Device.id)
            .execution_options(synchronize_session=False)
        )
        ids = changed.scalars().all()
        context.announce(session, *map(device_topic, ids), *([FLEET] if ids else []))
        return len(ids)


def store_deployment(session: Session, device: str, report: DeploymentReport, now: datetime) -> None:
    """Keep a deployment in the history, as it stood last. By our time where the device's is yet to come."""
    row, updated = session.get(Deployment, (device, report.id)), report.updated
    updated = updated if updated <= now + _FUTURE else now
    if row is None:
        row = Deployment(device=device, id=report.id, updated=updated, phase="", report="")
        row.slot, row.model, row.version = report.slot, report.release.model, report.release.version
        session.add(row)
        _forget_most(session, device)
    if row.report == "" or row.updated <= updated:
        row.updated, row.phase, row.report = updated, report.phase, write(report) or ""


def _forget_most(session: Session, device: str) -> None:
    """Make room for one more deployment of a device; whatever it tells, its history is bounded."""
    order = (Deployment.updated.desc(), Deployment.id.desc())
    with session.no_autoflush:  # the new one is not among them yet
        query = select(Deployment.id).where(Deployment.device == device).order_by(*order).offset(DEPLOYMENTS_KEPT - 1)
        old = list(session.scalars(query))
        if old:
            session.execute(delete(Deployment).where(Deployment.device == device, Deployment.id.in_(old)))


def _bounded_facts(facts: Mapping[str, str]) -> dict[str, str]:
    return {name[:64]: text[:200] for name, text in sorted(facts.items())[:MAX_FACTS]}


def _keep_serving(session: Session, device: Device, slots: Sequence[SlotReport], now: datetime) -> None:
    """Rows of what each slot serves; one is written only when it changed."""
    held = {row.slot: row for row in session.scalars(select(ServingSlot).where(ServingSlot.device == device.id))}
    for slot in slots:
        release, row = slot.serving, held.pop(slot.slot, None)
        if release is None:
            held.update({slot.slot: row} if row else {})
            continue
        if row is None:
            row = ServingSlot(device=device.id, slot=slot.slot, digest="")
            session.add(row)
        if row.digest != release.digest or slot.since is not None:
            row.since = slot.since or now
        row.model, row.version, row.counter = release.model, release.version, release.counter
        row.digest, row.profile, row.healthy = release.digest, device.profile, slot.healthy
    for gone in held.values():
        session.delete(gone)


def _check(report: StateReport) -> None:
    numbers = [report.number, report.sequence, report.refused]
    if any(not -1 <= number <= MAX_VERSION for number in numbers) or len(report.slots) > MAX_SLOTS:
        raise MalformedMessage(f"state of {report.device}", "holds a number out of range or too many slots")
    deployments = [slot.deployment for slot in report.slots if slot.deployment]
    if len(report.stream) > 100 or any(len(deployment.id) > 100 for deployment in deployments):
        raise MalformedMessage(f"state of {report.device}", "holds an id that is too long")


def _take_over(session: Session, device: Device, report: StateReport, now: datetime) -> None:
    device.report_stream, device.report_number, device.report_received = report.stream, report.number, now
    device.reported_sequence = report.sequence
    device.agent_version = report.agent_version[:64]
    device.slots = write_slots(report.slots)
    device.rejected = json.dumps(report.rejected[:1000])
    device.lock, device.problem = write(report.lock), write(report.problem)
    device.refused = report.refused
    device.understands = json.dumps([name[:32] for name in report.understands[:32]])
    device.facts = json.dumps(_bounded_facts(report.facts))
    device.online, device.last_seen = True, now
    update_drift(session, device, report.slots)
    _keep_serving(session, device, report.slots, now)
    for slot in report.slots:
        if slot.deployment is not None:
            store_deployment(session, device.id, slot.deployment, now)
