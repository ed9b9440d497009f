"""The dashboard put together: its frame, and one router a page."""

from __future__ import annotations

from fastapi import FastAPI

from wherry_server.dashboard.assets import asset_routes
from wherry_server.dashboard.audit_routes import audit_routes
from wherry_server.dashboard.device_routes import device_routes
from wherry_server.dashboard.fleet_routes import fleet_routes
from wherry_server.dashboard.frame import HEADERS, Frame
from wherry_server.dashboard.live import live_routes
from wherry_server.dashboard.login import login_routes
from wherry_server.dashboard.lost import add_lost_page
from wherry_server.dashboard.model_routes import model_routes
from wherry_server.dashboard.questions_routes import question_routes
from wherry_server.dashboard.release_routes import release_routes
from wherry_server.dashboard.rollout_routes import rollout_routes
from wherry_server.services.context import Context


def add_dashboard(app: FastAPI, context: Context) -> None:
    """Mount the pages on an application."""
    app.state.frame = Frame(context)
    add_lost_page(app)
    app.include_router(asset_routes(HEADERS))
    for make in (
        login_routes,
        live_routes,
        fleet_routes,
        device_routes,
        question_routes,
        model_routes,
        release_routes,
        rollout_routes,
        audit_routes,
    ):
        app.include_router(make())
