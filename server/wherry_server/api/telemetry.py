"""Routes of telemetry: sums over a window, and series over time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Query

from wherry.api.telemetry import TelemetrySeries, TelemetrySummary
from wherry.errors import InputError
from wherry.identity import DeviceId, ModelName, SlotName
from wherry_server.api.auth import ContextDep, NeedsOperator
from wherry_server.store.series_views import MAX_POINTS, SeriesFilter, telemetry_series
from wherry_server.store.telemetry_views import telemetry_summary

router = APIRouter(prefix="/v1", tags=["telemetry"], dependencies=[NeedsOperator])
_DEFAULT_WINDOW = timedelta(hours=1)
_LONGEST_WINDOW = timedelta(days=3660)
_YEARS = (1971, 9000)
_Device = Annotated[DeviceId | None, Query()]
_Model = Annotated[ModelName | None, Query()]
_Time = Annotated[datetime | None, Query()]


@router.get("/telemetry", summary="How models infer")
def get_telemetry(
    context: ContextDep,
    device: _Device = None,
    model: _Model = None,
    since: Annotated[datetime | None, Query(description="Default: an hour ago")] = None,
) -> TelemetrySummary:
    """Requests, failures and latency percentiles by device, slot and version; the newest host samples."""
    start = _instant(since, context.clock() - _DEFAULT_WINDOW)
    with context.store.read() as session:
        return telemetry_summary(session, start, [device] if device else None, model)


@router.get("/telemetry/series", summary="How models infer, over time")
def get_series(
    context: ContextDep,
    device: _Device = None,
    model: _Model = None,
    slot: Annotated[SlotName | None, Query()] = None,
    since: Annotated[datetime | None, Query(description="Default: an hour before `until`")] = None,
    until: Annotated[datetime | None, Query(description="Default: now")] = None,
    points: Annotated[int, Query(ge=2, le=MAX_POINTS, description="At most so many steps")] = 120,
) -> TelemetrySeries:
    """By version, in steps of whole minutes or hours; with a device, also its own numbers."""
    end = _instant(until, context.clock())
    start = _instant(since, end - _DEFAULT_WINDOW)
    if end - start > _LONGEST_WINDOW:
        raise InputError("parameter since", "is more than ten years before until")
    with context.store.read() as session:
        return telemetry_series(session, SeriesFilter(device, model, slot), start, end, points)


def _instant(when: datetime | None, default: datetime) -> datetime:
    """A time with its zone, or a default; of a year that can be counted with."""
    found = default if when is None else when if when.tzinfo else when.replace(tzinfo=UTC)
    if not _YEARS[0] <= found.year <= _YEARS[1]:
        raise InputError("parameter since or until", f"is not in the years {_YEARS[0]} to {_YEARS[1]}")
    return found
