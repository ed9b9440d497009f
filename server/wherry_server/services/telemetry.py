"""Telemetry in: deduplicated by (device, stream, sequence), added up, kept for a bounded time.

A device sends its oldest records first and keeps them until they are acknowledged. So whatever is at or below
the stored sequence of a stream is a duplicate, and a gap above it is what the device had to drop.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from operator import itemgetter

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from wherry.errors import MalformedMessage
from wherry.messages import (
    DeploymentEvent,
    DropNotice,
    HostSample,
    SlotSample,
    TelemetryAck,
    TelemetryBatch,
    TelemetryRecord,
)
from wherry.metadata import MAX_VERSION
from wherry_server.domain.steps import HOST_BUCKET_SECONDS, HOUR, MINUTE, MINUTES_KEPT, TEN_MINUTES
from wherry_server.services.changes import TELEMETRY, device_topic
from wherry_server.services.context import Context
from wherry_server.services.reports import store_deployment
from wherry_server.services.usage import add_samples, bounded, floor
from wherry_server.store.schema import (
    Audit,
    Deployment,
    Device,
    HostUsage,
    ModelUsage,
    RecordCount,
    RecordTotal,
    SlotUsage,
    TelemetryStream,
)

_TYPES = frozenset({"slot", "host", "deployment", "drop"})
_FUTURE = timedelta(minutes=10)


def ingest(context: Context, batch: TelemetryBatch) -> TelemetryAck | None:
    """Store what is new of a batch. Returns the acknowledgement to send, None for a stranger's batch.

    Raises:
        MalformedMessage: numbers out of range or out of order.
    """
    _check(batch)
    now = context.clock()
    with context.store.write() as session:
        device = session.get(Device, batch.device, with_for_update=True)
        if device is None or device.revoked is not None:
            return None
        device.online, device.last_seen = True, now
        stream = session.get(TelemetryStream, (batch.device, batch.stream))
        if stream is None:
            stream = TelemetryStream(device=batch.device, stream=batch.stream, sequence=-1, updated=now)
            session.add(stream)
        fresh = [record for record in batch.records if record.sequence > stream.sequence]
        _store(session, batch.device, fresh, now, timedelta(days=context.config.telemetry_days))
        if fresh:
            stream.sequence, stream.updated = fresh[-1].sequence, now
            context.announce(session, device_topic(batch.device), TELEMETRY)
        return TelemetryAck(stream=batch.stream, sequence=stream.sequence)


def forget_old(context: Context) -> None:
    """Delete what is older than the settings say. Bounded growth, whatever devices send."""
    now, config = context.clock(), context.config
    oldest, history = now - timedelta(days=config.telemetry_days), now - timedelta(days=config.history_days)
    conditions = (
        (SlotUsage, SlotUsage.bucket < oldest),
        (ModelUsage, (ModelUsage.step == TEN_MINUTES) & (ModelUsage.bucket < oldest)),
        (ModelUsage, (ModelUsage.step == MINUTE) & (ModelUsage.bucket < now - MINUTES_KEPT)),
        (HostUsage, HostUsage.bucket < oldest),
        (RecordCount, RecordCount.bucket < oldest),
        (TelemetryStream, TelemetryStream.updated < history),
        (Deployment, Deployment.updated < history),
        (Audit, Audit.at < history),
    )
    for table, condition in conditions:
        with context.store.write() as session:
            session.execute(delete(table).where(condition).execution_options(synchronize_session=False))


def _check(batch: TelemetryBatch) -> None:
    numbers = [record.sequence for record in batch.records]
    if not numbers or len(batch.stream) > 100:
        raise MalformedMessage(f"telemetry of {batch.device}", "holds no records, or a stream name that is too long")
    if any(not 0 <= number <= MAX_VERSION for number in numbers):
        raise MalformedMessage(f"telemetry of {batch.device}", "holds a sequence out of range")
    if any(later <= earlier for earlier, later in pairwise(numbers)):
        raise MalformedMessage(f"telemetry of {batch.device}", "holds records out of order")


def _store(session: Session, device: str, records: Sequence[TelemetryRecord], now: datetime, kept: timedelta) -> None:
    received: Counter[tuple[datetime, str]] = Counter()
    dropped: Counter[tuple[datetime, str]] = Counter()
    samples: list[tuple[datetime, SlotSample]] = []
    hosts: dict[datetime, tuple[datetime, HostSample]] = {}
    for record in records:
        at, content = _believable(record.at, now, kept), record.record
        hour = floor(at, HOUR)
        received[hour, content.type] += 1
        match content:
            case SlotSample():
                samples.append((at, content))
            case HostSample():
                bucket = floor(at, HOST_BUCKET_SECONDS)
                hosts[bucket] = max(hosts.get(bucket, (at, content)), (at, content), key=itemgetter(0))
            case DeploymentEvent(deployment=deployment):
                if len(deployment.id) <= 100:
                    store_deployment(session, device, deployment, now)
            case DropNotice(dropped=counts):
                for kind, number in list(counts.items())[:16]:
                    dropped[hour, kind if kind in _TYPES else "other"] += bounded(number)
    # Every row below is asked for once, so nothing has to be written before the next question.
    with session.no_autoflush:
        if samples:
            add_samples(session, device, samples)
        for bucket, (at, sample) in hosts.items():
            _keep_host(session, device, bucket, at, sample)
        _count(session, device, received, dropped)


def _believable(at: datetime, now: datetime, kept: timedelta) -> datetime:
    """A device's time, or ours when its clock cannot be right: no battery, not yet synchronised."""
    at = at if at.tzinfo else at.replace(tzinfo=now.tzinfo)
    return at.astimezone(now.tzinfo) if now - kept <= at <= now + _FUTURE else now


def _keep_host(session: Session, device: str, bucket: datetime, at: datetime, sample: HostSample) -> None:
    row = session.get(HostUsage, (device, bucket))
    if row is None:
        row = HostUsage(device=device, bucket=bucket, at=at, sample="")
        session.add(row)
    if row.sample == "" or row.at <= at:
        row.at, row.sample = at, sample.model_dump_json()


def _count(
    session: Session, device: str, received: Counter[tuple[datetime, str]], dropped: Counter[tuple[datetime, str]]
) -> None:
    totals: dict[str, tuple[int, int]] = {}
    for bucket, kind in sorted(received.keys() | dropped.keys()):
        got, lost = received[bucket, kind], dropped[bucket, kind]
        row = session.get(RecordCount, (device, bucket, kind))
        if row is None:
            row = RecordCount(device=device, bucket=bucket, type=kind, received=0, dropped=0)
            session.add(row)
        row.received, row.dropped = row.received + got, bounded(row.dropped + lost)
        before = totals.get(kind, (0, 0))
        totals[kind] = before[0] + got, before[1] + lost
    _add_totals(session, totals)


def _add_totals(session: Session, totals: Mapping[str, tuple[int, int]]) -> None:
    query = select(RecordTotal).where(RecordTotal.type.in_(sorted(totals))).with_for_update()
    rows = {row.type: row for row in session.scalars(query)}
    for kind, (received, dropped) in totals.items():
        row = rows.get(kind)
        if row is None:
            row = RecordTotal(type=kind, received=0, dropped=0)
            session.add(row)
        row.received, row.dropped = row.received + received, bounded(row.dropped + dropped)
