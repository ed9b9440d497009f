"""Query parameters that several routes take."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Query

from wherry.errors import InputError
from wherry.identity import DeviceId

DevicePath = Annotated[DeviceId, Path(description="Device id")]
After = Annotated[str, Query(max_length=300, description="`next` of the page before")]
Limit = Annotated[int, Query(ge=1, le=500, description="Items a page")]


def number_after(after: str) -> int | None:
    """A numeric `after`.

    Raises:
        InputError: it is not one.
    """
    if not after:
        return None
    if not (after.isascii() and after.isdigit() and len(after) < 16):
        raise InputError("parameter after", "is not the `next` of a page", "Start again without it")
    return int(after)


def label_conditions(labels: list[str]) -> tuple[tuple[str, str], ...]:
    """`k=v` conditions as pairs.

    Raises:
        InputError: one of them has no `=`.
    """
    for label in labels:
        if "=" not in label:
            raise InputError(f"parameter label {label[:80]!r}", "is not NAME=VALUE")
    return tuple((name, value) for name, _, value in (label.partition("=") for label in labels))
