"""What devices sent and nobody has handled yet: bounded, and of a state only the newest."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque

from wherry.topics import Kind, Topic

TELEMETRY_LIMIT = 2000


class Inbox:
    """Between the MQTT client's thread, which must never wait, and the thread that writes to the database.

    States and presence are retained: a newer one replaces one that still waits. Telemetry over the limit is
    refused; its device keeps it and sends it again, because it is not acknowledged.

    Attributes:
        refused: telemetry batches refused so far.
    """

    def __init__(self, telemetry_limit: int = TELEMETRY_LIMIT) -> None:
        self._limit = telemetry_limit
        self._newest: OrderedDict[Topic, bytes] = OrderedDict()
        self._batches: deque[tuple[Topic, bytes, float]] = deque()
        self._ready = threading.Condition()
        self._closed = False
        self.refused = 0

    def put(self, topic: Topic, payload: bytes) -> None:
        """Take a message; never blocks."""
        with self._ready:
            if topic.kind is not Kind.TELEMETRY:
                self._newest[topic] = payload
            elif len(self._batches) < self._limit:
                self._batches.append((topic, payload, time.monotonic()))
            else:
                self.refused += 1
                return
            self._ready.notify()

    def get(self) -> tuple[Topic, bytes] | None:
        """The next message, states before telemetry; waits for one. None once the inbox is closed."""
        with self._ready:
            while not (self._newest or self._batches or self._closed):
                self._ready.wait()
            if self._closed:
                return None
            return self._newest.popitem(last=False) if self._newest else self._batches.popleft()[:2]

    @property
    def waiting(self) -> int:
        """Messages that wait."""
        return len(self._newest) + len(self._batches)

    @property
    def lag_seconds(self) -> float:
        """How long the oldest telemetry has waited."""
        with self._ready:
            return time.monotonic() - self._batches[0][2] if self._batches else 0.0

    def close(self) -> None:
        """Let the reader end."""
        with self._ready:
            self._closed = True
            self._ready.notify_all()
