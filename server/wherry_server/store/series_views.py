"""Telemetry over time: evenly spaced steps, histograms merged by addition, percentiles read from the sums."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Row, Select, func, select
from sqlalchemy.orm import Session

from wherry.api.telemetry import HostSeries, TelemetrySeries, VersionSeries
from wherry.errors import InputError
from wherry_server.domain.histogram import merge, percentile
from wherry_server.domain.steps import HOST_BUCKET_SECONDS, HOUR, MINUTE, TEN_MINUTES, Steps, choose_steps
from wherry_server.store.schema import Deployment, HostUsage, ModelUsage, SlotUsage

MAX_POINTS = 400
MAX_VERSIONS = 12
"""Series of an answer: those with the most requests."""
MAX_SWAPS = 100
_HOTTEST = 1000.0
_SHORT = timedelta(hours=6)
_HOST_BUCKET = timedelta(seconds=HOST_BUCKET_SECONDS)


@dataclass(frozen=True, slots=True)
class SeriesFilter:
    """What to show: all conditions given must hold. Host numbers are of one device."""

    device: str | None = None
    model: str | None = None
    slot: str | None = None


@dataclass(slots=True)
class _Step:
    requests: int = 0
    failures: int = 0
    latency: list[int] = field(default_factory=list)
    memory_sum: int = 0
    memory_samples: int = 0


def telemetry_series(
    session: Session, wanted: SeriesFilter, since: datetime, until: datetime, points: int = 120
) -> TelemetrySeries:
    """How releases answered over a window, and how one device fared.

    Args:
        session: where to read.
        wanted: which device, model and slot.
        since: the window's beginning; the window is widened to whole steps.
        until: its end.
        points: at most so many steps.

    Raises:
        InputError: the window is empty, or too many points are asked for.
    """
    if since >= until:
        raise InputError("parameter since", "is not before until", "Ask for a window with a beginning and an end")
    if not 2 <= points <= MAX_POINTS:
        raise InputError("parameter points", f"is not from 2 to {MAX_POINTS}")
    steps = choose_steps(since, until, points, _least_step(session, wanted, since))
    rows = session.execute(_of_device(wanted, steps) if wanted.device else _of_fleet(wanted, steps))
    return TelemetrySeries(
        times=steps.times,
        step=steps.seconds,
        versions=_versions(rows, steps),
        host=_host(session, wanted.device, steps) if wanted.device else None,
        swaps=_swaps(session, wanted, steps),
    )


def usage_step(since: datetime, until: datetime) -> int:
    """The rollup to read for a sum over a window: minutes of a short one, tens of them of a long one."""
    return MINUTE if until - since <= _SHORT else TEN_MINUTES


def _least_step(session: Session, wanted: SeriesFilter, since: datetime) -> int:
    """Where the window begins before what is kept by the minute: ten of them, and an hour for a single device."""
    minute, ten = (
        session.scalar(select(func.min(ModelUsage.bucket)).where(ModelUsage.step == step))
        for step in (MINUTE, TEN_MINUTES)
    )
    if minute is None or ten is None or minute - ten < timedelta(seconds=TEN_MINUTES):
        return MINUTE
    if since >= minute:
        return MINUTE
    return HOUR if wanted.device else TEN_MINUTES


def _of_device(wanted: SeriesFilter, steps: Steps) -> Select[*tuple[Any, ...]]:
    columns = (SlotUsage.model, SlotUsage.version, SlotUsage.counter, SlotUsage.bucket, SlotUsage.requests)
    query = select(*columns, SlotUsage.failures, SlotUsage.latency, SlotUsage.memory_bytes, 1).where(
        SlotUsage.device == wanted.device, SlotUsage.bucket >= steps.first, SlotUsage.bucket < steps.last
    )
    if wanted.model is not None:
        query = query.where(SlotUsage.model == wanted.model)
    return query if wanted.slot is None else query.where(SlotUsage.slot == wanted.slot)


def _of_fleet(wanted: SeriesFilter, steps: Steps) -> Select[*tuple[Any, ...]]:
    columns = (ModelUsage.model, ModelUsage.version, ModelUsage.counter, ModelUsage.bucket, ModelUsage.requests)
    query = select(
        *columns, ModelUsage.failures, ModelUsage.latency, ModelUsage.memory_sum, ModelUsage.memory_samples
    ).where(ModelUsage.step == steps.grain, ModelUsage.bucket >= steps.first, ModelUsage.bucket < steps.last)
    if wanted.model is not None:
        query = query.where(ModelUsage.model == wanted.model)
    return query if wanted.slot is None else query.where(ModelUsage.slot == wanted.slot)


def _versions(rows: Iterable[Row[*tuple[Any, ...]]], steps: Steps) -> list[VersionSeries]:
    found: dict[tuple[str, str], dict[int, _Step]] = {}
    counters: dict[tuple[str, str], int] = {}
    for model, version, counter, bucket, requests, failures, latency, memory, samples in rows:
        key = (model, version)
        counters[key] = max(counter, counters.get(key, 0))
        step = found.setdefault(key, {}).setdefault(steps.index(bucket), _Step())
        step.requests += requests
        step.failures += failures
        if latency != "[]":
            step.latency = merge(step.latency, json.loads(latency))
        if memory is not None:
            step.memory_sum += memory
            step.memory_samples += samples
    series = [_version(key, counters[key], found[key], len(steps.times)) for key in found]
    series.sort(key=lambda one: -sum(one.requests))
    return sorted(series[:MAX_VERSIONS], key=lambda one: (one.model, one.counter, one.version))


def _version(key: tuple[str, str], counter: int, found: dict[int, _Step], count: int) -> VersionSeries:
    steps = [found.get(index, _Step()) for index in range(count)]
    return VersionSeries(
        model=key[0],
        version=key[1],
        counter=counter,
        requests=[step.requests for step in steps],
        failures=[step.failures for step in steps],
        p50_us=[percentile(step.latency, 0.5) for step in steps],
        p95_us=[percentile(step.latency, 0.95) for step in steps],
        memory_bytes=[step.memory_sum // step.memory_samples if step.memory_samples else None for step in steps],
    )


def _host(session: Session, device: str, steps: Steps) -> HostSeries:
    query = select(HostUsage.bucket, HostUsage.sample).where(
        HostUsage.device == device, HostUsage.bucket >= steps.first, HostUsage.bucket < steps.last
    )
    sums: dict[int, list[tuple[float | None, float | None, float | None]]] = {}
    for bucket, text in session.execute(query):
        # A sample stands for its whole bucket, also when that spans several steps.
        covered = range(steps.index(bucket), steps.index(bucket + _HOST_BUCKET - timedelta(seconds=1)) + 1)
        for index in covered:
            sums.setdefault(index, []).append(_host_numbers(json.loads(text)))
    numbers = [list(zip(*sums[index], strict=True)) if index in sums else [(), (), ()] for index in range(steps.count)]
    return HostSeries(
        cpu_percent=[_mean(step[0]) for step in numbers],
        memory_percent=[_mean(step[1]) for step in numbers],
        temperature=[_mean(step[2]) for step in numbers],
    )


def _host_numbers(sample: dict[str, Any]) -> tuple[float | None, float | None, float | None]:
    total = sample["memory_total_bytes"]
    memory = 100 * sample["memory_used_bytes"] / total if total else None
    heat = max((value for value in sample.get("temperatures", {}).values() if value is not None), default=None)
    return _within(sample["cpu_percent"], 0, 100), _within(memory, 0, 100), _within(heat, -_HOTTEST, _HOTTEST)


def _within(value: float | None, least: float, most: float) -> float | None:
    """A device may say anything; a chart is to stay one."""
    return None if value is None else min(most, max(least, value))


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known), 1) if known else None


def _swaps(session: Session, wanted: SeriesFilter, steps: Steps) -> list[tuple[int, str]]:
    """When releases were committed; many of one version within a step are one swap."""
    query = select(Deployment.updated, Deployment.model, Deployment.version).where(
        Deployment.phase == "committed", Deployment.updated >= steps.first, Deployment.updated < steps.last
    )
    asked = {"device": wanted.device, "model": wanted.model, "slot": wanted.slot}
    query = query.filter_by(**{name: value for name, value in asked.items() if value is not None})
    return list(_first_of_each(session.execute(query.order_by(Deployment.updated)), steps))


def _first_of_each(rows: Iterable[Row[*tuple[Any, ...]]], steps: Steps) -> Iterator[tuple[int, str]]:
    seen: set[tuple[int, str]] = set()
    for updated, model, version in rows:
        key = (steps.index(updated), f"{model} {version}")
        if key not in seen and len(seen) < MAX_SWAPS:
            seen.add(key)
            yield int(updated.astimezone(UTC).timestamp()), key[1]
