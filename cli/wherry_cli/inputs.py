"""Values from the command line, checked against the contract's models."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from wherry.errors import InputError

M = TypeVar("M", bound=BaseModel)
_PATTERN_FIX = {
    "device": "Use lower-case letters, digits and hyphens, at most 64",
    "profile": "See `wherry profile list`",
    "profiles": "See `wherry profile list`",
    "needs_slots": "Use lower-case letters, digits and hyphens, at most 32",
    "slot": "Use lower-case letters, digits and hyphens, at most 32",
    "name": "Use lower-case letters, digits, dots, hyphens and underscores, at most 64",
    "version": "Use letters, digits, dots, hyphens and underscores, at most 64",
}


def checked(kind: type[M], **values: Any) -> M:
    """A request model from command line values.

    Raises:
        InputError: a value is not usable; it names the value, not the model.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0]) if first["loc"] else "value"
        what = f"{name} {first['input']!r}"
        if first["type"] == "string_pattern_mismatch":
            raise InputError(what, "is not a usable name", _PATTERN_FIX.get(name)) from error
        raise InputError(what, f"is refused: {first['msg']}") from error


def read_text(path: Path, what: str) -> str:
    """The text of a file the operator named, without surrounding white space.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise InputError(f"{what} {path}", f"cannot be read ({reason})") from error
