"""What every message of the MQTT channel has in common."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field

MESSAGE_SCHEMA = 1
_FIRST, _LAST = datetime(1970, 1, 2, tzinfo=UTC), datetime(9998, 12, 31, tzinfo=UTC)


def _reckonable(at: datetime) -> datetime:
    """Days from the ends of the calendar are left free, so that adding, subtracting and zones cannot overflow."""
    return min(max(at, _FIRST), _LAST)


Instant = Annotated[AwareDatetime, AfterValidator(_reckonable)]
"""A time with its zone, which one can reckon with."""


class Model(BaseModel):
    """A part of a message: frozen, of finite numbers; fields that a newer sender added are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True, allow_inf_nan=False)


class Message(Model):
    """A whole message, with the version of its schema."""

    schema_: Annotated[int, Field(alias="schema")] = MESSAGE_SCHEMA

    def to_bytes(self) -> bytes:
        """The message as it goes over the wire."""
        return self.model_dump_json(by_alias=True, exclude_none=True).encode()


class Problem(Model):
    """An error in a message: see `wherry.errors.WherryError.as_dict`."""

    code: str
    thing: str
    reason: str
    fix: str
