"""Slot samples added up: by device and time, and over all devices. A batch is summed first, then stored row by row."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import select, tuple_
from sqlalchemy.orm import Session

from wherry.messages import SlotSample
from wherry.metadata import MAX_VERSION
from wherry_server.domain.histogram import BINS, merge
from wherry_server.domain.steps import HOUR, MINUTE, TEN_MINUTES
from wherry_server.store.schema import Image, ModelUsage, SlotUsage

FOREVER = 0
"""The step of sums that are never begun anew."""
_EPOCH = datetime.fromtimestamp(0, UTC)
_LONGEST = 86_400.0
Samples = Iterable[tuple[datetime, SlotSample]]


@dataclass(slots=True)
class _Sum:
    """What samples of one row come to."""

    first: datetime
    last: datetime
    version: str = ""
    counter: int = 0
    requests: int = 0
    failures: int = 0
    latency: list[int] = field(default_factory=list)
    latency_sum_us: int = 0
    memory_bytes: int | None = None
    memory_sum: int = 0
    memory_samples: int = 0


def floor(at: datetime, seconds: int) -> datetime:
    """The beginning of the bucket that a time is in."""
    return at - timedelta(seconds=at.timestamp() % seconds)


def bounded(number: int) -> int:
    """A count that fits the column, whatever a device says."""
    return min(max(number, 0), MAX_VERSION)


def add_samples(session: Session, device: str, samples: Samples) -> None:
    """Add a device's samples to its own sums and to those over all devices."""
    slots: dict[tuple[Any, ...], _Sum] = {}
    models: dict[tuple[Any, ...], _Sum] = {}
    for at, sample in samples:
        busy = sample.requests or sample.failures
        bucket = floor(at, MINUTE if busy else HOUR)
        _add(slots, (device, bucket, sample.slot, sample.model, bounded(sample.counter)), at, sample)
        _add(models, (FOREVER, _EPOCH, sample.model, sample.version, ""), at, sample)
        for step in (MINUTE, TEN_MINUTES):
            _add(models, (step, floor(at, step), sample.model, sample.version, sample.slot), at, sample)
    _store_slots(session, slots)
    signed = _signed(session, {(key[2], key[3]) for key in models})
    _store_models(session, {key: found for key, found in models.items() if (key[2], key[3]) in signed})


def _signed(session: Session, versions: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Those that the owner signed: a device cannot make sums of the fleet grow with names of its own."""
    query = select(Image.model, Image.version).where(tuple_(Image.model, Image.version).in_(sorted(versions)))
    return {(model, version) for model, version in session.execute(query.distinct())}


def _add(sums: dict[tuple[Any, ...], _Sum], key: tuple[Any, ...], at: datetime, sample: SlotSample) -> None:
    first = at - timedelta(seconds=min(max(sample.seconds, 0.0), _LONGEST))
    found = sums.setdefault(key, _Sum(first, at))
    found.first, found.last = min(found.first, first), max(found.last, at)
    found.version, found.counter = sample.version, max(found.counter, bounded(sample.counter))
    found.requests += bounded(sample.requests)
    found.failures += bounded(sample.failures)
    found.latency_sum_us += bounded(sample.latency_sum_us)
    if len(sample.latency) == BINS:
        found.latency = merge(found.latency, [bounded(count) for count in sample.latency])
    found.memory_bytes = None if sample.memory_bytes is None else bounded(sample.memory_bytes)
    if found.memory_bytes is not None:
        found.memory_sum += found.memory_bytes
        found.memory_samples += 1


def _rows(session: Session, table: type[SlotUsage | ModelUsage], keys: Iterable[tuple[Any, ...]]) -> dict[Any, Any]:
    """The rows that are there, by their key, held for update."""
    primary = [column for column in table.__table__.columns if column.primary_key]
    query = select(table).where(tuple_(*primary).in_(sorted(keys))).with_for_update()
    names = [column.name for column in primary]
    return {tuple(getattr(row, name) for name in names): row for row in session.scalars(query)}


def _store_slots(session: Session, sums: dict[tuple[Any, ...], _Sum]) -> None:
    rows = _rows(session, SlotUsage, sums)
    for key, found in sums.items():
        row = rows.get(key)
        if row is None:
            device, bucket, slot, model, counter = key
            row = SlotUsage(device=device, bucket=bucket, slot=slot, model=model, counter=counter)
            row.version, row.first, row.last = found.version, found.first, found.last
            session.add(_empty(row))
        row.first, row.last = min(row.first, found.first), max(row.last, found.last)
        row.memory_bytes = found.memory_bytes
        _add_counts(row, found)


def _store_models(session: Session, sums: dict[tuple[Any, ...], _Sum]) -> None:
    rows = _rows(session, ModelUsage, sums)
    for key, found in sums.items():
        row = rows.get(key)
        if row is None:
            step, bucket, model, version, slot = key
            row = ModelUsage(step=step, bucket=bucket, model=model, version=version, slot=slot)
            row.counter, row.memory_sum, row.memory_samples = 0, 0, 0
            session.add(_empty(row))
        row.counter = max(row.counter, found.counter)
        row.memory_sum = bounded(row.memory_sum + found.memory_sum)
        row.memory_samples += found.memory_samples
        _add_counts(row, found)


def _empty(row: SlotUsage | ModelUsage) -> SlotUsage | ModelUsage:
    row.requests, row.failures, row.latency_sum_us, row.latency = 0, 0, 0, "[]"
    return row


def _add_counts(row: SlotUsage | ModelUsage, found: _Sum) -> None:
    row.requests = bounded(row.requests + found.requests)
    row.failures = bounded(row.failures + found.failures)
    row.latency_sum_us = bounded(row.latency_sum_us + found.latency_sum_us)
    if any(found.latency):
        row.latency = json.dumps([bounded(count) for count in merge(json.loads(row.latency), found.latency)])
