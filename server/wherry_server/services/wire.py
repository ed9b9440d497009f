"""The link to the devices as use cases see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from wherry.topics import Topic


class Wire(Protocol):
    """What `wherry_server.link` offers."""

    @property
    def connected(self) -> bool:
        """Whether the broker is reached now."""

    @property
    def waiting(self) -> int:
        """Messages that came and are not handled yet."""

    @property
    def refused(self) -> int:
        """Telemetry batches refused because too many waited; their devices send them again."""

    @property
    def lag_seconds(self) -> float:
        """How long the oldest message that waits has waited."""

    def publish(self, topic: Topic, payload: bytes) -> bool:
        """Send at once, without the outbox; False when it cannot be queued."""


@dataclass(slots=True)
class Line:
    """Holds the wire once the link is made: the link needs the use cases, and these need the link."""

    wire: Wire | None = None
