"""Telemetry in: deduplicated by (device, stream, sequence), added up, kept for a bounded time.

A device sends its oldest records first and keeps them until they are acknowledged. So whatever is at or below
the stored sequence of a stream is a duplicate, and a gap above it is what the device had to drop.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from sqlalchemy import delete
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
from wherry_server.domain.histogram import BINS, merge
from wherry_server.domain.steps import HOST_BUCKET_SECONDS, MINUTE, MINUTES_KEPT, TEN_MINUTES
from wherry_server.services.changes import TELEMETRY, device_topic
from wherry_server.services.context import Context
from wherry_server.services.reports import store_deployment
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

FOREVER = 0
"""The step of sums that are never begun anew."""
_EPOCH = datetime.fromtimestamp(0, UTC)
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
    for record in records:
        at, content = _believable(record.at, now, kept), record.record
        hour = floor(at, 3600)
        received[hour, content.type] += 1
        match content:
            case SlotSample():
                _add_slot(session, device, at, content)
                _add_model(session, at, content)
            case HostSample():
                _keep_host(session, device, at, content)
            case DeploymentEvent(deployment=deployment):
                if len(deployment.id) <= 100:
                    store_deployment(session, device, deployment)
            case DropNotice(dropped=counts):
                for kind, number in list(counts.items())[:16]:
                    dropped[hour, kind[:32]] += _bounded(number)
    for bucket, kind in sorted(received.keys() | dropped.keys()):
        _count(session, (device, bucket, kind), received[bucket, kind], dropped[bucket, kind])


def floor(at: datetime, seconds: int) -> datetime:
    """The beginning of the bucket that a time is in."""
    return at - timedelta(seconds=at.timestamp() % seconds)


def _believable(at: datetime, now: datetime, kept: timedelta) -> datetime:
    """A device's time, or ours when its clock cannot be right: no battery, not yet synchronised."""
    at = at if at.tzinfo else at.replace(tzinfo=now.tzinfo)
    return at.astimezone(now.tzinfo) if now - kept <= at <= now + _FUTURE else now


def _bounded(number: int) -> int:
    return min(max(number, 0), MAX_VERSION)


def _add_slot(session: Session, device: str, at: datetime, sample: SlotSample) -> None:
    busy = sample.requests or sample.failures
    bucket = floor(at, 60 if busy else 3600)
    key = (device, bucket, sample.slot, sample.model, _bounded(sample.counter))
    row = session.get(SlotUsage, key)
    first = at - timedelta(seconds=min(max(sample.seconds, 0.0), 86_400.0))
    if row is None:
        row = SlotUsage(
            device=device,
            bucket=bucket,
            slot=sample.slot,
            model=sample.model,
            counter=_bounded(sample.counter),
            version=sample.version,
            first=first,
            last=at,
            requests=0,
            failures=0,
            latency="[]",
            latency_sum_us=0,
        )
        session.add(row)
    row.first, row.last = min(row.first, first), max(row.last, at)
    _add_counts(row, sample)
    row.memory_bytes = sample.memory_bytes if sample.memory_bytes is None else _bounded(sample.memory_bytes)


def _add_model(session: Session, at: datetime, sample: SlotSample) -> None:
    """Add a sample to the sums over all devices."""
    for step in (FOREVER, MINUTE, TEN_MINUTES):
        bucket = floor(at, step) if step else _EPOCH
        key = (step, bucket, sample.model, sample.version, sample.slot)
        row = session.get(ModelUsage, key, with_for_update=True)
        if row is None:
            row = ModelUsage(
                step=step,
                bucket=bucket,
                model=sample.model,
                version=sample.version,
                slot=sample.slot,
                counter=0,
                requests=0,
                failures=0,
                latency="[]",
                latency_sum_us=0,
                memory_sum=0,
                memory_samples=0,
            )
            session.add(row)
        row.counter = max(row.counter, _bounded(sample.counter))
        _add_counts(row, sample)
        if sample.memory_bytes is not None:
            row.memory_sum = _bounded(row.memory_sum + _bounded(sample.memory_bytes))
            row.memory_samples += 1


def _add_counts(row: SlotUsage | ModelUsage, sample: SlotSample) -> None:
    row.requests = _bounded(row.requests + _bounded(sample.requests))
    row.failures = _bounded(row.failures + _bounded(sample.failures))
    row.latency_sum_us = _bounded(row.latency_sum_us + _bounded(sample.latency_sum_us))
    if len(sample.latency) == BINS and any(sample.latency):
        row.latency = json.dumps(merge(json.loads(row.latency), [_bounded(count) for count in sample.latency]))


def _keep_host(session: Session, device: str, at: datetime, sample: HostSample) -> None:
    bucket = floor(at, HOST_BUCKET_SECONDS)
    row = session.get(HostUsage, (device, bucket))
    if row is None:
        row = HostUsage(device=device, bucket=bucket, at=at, sample="")
        session.add(row)
    if row.sample == "" or row.at <= at:
        row.at, row.sample = at, sample.model_dump_json()


def _count(session: Session, key: tuple[str, datetime, str], received: int, dropped: int) -> None:
    row = session.get(RecordCount, key)
    if row is None:
        row = RecordCount(device=key[0], bucket=key[1], type=key[2], received=0, dropped=0)
        session.add(row)
    total = session.get(RecordTotal, key[2], with_for_update=True)
    if total is None:
        total = RecordTotal(type=key[2], received=0, dropped=0)
        session.add(total)
    for sums in (row, total):
        sums.received += received
        sums.dropped = _bounded(sums.dropped + dropped)
