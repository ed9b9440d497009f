"""Route of the fleet at a glance."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Query

from wherry.api.telemetry import FleetVersion, FleetView
from wherry_server.api.auth import ContextDep, NeedsOperator
from wherry_server.store.device_views import fleet_counts
from wherry_server.store.model_views import models_in_field

router = APIRouter(prefix="/v1", tags=["devices"], dependencies=[NeedsOperator])


@router.get("/fleet", summary="The fleet at a glance")
def get_fleet(
    context: ContextDep,
    minutes: Annotated[int, Query(ge=1, le=1440, description="Window of the numbers")] = 5,
) -> FleetView:
    """How many devices are how, and how each version that serves somewhere answers."""
    now = context.clock()
    with context.store.read() as session:
        counts = fleet_counts(session)
        models = models_in_field(session, now - timedelta(minutes=minutes), now)
    fields = FleetVersion.model_fields
    versions = [
        FleetVersion(**{name: value for name, value in asdict(version).items() if name in fields})
        for model in models
        for version in model.versions
        if version.devices or version.desired or version.requests
    ]
    return FleetView(**asdict(counts), versions=versions)
