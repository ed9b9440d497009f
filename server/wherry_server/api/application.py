"""The HTTP application: routes, errors and limits put together."""

from __future__ import annotations

from fastapi import FastAPI

from wherry import __version__
from wherry_server.api import devices, errors, fleet, install, metrics, operators, releases, rollouts, telemetry
from wherry_server.api.auth import ContextDep
from wherry_server.api.limits import BodyLimit
from wherry_server.services.context import Context

_TAGS = [
    {"name": "devices", "description": "What runs where, and what should."},
    {"name": "enrolment", "description": "How a device gets and renews its identity."},
    {"name": "releases", "description": "What the owner signed."},
    {"name": "rollouts", "description": "A release brought to a selection of devices."},
    {"name": "telemetry", "description": "How models infer."},
    {"name": "operators", "description": "Who may do what, and who did."},
]


def create_api(context: Context) -> FastAPI:
    """The API without the dashboard."""
    app = FastAPI(
        title="Wherry server",
        version=__version__,
        summary="Carries signed model containers to edge devices.",
        openapi_tags=_TAGS,
        docs_url=None,  # its page loads scripts from elsewhere; the document itself is at /openapi.json
        redoc_url=None,
    )
    app.state.context = context
    errors.install(app)
    config = context.config
    app.add_middleware(BodyLimit, limit=config.max_body_bytes, exceptions={"/v1/repository": config.max_upload_bytes})

    @app.get("/healthz", summary="Whether the server answers", tags=["devices"])
    def healthz(context: ContextDep) -> dict[str, bool]:
        with context.store.read() as session:
            session.connection()
        return {"ok": True}

    for router in (
        devices.enrolment_router,
        install.router,
        devices.router,
        fleet.router,
        releases.router,
        rollouts.router,
        telemetry.router,
        operators.router,
        metrics.router,
    ):
        app.include_router(router)
    return app
