"""What every page stands in: who may see it, how it is rendered, how errors look, and forms that are really ours."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qs, quote, urlsplit

from fastapi import APIRouter, Depends, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.routing import APIRoute
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from wherry import __version__
from wherry.errors import AdapterError, Conflict, InputError, NotAllowed, NotFound, WherryError
from wherry_server.dashboard.assets import asset_address, missing_assets
from wherry_server.dashboard.notices import NOTICES
from wherry_server.dashboard.session import COOKIE, Sessions
from wherry_server.services.access import Operator, operator_of
from wherry_server.services.context import Context

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    # Browsers leave the origin out of a form's request under `no-referrer`, and forms are checked by it.
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
NAVIGATION = (
    ("fleet", "/", "Fleet"),
    ("models", "/models", "Models"),
    ("releases", "/releases", "Releases"),
    ("rollouts", "/rollouts", "Rollouts"),
    ("audit", "/audit", "Audit"),
)
_STATUS: tuple[tuple[type[WherryError], int], ...] = (
    (NotFound, 404),
    (NotAllowed, 403),
    (Conflict, 409),
    (InputError, 422),
    (AdapterError, 503),
)
_Fields = TypeVar("_Fields", bound=BaseModel)
_log = logging.getLogger(__name__)
_TEMPLATES = Path(__file__).parent / "templates"


class LoginNeeded(Exception):
    """No session, or one that is over."""


class Frame:
    """The parts that pages share.

    Args:
        context: the server's parts.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self.sessions = Sessions.open(context.config.data / "session.key", context.config.session_hours)
        self._templates = Environment(
            loader=FileSystemLoader(_TEMPLATES),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=StrictUndefined,
        )
        self._templates.filters["prose"] = prose
        self._templates.globals.update(
            asset=asset_address,
            navigation=NAVIGATION,
            version=__version__,
            missing_assets=missing_assets(),
        )

    def operator(self, request: Request) -> Operator | None:
        """Whose session came with a request."""
        token = self.sessions.check(request.cookies.get(COOKIE, ""), self.context.clock())
        return operator_of(self.context, token) if token is not None else None

    def render(self, request: Request, name: str, *, nav: str = "", status: int = 200, **values: object) -> Response:
        """A page from its template. `?done=NAME` shows a notice of dashboard/notices.py."""
        text = self._templates.get_template(name).render(
            nav=nav,
            visitor=getattr(request.state, "operator", None),
            notice=NOTICES.get(request.query_params.get("done", "")),
            **values,
        )
        return HTMLResponse(text, status_code=status, headers=HEADERS)

    def problem(self, request: Request, error: WherryError) -> Response:
        """An error as a page: thing, reason, what to do next."""
        status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
        status = getattr(error, "status", status)
        if getattr(request.state, "operator", None) is None:
            request.state.operator = self.operator(request)
        return self.render(request, "error.html", status=status, problem=error.as_dict(), back=_page_before(request))

    def login_needed(self, request: Request) -> Response:
        """Send the visitor to the login and back; a script is told so, as it would not follow."""
        if "HX-Request" in request.headers:
            return Response(status_code=401, headers=HEADERS | {"HX-Redirect": "/login"})
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        back = f"?next={quote(path, safe='/')}" if request.method == "GET" and path != "/" else ""
        return RedirectResponse(f"/login{back}", status_code=303, headers=HEADERS)


def prose(text: str) -> Markup:
    """Text with its `commands` set as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704  escaped before


def done(address: str, notice: str = "") -> Response:
    """After a form: on to a page, with a notice of dashboard/notices.py."""
    if notice:
        address += ("&" if "?" in address else "?") + f"done={notice}"
    return RedirectResponse(address, status_code=303, headers=HEADERS)


class _PageRoute(APIRoute):
    """Errors become pages, and a missing session the login."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_page(request: Request) -> Response:
            frame = get_frame(request)
            try:
                return await handle(request)
            except LoginNeeded:
                return frame.login_needed(request)
            except RequestValidationError as error:
                first = next(iter(error.errors()), {"loc": ("request",), "msg": "is wrong"})
                where = ".".join(str(part) for part in first["loc"][1:]) or "request"
                return frame.problem(request, InputError(f"field {where}"[:100], str(first["msg"])[:200]))
            except WherryError as error:
                return frame.problem(request, error)
            except HTTPException:
                raise
            except Exception:
                _log.exception("%s %s failed by a defect", request.method, request.url.path)
                return frame.problem(request, WherryError("this page", "has a defect", "Read the server's log"))

        return handle_page


def get_frame(request: Request) -> Frame:
    """The frame of this application."""
    frame: Frame = request.app.state.frame
    return frame


FrameDep = Annotated[Frame, Depends(get_frame)]


def _visitor(request: Request, frame: FrameDep) -> Operator:
    operator = frame.operator(request)
    if operator is None:
        raise LoginNeeded
    request.state.operator = operator
    return operator


VisitorDep = Annotated[Operator, Depends(_visitor)]
"""Who looks at a page."""


def page_router(needs_session: bool = True) -> APIRouter:
    """A router for pages; without a session the login comes first, unless told otherwise."""
    needs = [Depends(_visitor)] if needs_session else []
    return APIRouter(include_in_schema=False, route_class=_PageRoute, dependencies=needs)


def check_origin(request: Request) -> None:
    """Refuse a form that another site sent with our visitor's cookie.

    Raises:
        NotAllowed: the request does not come from one of our own pages.
    """
    fetched = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin", "")
    ours = fetched == "same-origin" if fetched else urlsplit(origin).netloc == request.headers.get("host", "")
    if not ours:
        raise NotAllowed("this form", "was not sent from a page of this server", "Open the page here and try again")


def _actor(request: Request, visitor: VisitorDep, frame: FrameDep) -> Context:
    check_origin(request)
    return frame.context.acting_as(visitor.name)


ActingDep = Annotated[Context, Depends(_actor)]
"""For POST routes: the server's parts with the visitor as the actor, after the form was found to be ours."""


async def _read_form(request: Request) -> dict[str, str]:
    # The body is bounded by the application already.
    fields = parse_qs((await request.body()).decode("utf-8", "replace"), keep_blank_values=True)
    return {name: values[0].strip() for name, values in fields.items()}


FormDep = Annotated[dict[str, str], Depends(_read_form)]
"""The fields of a form; of several values of a name the first."""


def read_fields(kind: type[_Fields], form: Mapping[str, str]) -> _Fields:
    """A form's fields as a model.

    Raises:
        InputError: a field is missing or wrong.
    """
    try:
        return kind.model_validate(form)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "form"
        raise InputError(f"field {where}", first["msg"], "Go back to the page and use its form") from error


def local_path(address: str) -> str:
    """An address within this dashboard, or its first page."""
    return address if address.startswith("/") and not address.startswith(("//", "/\\")) else "/"


def _page_before(request: Request) -> str:
    before = urlsplit(request.headers.get("referer", ""))
    if before.netloc != request.headers.get("host", "") or before.path == request.url.path:
        return "/"
    return local_path(before.path + (f"?{before.query}" if before.query else ""))
