"""Login and logout."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse

from wherry_server.dashboard.frame import HEADERS, FormDep, FrameDep, check_origin, local_path, page_router
from wherry_server.dashboard.session import COOKIE
from wherry_server.services.access import login


def login_routes() -> APIRouter:
    """`/login`, `/logout`."""
    router = page_router(needs_session=False)
    router.add_api_route("/login", _form, methods=["GET"])
    router.add_api_route("/login", _login, methods=["POST"])
    router.add_api_route("/logout", _logout, methods=["POST"])
    return router


def _form(request: Request, frame: FrameDep, next: Annotated[str, Query(max_length=2000)] = "/") -> Response:  # noqa: A002
    return frame.render(request, "login.html", wrong=False, next=local_path(next))


def _login(request: Request, frame: FrameDep, form: FormDep) -> Response:
    address = local_path(form.get("next", "/"))
    origin = request.client.host if request.client else ""
    operator = login(frame.context, form.get("token", ""), origin)
    if operator is None:
        return frame.render(request, "login.html", status=401, wrong=True, next=address)
    response = RedirectResponse(address, status_code=303, headers=HEADERS)
    value = frame.sessions.make(operator.id, frame.context.clock())
    response.set_cookie(
        COOKIE, value, max_age=frame.sessions.seconds, path="/", secure=True, httponly=True, samesite="strict"
    )
    return response


def _logout(request: Request) -> Response:
    check_origin(request)
    response = RedirectResponse("/login", status_code=303, headers=HEADERS)
    response.delete_cookie(COOKIE, path="/", secure=True, httponly=True, samesite="strict")
    return response
