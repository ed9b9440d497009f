"""The pages: fleet, login, logout. Rendered here, no assets from elsewhere, nothing that changes the fleet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from urllib.parse import parse_qs

from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader

from wherry import __version__
from wherry_server.dashboard.fleet import fleet_page
from wherry_server.dashboard.session import COOKIE, Sessions
from wherry_server.services.access import check_token, still_valid
from wherry_server.services.context import Context

_FOLDER = Path(__file__).parent / "templates"
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_ASSETS = {"style.css": "text/css", "live.js": "text/javascript"}


def add_dashboard(app: FastAPI, context: Context) -> None:
    """Mount the pages on an application."""
    app.include_router(_Pages(context).router())


class _Pages:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._sessions = Sessions.open(context.config.data / "session.key", context.config.session_hours)
        self._templates = Environment(
            loader=FileSystemLoader(_FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True
        )

    def router(self) -> APIRouter:
        router = APIRouter(include_in_schema=False)
        router.add_api_route("/", self.fleet, methods=["GET"])
        router.add_api_route("/login", self.login_form, methods=["GET"])
        router.add_api_route("/login", self.login, methods=["POST"])
        router.add_api_route("/logout", self.logout, methods=["POST"])
        router.add_api_route("/static/{name}", self.asset, methods=["GET"])
        return router

    def fleet(
        self,
        request: Request,
        after: Annotated[str, Query(max_length=64)] = "",
        show: Annotated[str, Query(max_length=16)] = "",
    ) -> Response:
        now = self._context.clock()
        token = self._sessions.check(request.cookies.get(COOKIE, ""), now)
        if token is None or not still_valid(self._context, token):
            return RedirectResponse("/login", status_code=303, headers=_HEADERS)
        with self._context.store.read() as session:
            page = fleet_page(session, now, after, show)
        return self._render("fleet.html", 200, page=page)

    def login_form(self) -> Response:
        return self._render("login.html", 200, wrong=False)

    async def login(self, request: Request) -> Response:
        # One field: no need for a form parser. The body is bounded already.
        fields = parse_qs((await request.body()).decode("utf-8", "replace"))
        operator = await run_in_threadpool(check_token, self._context, fields.get("token", [""])[0].strip())
        if operator is None:
            return self._render("login.html", 401, wrong=True)
        response = RedirectResponse("/", status_code=303, headers=_HEADERS)
        value = self._sessions.make(operator.id, self._context.clock())
        response.set_cookie(
            COOKIE, value, max_age=self._sessions.seconds, path="/", secure=True, httponly=True, samesite="strict"
        )
        return response

    def logout(self) -> Response:
        response = RedirectResponse("/login", status_code=303, headers=_HEADERS)
        response.delete_cookie(COOKIE, path="/", secure=True, httponly=True, samesite="strict")
        return response

    def asset(self, name: str) -> Response:
        if name not in _ASSETS:
            return Response(status_code=404)
        headers = _HEADERS | {"Cache-Control": "max-age=300"}
        return Response((_FOLDER / name).read_bytes(), media_type=_ASSETS[name], headers=headers)

    def _render(self, name: str, status: int, **values: object) -> HTMLResponse:
        text = self._templates.get_template(name).render(version=__version__, **values)
        return HTMLResponse(text, status_code=status, headers=_HEADERS)
