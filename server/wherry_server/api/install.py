"""`GET /install.sh` and what it downloads. Open to all: a machine that is no device yet has nothing to show."""

from __future__ import annotations

from html import escape

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, HTMLResponse, PlainTextResponse, Response

from wherry.errors import NotFound
from wherry_server.services import bundle
from wherry_server.services.context import Context

router = APIRouter(tags=["enrolment"])


def _context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


@router.get("/install.sh", summary="The script that makes a machine a device", response_class=PlainTextResponse)
def script(request: Request) -> PlainTextResponse:
    """For `curl … | sh -s -- TOKEN`; names the hash of everything it downloads."""
    return PlainTextResponse(bundle.install_script(_context(request)), media_type="text/x-shellscript")


@router.get("/install/wheels/", summary="Packages for devices that reach no index", response_class=HTMLResponse)
def wheels(request: Request) -> HTMLResponse:
    """A page of links, as pip reads them."""
    links = "".join(
        f'<a href="{escape(name)}">{escape(name)}</a><br>\n' for name in bundle.offline_wheels(_context(request))
    )
    return HTMLResponse(f"<!DOCTYPE html>\n<title>Packages</title>\n{links}")


@router.get("/install/wheels/{name}", summary="One of these packages", response_class=FileResponse)
def wheel(name: str, request: Request) -> FileResponse:
    """The file, if it is one of those listed."""
    path = bundle.offline_wheels(_context(request)).get(name)
    if path is None:
        raise NotFound(f"package {name[:80]}", "is not in this server's folder of packages", "See /install/wheels/")
    return FileResponse(path, media_type="application/zip")


@router.get("/install/{name}", summary="The agent, its pinned packages, its unit", response_class=Response)
def file(name: str) -> Response:
    """A file that the script names."""
    content = bundle.install_files().get(name)
    if content is None:
        raise NotFound(f"file {name[:80]}", "is not part of the installation", "Fetch /install.sh again")
    return Response(content, media_type="application/octet-stream")
