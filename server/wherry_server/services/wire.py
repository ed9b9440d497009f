"""The link to the devices as use cases see it, and the questions that wait for an answer over it."""

from __future__ import annotations

import asyncio
import logging
import threading
from dataclasses import dataclass
from typing import Protocol

from wherry.errors import Conflict
from wherry.questions import DiagnoseReply, LogsReply
from wherry.topics import Topic

MAX_PENDING, MAX_PENDING_OF_DEVICE = 100, 8
Reply = LogsReply | DiagnoseReply
_log = logging.getLogger(__name__)


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


@dataclass(frozen=True, slots=True, eq=False)
class _Pending:
    device: str
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[Reply]


class Questions:
    """Questions that wait for their answer; bounded.

    Args:
        limit: how many may wait at a time.
        of_device: how many of them for one device.
    """

    def __init__(self, limit: int = MAX_PENDING, of_device: int = MAX_PENDING_OF_DEVICE) -> None:
        self._limit, self._of_device = limit, of_device
        self._pending: dict[str, _Pending] = {}
        self._lock = threading.Lock()

    def expects(self, device: str) -> bool:
        """Whether a question to a device waits; whatever it says otherwise need not be read."""
        with self._lock:
            return any(pending.device == device for pending in self._pending.values())

    def expect(self, device: str, question: str) -> asyncio.Future[Reply]:
        """The future answer of a device to a question; `forget` it when done.

        Raises:
            Conflict: too many wait, of this device or in all.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Reply] = loop.create_future()
        with self._lock:
            if len(self._pending) >= self._limit:
                raise Conflict("questions to devices", f"are {self._limit} already that wait", "Ask again in a while")
            if sum(pending.device == device for pending in self._pending.values()) >= self._of_device:
                raise Conflict(
                    f"questions to device {device}", f"are {self._of_device} already that wait", "Ask again in a while"
                )
            self._pending[question] = _Pending(device, loop, answer)
        return answer

    def forget(self, question: str) -> None:
        """Nobody waits any longer."""
        with self._lock:
            self._pending.pop(question, None)

    def take(self, reply: Reply) -> bool:
        """A device answered, told from any thread; whether somebody waited for it."""
        with self._lock:
            pending = self._pending.get(reply.id)
            if pending is None or pending.device != reply.device:
                pending = None
            else:
                del self._pending[reply.id]
        if pending is None:
            _log.info("a reply of %s to question %s came too late, or nobody asked", reply.device, reply.id)
            return False
        pending.loop.call_soon_threadsafe(_settle, pending.answer, reply)
        return True


def _settle(answer: asyncio.Future[Reply], reply: Reply) -> None:
    if not answer.done():
        answer.set_result(reply)
