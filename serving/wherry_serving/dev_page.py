"""The page at `/` on which a developer tries a model: files of this package, in images of stage dev only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

FOLDER = Path(__file__).parent / "page"
Headers = tuple[tuple[bytes, bytes], ...]
Page = Mapping[str, tuple[bytes, Headers]]
"""Path without its slash -> body and headers."""

_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data: blob:; "
    b"media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_GUARDS: Headers = (
    (b"content-security-policy", _POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"permissions-policy", b"camera=(self), microphone=(), geolocation=()"),
    (b"cache-control", b"no-cache"),
)
_FILES = {
    "": ("try.html", b"text/html; charset=utf-8"),
    "try.css": ("try.css", b"text/css; charset=utf-8"),
    "try.js": ("try.js", b"text/javascript; charset=utf-8"),
}


def read_page(folder: Path = FOLDER) -> Page:
    """The page's files; empty where an image was built without them."""
    try:
        return {
            path: ((folder / name).read_bytes(), ((b"content-type", kind), *_GUARDS))
            for path, (name, kind) in _FILES.items()
        }
    except OSError:
        return {}
