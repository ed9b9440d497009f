"""Route of telemetry."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Query

from wherry.api import TelemetrySummary
from wherry.identity import DeviceId, ModelName
from wherry_server.api.auth import ContextDep, NeedsOperator
from wherry_server.store.telemetry_views import telemetry_summary

router = APIRouter(prefix="/v1", tags=["telemetry"], dependencies=[NeedsOperator])
_DEFAULT_WINDOW = timedelta(hours=1)


@router.get("/telemetry", summary="How models infer")
def get_telemetry(
    context: ContextDep,
    device: Annotated[DeviceId | None, Query()] = None,
    model: Annotated[ModelName | None, Query()] = None,
    since: Annotated[datetime | None, Query(description="Default: an hour ago")] = None,
) -> TelemetrySummary:
    """Requests, failures and latency percentiles by device, slot and version; the newest host samples."""
    start = since or context.clock() - _DEFAULT_WINDOW
    start = start if start.tzinfo else start.replace(tzinfo=UTC)
    with context.store.read() as session:
        return telemetry_summary(session, start, [device] if device else None, model)
