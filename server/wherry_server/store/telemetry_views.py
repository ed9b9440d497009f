"""Telemetry as people and tools read it: windows added up, percentiles from histograms."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from wherry.api.telemetry import HostTelemetry, SlotTelemetry, TelemetrySummary
from wherry.messages import HostSample
from wherry_server.domain.histogram import merge, percentile
from wherry_server.store.documents import readable
from wherry_server.store.schema import HostUsage, RecordCount, SlotUsage

_HOUR = timedelta(hours=1)
_COLUMNS = (
    SlotUsage.device,
    SlotUsage.slot,
    SlotUsage.model,
    SlotUsage.version,
    SlotUsage.counter,
    SlotUsage.first,
    SlotUsage.last,
    SlotUsage.requests,
    SlotUsage.failures,
    SlotUsage.latency,
    SlotUsage.latency_sum_us,
)


def telemetry_summary(
    session: Session, since: datetime, devices: Sequence[str] | None = None, model: str | None = None
) -> TelemetrySummary:
    """What devices sent since a time. Buckets that the time cuts through count in whole.

    Args:
        session: where to read.
        since: beginning of the window.
        devices: only these; None for all.
        model: only slots of this model.
    """
    received, dropped = _record_counts(session, since, devices)
    return TelemetrySummary(
        slots=_slots(session, since, devices, model),
        hosts=_hosts(session, since, devices),
        received=received,
        dropped=dropped,
    )


def _slots(session: Session, since: datetime, devices: Sequence[str] | None, model: str | None) -> list[SlotTelemetry]:
    # Columns, not objects: a page of devices has some thousand rows.
    query = select(*_COLUMNS).where(SlotUsage.bucket > since - _HOUR, SlotUsage.last >= since)
    if devices is not None:
        query = query.where(SlotUsage.device.in_(devices))
    if model is not None:
        query = query.where(SlotUsage.model == model)
    groups: dict[tuple[str, str, str, int], list[Any]] = {}
    for row in session.execute(query.execution_options(yield_per=500)):
        groups.setdefault((row.device, row.slot, row.model, row.counter), []).append(row)
    return [_sum(groups[key]) for key in sorted(groups)]


def _sum(rows: Sequence[Any]) -> SlotTelemetry:
    latency: list[int] = []
    for row in rows:
        if row.latency != "[]":
            latency = merge(latency, json.loads(row.latency))
    found = SlotTelemetry(
        device=rows[0].device,
        slot=rows[0].slot,
        model=rows[0].model,
        version=rows[0].version,
        counter=rows[0].counter,
        first=min(row.first for row in rows),
        last=max(row.last for row in rows),
        requests=sum(row.requests for row in rows),
        failures=sum(row.failures for row in rows),
    )
    _fill_latency(found, latency, sum(row.latency_sum_us for row in rows))
    return found


def _fill_latency(found: SlotTelemetry, latency: Sequence[int], total_us: int) -> None:
    found.p50_us, found.p95_us, found.p99_us = (percentile(latency, part) for part in (0.5, 0.95, 0.99))
    found.mean_us = round(total_us / found.requests) if found.requests else None


def _hosts(session: Session, since: datetime, devices: Sequence[str] | None) -> list[HostTelemetry]:
    newest = select(HostUsage.device, func.max(HostUsage.bucket).label("bucket")).where(
        HostUsage.bucket > since - _HOUR
    )
    if devices is not None:
        newest = newest.where(HostUsage.device.in_(devices))
    latest = newest.group_by(HostUsage.device).subquery()
    query = (
        select(HostUsage)
        .join(latest, (HostUsage.device == latest.c.device) & (HostUsage.bucket == latest.c.bucket))
        .where(HostUsage.at >= since)
        .order_by(HostUsage.device)
    )
    found = ((row, readable(HostSample, row.sample)) for row in session.scalars(query))
    return [_host(row, sample) for row, sample in found if sample is not None]


def _host(row: HostUsage, sample: HostSample) -> HostTelemetry:
    return HostTelemetry.model_validate(sample.model_dump() | {"device": row.device, "at": row.at})


def _record_counts(
    session: Session, since: datetime, devices: Sequence[str] | None
) -> tuple[dict[str, int], dict[str, int]]:
    query = (
        select(RecordCount.type, func.sum(RecordCount.received), func.sum(RecordCount.dropped))
        .where(RecordCount.bucket > since - _HOUR)
        .group_by(RecordCount.type)
    )
    if devices is not None:
        query = query.where(RecordCount.device.in_(devices))
    received, dropped = {}, {}
    for kind, got, lost in session.execute(query):
        received.update({kind: int(got)} if got else {})
        dropped.update({kind: int(lost)} if lost else {})
    return received, dropped
