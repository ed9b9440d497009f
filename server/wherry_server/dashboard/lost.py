"""Addresses that lead nowhere: a page for people, the API's own answer for programs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import cast

from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from wherry.errors import NotFound
from wherry_server.dashboard.frame import get_frame

_Handler = Callable[[Request, Exception], Awaitable[Response]]


def add_lost_page(app: FastAPI) -> None:
    """Answer people who follow a wrong address with a page."""
    answer_program = cast(_Handler, app.exception_handlers[HTTPException])

    def page(request: Request) -> Response:
        frame = get_frame(request)
        if frame.operator(request) is None:
            return frame.login_needed(request)
        return frame.problem(
            request, NotFound(f"page {request.url.path}"[:200], "does not exist", "Use the links on top")
        )

    async def lost(request: Request, error: Exception) -> Response:
        person = request.method == "GET" and "text/html" in request.headers.get("accept", "")
        if person and not request.url.path.startswith("/v1/"):
            return await run_in_threadpool(page, request)
        return await answer_program(request, error)

    app.add_exception_handler(404, lost)
