"""How every versioned document is read: known schema version first, then its fields."""

from __future__ import annotations

import json
import math
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from wherry.errors import MalformedMessage, UnsupportedSchema

M = TypeVar("M", bound=BaseModel)
_DIGITS = 20
"""Of a whole number with its sign: those of 64 bits have no more."""


def parse_schema(kind: type[M], data: Any, name: str, schema: int) -> M:
    """Validate parsed JSON against a model. Unknown fields are tolerated, unknown schema versions refused.

    Args:
        kind: the pydantic model.
        data: what `json.loads` gave.
        name: what the document is, for the error ("release image …").
        schema: the schema version this program knows.

    Raises:
        UnsupportedSchema: `data["schema"]` is another version.
        MalformedMessage: not an object, or a field is missing or wrong.
    """
    if not isinstance(data, dict):
        raise MalformedMessage(name, "is not a JSON object")
    found = data.get("schema")
    if found != schema or isinstance(found, bool):
        raise UnsupportedSchema(name, f"has schema version {found!r}, this program knows {schema}")
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "document"
        raise MalformedMessage(name, f"field {where}: {first['msg']}") from error


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object names a key twice")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:20]} is out of range")
    return number


def _whole(text: str) -> int:
    if len(text) > _DIGITS:
        raise ValueError(f"the number {text[:20]}... is out of range")
    return int(text)


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


def load_json(payload: bytes, name: str, limit: int = 262_144) -> Any:
    """Parse JSON bytes from a wire: bounded, UTF-8, no duplicate keys, finite numbers, text that can be written again.

    Raises:
        MalformedMessage: too long, not UTF-8, not JSON, nested too deep, a key twice, NaN, a number out of range, or
            half a surrogate pair.
    """
    if len(payload) > limit:
        raise MalformedMessage(name, f"has {len(payload)} bytes, the limit is {limit}")
    try:
        text = payload.decode("utf-8")
        found = json.loads(
            text, object_pairs_hook=_no_duplicates, parse_float=_finite, parse_int=_whole, parse_constant=_no_constant
        )
        if "\\ud" in text or "\\uD" in text:
            json.dumps(found, ensure_ascii=False).encode("utf-8")  # fails if half a surrogate pair is left
        return found
    except (ValueError, RecursionError) as error:
        raise MalformedMessage(name, f"is not usable JSON ({str(error)[:120]})") from error
