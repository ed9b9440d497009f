"""MQTT topics, as values. One tree: `wherry/v1/d/<device>/{cmd,assign,up/<kind>}`.

The broker's ACL (see `wherry-server broker-config`) lets a device read its own `cmd` and `assign`
and write its own `up/#`; the server the other way round.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from wherry.errors import MalformedMessage

PREFIX = "wherry/v1/d"
_TOPIC = re.compile(r"wherry/v1/d/(?P<device>[a-z0-9-]{1,64})/(?P<rest>cmd|assign|up/[a-z]+)")


class Kind(StrEnum):
    """What travels on a device's topic."""

    CMD = "cmd"
    ASSIGN = "assign"
    STATE = "up/state"
    PRESENCE = "up/presence"
    TELEMETRY = "up/telemetry"
    REPLY = "up/reply"

    @property
    def retained(self) -> bool:
        """Whether the broker keeps the last message for late subscribers."""
        return self in (Kind.ASSIGN, Kind.STATE, Kind.PRESENCE)


@dataclass(frozen=True, slots=True)
class Topic:
    """One device's topic of one kind."""

    device: str
    kind: Kind

    def __str__(self) -> str:
        return f"{PREFIX}/{self.device}/{self.kind}"

    @classmethod
    def parse(cls, text: str) -> Topic:
        """Read a topic from its text.

        Raises:
            MalformedMessage: the text is not a topic of this tree.
        """
        match = _TOPIC.fullmatch(text)
        if match is None or match["rest"] not in list(Kind):
            raise MalformedMessage(f"topic {text[:120]!r}", "is not a Wherry topic")
        return cls(match["device"], Kind(match["rest"]))


EVERY_DEVICE_UP = f"{PREFIX}/+/up/#"
"""The server's one subscription."""
