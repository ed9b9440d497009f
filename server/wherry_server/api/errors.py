"""Errors as HTTP answers: every one of them, also FastAPI's own, has the contract's body."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from wherry.api.base import ErrorBody
from wherry.errors import (
    AdapterError,
    AdmissionError,
    Conflict,
    ContractError,
    DeploymentError,
    FitError,
    IdentityError,
    InputError,
    NotAllowed,
    NotFound,
    TrustError,
    WherryError,
)
from wherry.messages import Problem
from wherry_server.services.questions import DeviceProblem, NoAnswer

_log = logging.getLogger(__name__)
_STATUS: tuple[tuple[type[WherryError], int], ...] = (
    (NotFound, 404),
    (NotAllowed, 403),
    (IdentityError, 401),
    (Conflict, 409),
    (FitError, 409),
    (AdmissionError, 409),
    (DeploymentError, 409),
    (TrustError, 422),
    (ContractError, 422),
    (InputError, 422),
    (AdapterError, 503),
)


class Unauthenticated(NotAllowed):
    """No usable credentials came with the request."""


class TooLarge(InputError):
    """The request's body is over the limit."""


def status_of(error: WherryError) -> int:
    """The HTTP status of an error."""
    if isinstance(error, Unauthenticated):
        return 401
    if isinstance(error, TooLarge):
        return 413
    if isinstance(error, NoAnswer):
        return 504
    if isinstance(error, DeviceProblem):
        return 502
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def error_response(error: WherryError) -> JSONResponse:
    """An error as an answer."""
    status = status_of(error)
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return _answer(status, error.as_dict(), headers)


def _answer(status: int, problem: dict[str, str], headers: dict[str, str] | None = None) -> JSONResponse:
    body = ErrorBody(error=Problem.model_validate(problem))
    return JSONResponse(body.model_dump(mode="json"), status_code=status, headers=headers)


def _validation_problem(error: RequestValidationError) -> InputError:
    first: dict[str, Any] = dict(next(iter(error.errors()), {}))
    where = ".".join(str(part) for part in first.get("loc", ())) or "request"
    return InputError(f"field {where}"[:200], str(first.get("msg", "is wrong"))[:300])


def install(app: FastAPI) -> None:
    """Have an application answer errors in the contract's form."""

    async def on_wherry(_request: Request, error: Exception) -> Response:
        assert isinstance(error, WherryError)  # noqa: S101  registered for that class
        if status_of(error) >= 500:
            _log.error("%s", error)
        return error_response(error)

    async def on_validation(_request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101  registered for that class
        return _answer(422, _validation_problem(error).as_dict())

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101  registered for that class
        thing = f"{request.method} {request.url.path}"[:200]
        problem = {
            "code": "not_found",
            "thing": thing,
            "reason": "no such path",
            "fix": "See /openapi.json for the API",
        }
        if error.status_code != 404:
            problem.update(code="input", reason=str(error.detail)[:200])
        return _answer(error.status_code, problem, dict(error.headers) if error.headers else None)

    async def on_defect(request: Request, error: Exception) -> Response:
        _log.error("%s %s failed by a defect", request.method, request.url.path, exc_info=error)
        thing = f"{request.method} {request.url.path}"[:200]
        return _answer(
            500, {"code": "wherry", "thing": thing, "reason": "the server has a defect", "fix": "Read the server's log"}
        )

    app.add_exception_handler(WherryError, on_wherry)
    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(Exception, on_defect)
