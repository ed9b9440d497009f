"""What every message of the MQTT channel has in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MESSAGE_SCHEMA = 1


class Model(BaseModel):
    """A part of a message: frozen; fields that a newer sender added are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


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
