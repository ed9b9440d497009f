"""Contract documents in and out of text columns."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pydantic import BaseModel, TypeAdapter

from wherry.messages import Problem, SlotReport, UpdateLock

_SLOTS = TypeAdapter(list[SlotReport])


def read_slots(text: str) -> list[SlotReport]:
    """Reported slots from a column."""
    return _SLOTS.validate_json(text)


def write_slots(slots: Sequence[SlotReport]) -> str:
    """Reported slots for a column."""
    return json.dumps([slot.model_dump(mode="json", by_alias=True, exclude_none=True) for slot in slots])


def read_problem(text: str | None) -> Problem | None:
    """A problem from a column."""
    return Problem.model_validate_json(text) if text else None


def read_lock(text: str | None) -> UpdateLock | None:
    """An update lock from a column."""
    return UpdateLock.model_validate_json(text) if text else None


def write(document: BaseModel | None) -> str | None:
    """A document for a column."""
    return document.model_dump_json(by_alias=True, exclude_none=True) if document else None
