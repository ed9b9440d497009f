"""Models: which versions are in the field, and how they answer beside each other."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from wherry_server.dashboard.frame import HEADERS, FrameDep, VisitorDep, page_router
from wherry_server.dashboard.model_rows import model_card, model_charts, version_rows
from wherry_server.dashboard.model_verdict import verdict
from wherry_server.store.model_views import model_in_field, models_in_field
from wherry_server.store.release_views import release_page
from wherry_server.store.series_views import SeriesFilter, telemetry_series

WINDOWS = {"hour": timedelta(hours=1), "day": timedelta(days=1), "week": timedelta(days=7)}
POINTS = 120
Window = Annotated[str, Query(max_length=8)]


def model_routes() -> APIRouter:
    """`/models`, `/models/MODEL` and what its charts draw."""
    router = page_router()
    router.add_api_route("/models", _list, methods=["GET"])
    router.add_api_route("/models/{model}", _one, methods=["GET"])
    router.add_api_route("/models/{model}/charts", _charts, methods=["GET"])
    return router


def _list(request: Request, _visitor: VisitorDep, frame: FrameDep) -> Response:
    now = frame.context.clock()
    length = WINDOWS["hour"]
    with frame.context.store.read() as session:
        found = models_in_field(session, now - length, now)
    cards = [model_card(one, round(length.total_seconds())) for one in found]
    return frame.render(request, "models.html", nav="models", models=cards)


def _one(request: Request, _visitor: VisitorDep, frame: FrameDep, model: str, window: Window = "day") -> Response:
    now = frame.context.clock()
    window = window if window in WINDOWS else "day"
    length = WINDOWS[window]
    with frame.context.store.read() as session:
        found = model_in_field(session, model, now - length, now)
        releases = release_page(session, model=model).items
    seconds = round(length.total_seconds())
    return frame.render(
        request,
        "model.html",
        nav="models",
        model=model_card(found, seconds),
        versions=version_rows(found, releases, seconds),
        verdict=verdict(found.versions),
        window=window,
        windows=[(name.capitalize(), f"/models/{model}?window={name}", name == window) for name in WINDOWS],
    )


def _charts(_visitor: VisitorDep, frame: FrameDep, model: str, window: Window = "day") -> Response:
    now = frame.context.clock()
    length = WINDOWS.get(window, WINDOWS["day"])
    with frame.context.store.read() as session:
        series = telemetry_series(session, SeriesFilter(model=model), now - length, now, POINTS)
    return Response(model_charts(series).model_dump_json(), media_type="application/json", headers=HEADERS)
