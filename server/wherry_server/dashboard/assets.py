"""What pages load: our own files and those of scripts/assets.sh. Addresses carry a hash, so browsers may keep them."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from fastapi import APIRouter, Request, Response

FOLDER = Path(__file__).parent / "static"
VENDORED = ("htmx.min.js", "idiomorph-ext.min.js", "uPlot.iife.min.js", "uPlot.min.css")
_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_KEPT = "public, max-age=31536000, immutable"
_HOW = "// Not here: run `make assets` where the server was built, then start it again.\n"


@lru_cache(maxsize=64)
def _load(name: str) -> tuple[bytes, str] | None:
    """A file and its hash; None for everything that is not an asset."""
    path = FOLDER / name
    if path.suffix not in _TYPES or not path.resolve().is_relative_to(FOLDER.resolve()) or not path.is_file():
        return None
    data = path.read_bytes()
    return data, hashlib.sha256(data).hexdigest()[:12]


def missing_assets() -> list[str]:
    """Vendored files that were not copied here."""
    return [name for name in VENDORED if not (FOLDER / "vendor" / name).is_file()]


def asset_address(name: str) -> str:
    """Where a page finds an asset: `/static/style.css?v=0123456789ab`."""
    found = _load(name)
    return f"/static/{name}?v={found[1]}" if found else f"/static/{name}"


def asset_routes(headers: dict[str, str]) -> APIRouter:
    """`/static/…`, open to everyone: the login page needs it."""
    router = APIRouter(include_in_schema=False)

    @router.get("/static/{name:path}")
    def asset(request: Request, name: str) -> Response:
        found = _load(name) if "\x00" not in name and len(name) < 100 else None
        if found is None:
            text = _HOW if name.removeprefix("vendor/") in VENDORED else ""
            return Response(text, status_code=404, media_type="text/plain", headers=headers)
        data, version = found
        kept = _KEPT if request.query_params.get("v") == version else "no-cache"
        return Response(data, media_type=_TYPES[Path(name).suffix], headers=headers | {"Cache-Control": kept})

    return router
