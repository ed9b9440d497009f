"""How every versioned document is read: known schema version first, then its fields."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from wherry.errors import MalformedMessage, UnsupportedSchema

M = TypeVar("M", bound=BaseModel)


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


def load_json(payload: bytes, name: str, limit: int = 262_144) -> Any:
    """Parse JSON bytes from a wire: bounded, UTF-8, no duplicate keys.

    Raises:
        MalformedMessage: too long, not UTF-8, not JSON, nested too deep, or a key twice.
    """
    if len(payload) > limit:
        raise MalformedMessage(name, f"has {len(payload)} bytes, the limit is {limit}")
    try:
        return json.loads(payload.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise MalformedMessage(name, f"is not usable JSON ({str(error)[:120]})") from error
