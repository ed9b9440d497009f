"""The device page: `/devices/{id}`, its charts, and what an operator can do there."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel
from sqlalchemy.orm import Session

from wherry.identity import DeviceId, Digest, SlotName
from wherry.messages import ReleaseRef
from wherry_server.dashboard.charts import Charts, host_charts, slot_charts
from wherry_server.dashboard.device import device_head
from wherry_server.dashboard.frame import HEADERS, ActingDep, FormDep, FrameDep, done, page_router, read_fields
from wherry_server.dashboard.timeline import Ask, deployment_card
from wherry_server.services import assignments, removal
from wherry_server.store import device_views, rollout_views
from wherry_server.store.series_views import SeriesFilter, telemetry_series
from wherry_server.store.swap_views import Answered, answered
from wherry_server.store.telemetry_views import telemetry_summary

DEPLOYMENTS = 10
RANGES = {"1h": (timedelta(hours=1), 62), "24h": (timedelta(hours=24), 300), "7d": (timedelta(days=7), 170)}
_RANGE_WORDS = {"1h": "1 hour", "24h": "24 hours", "7d": "7 days"}
DevicePath = Annotated[DeviceId, Path()]
RangeQuery = Annotated[str, Query(max_length=4)]


def device_routes() -> APIRouter:
    """`/devices/…`."""
    router = page_router()
    router.add_api_route("/devices/{device}", _device, methods=["GET"])
    router.add_api_route("/devices/{device}/charts", _charts, methods=["GET"])
    router.add_api_route("/devices/{device}/poll", _poll, methods=["POST"])
    router.add_api_route("/devices/{device}/retry", _retry, methods=["POST"])
    router.add_api_route("/devices/{device}/clear", _clear, methods=["POST"])
    router.add_api_route("/devices/{device}/remove", _remove, methods=["POST"])
    return router


def _device(
    request: Request,
    frame: FrameDep,
    device: DevicePath,
    range: RangeQuery = "1h",  # noqa: A002  the name in the address
    after: Annotated[str, Query(max_length=300)] = "",
) -> Response:
    now = frame.context.clock()
    chosen = range if range in RANGES else "1h"
    with frame.context.store.read() as session:
        view = device_views.device_view(session, device)
        host = next(iter(telemetry_summary(session, now - timedelta(hours=1), [device]).hosts), None)
        history = rollout_views.deployment_page(session, device, after, DEPLOYMENTS)
        ask = _asker(session, device)
        cards = [deployment_card(item.deployment, now, ask) for item in history.items]
    return frame.render(
        request,
        "device.html",
        nav="fleet",
        head=device_head(view, host, now),
        deployments=cards,
        unreadable=history.unreadable,
        after=after,
        older=history.next or "",
        ranges=[(title, f"?range={name}#telemetry", name == chosen) for name, title in _RANGE_WORDS.items()],
        charts=f"/devices/{device}/charts?range={chosen}",
        span=_RANGE_WORDS[chosen],
    )


def _asker(session: Session, device: str) -> Ask:
    def ask(slot: str, release: ReleaseRef, since: datetime, until: datetime) -> Answered:
        return answered(session, device, slot, release, since, until)

    return ask


def _charts(frame: FrameDep, device: DevicePath, range: RangeQuery = "1h") -> Response:  # noqa: A002
    length, points = RANGES.get(range, RANGES["1h"])
    now = frame.context.clock()
    with frame.context.store.read() as session:
        series = telemetry_series(session, SeriesFilter(device=device), now - length, now, points)
    found = Charts(charts=slot_charts(series) | host_charts(series))
    return Response(found.model_dump_json(), media_type="application/json", headers=HEADERS)


def _poll(acting: ActingDep, device: DevicePath) -> Response:
    assignments.poll_now(acting, device)
    return done(f"/devices/{device}", "polled")


class _RetryForm(BaseModel):
    slot: SlotName
    digest: Digest


class _ClearForm(BaseModel):
    slot: SlotName


class _RemoveForm(BaseModel):
    force: bool = False


def _retry(acting: ActingDep, form: FormDep, device: DevicePath) -> Response:
    fields = read_fields(_RetryForm, form)
    assignments.retry(acting, device, fields.slot, fields.digest)
    return done(f"/devices/{device}", "retried")


def _clear(acting: ActingDep, form: FormDep, device: DevicePath) -> Response:
    assignments.unassign(acting, device, read_fields(_ClearForm, form).slot)
    return done(f"/devices/{device}", "cleared")


def _remove(acting: ActingDep, form: FormDep, device: DevicePath) -> Response:
    removal.remove(acting, device, read_fields(_RemoveForm, form).force)
    return done(f"/audit?thing={device}", "removed")
