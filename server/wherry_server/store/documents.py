"""Contract documents in and out of text columns."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from wherry.api.rollouts import RolloutPart
from wherry.messages import Problem, SlotReport, UpdateLock

_SLOTS = TypeAdapter(list[SlotReport])
_PARTS = TypeAdapter(list[RolloutPart])
_log = logging.getLogger(__name__)
D = TypeVar("D", bound=BaseModel)


def readable(kind: type[D], text: str) -> D | None:
    """A document from a column, None for one that cannot be read: one device's words must not take a page down."""
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        _log.warning("a stored %s cannot be read and is left out: %s", kind.__name__, str(error)[:300])
        return None


def read_slots(text: str) -> list[SlotReport]:
    """Reported slots from a column; those that cannot be read are left out."""
    try:
        return _SLOTS.validate_json(text)
    except ValidationError:
        found = [readable(SlotReport, json.dumps(slot)) for slot in json.loads(text)]
        return [slot for slot in found if slot is not None]


def write_slots(slots: Sequence[SlotReport]) -> str:
    """Reported slots for a column."""
    return json.dumps([slot.model_dump(mode="json", by_alias=True, exclude_none=True) for slot in slots])


def read_parts(text: str) -> list[RolloutPart]:
    """The releases of a rollout that has several."""
    return _PARTS.validate_json(text)


def write_parts(parts: Sequence[RolloutPart]) -> str:
    """The releases of a rollout that has several, for a column."""
    return json.dumps([part.model_dump() for part in parts])


def read_problem(text: str | None) -> Problem | None:
    """A problem from a column."""
    return readable(Problem, text) if text else None


def read_lock(text: str | None) -> UpdateLock | None:
    """An update lock from a column."""
    return readable(UpdateLock, text) if text else None


def write(document: BaseModel | None) -> str | None:
    """A document for a column."""
    return document.model_dump_json(by_alias=True, exclude_none=True) if document else None
