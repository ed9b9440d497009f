"""Addresses of pages. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlencode


def address(path: str, fields: Mapping[str, str | None]) -> str:
    """A path with those of the fields that are set."""
    query = urlencode({name: value for name, value in fields.items() if value})
    return f"{path}?{query}" if query else path


def number_after(after: str) -> int | None:
    """The number in `?after=`; anything else begins at the first page."""
    return int(after) if after.isascii() and after.isdigit() and len(after) < 16 else None
