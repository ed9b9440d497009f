"""A bell inside the server: who shows something live learns that it changed, without asking the database."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterable
from typing import Self
from weakref import WeakSet

from wherry.errors import Conflict

FLEET = "fleet"
ROLLOUTS = "rollouts"
RELEASES = "releases"
TELEMETRY = "telemetry"
AUDIT = "audit"
MAX_LISTENERS = 200


def device_topic(device: str) -> str:
    """The topic that rings when a device says or is told something."""
    return f"device {device}"


def rollout_topic(rollout: int) -> str:
    """The topic that rings when a rollout or one of its devices moves on."""
    return f"rollout {rollout}"


class Listener:
    """One who listens, in one event loop; made by `Changes.listen`. A context manager: listening ends with it.

    Attributes:
        topics: what it listens to.
        closed: whether the bell was taken down; then `wait` returns at once.
    """

    def __init__(self, changes: Changes, topics: frozenset[str], gap: float) -> None:
        self.topics = topics
        self.closed = False
        self._changes = changes
        self._gap = gap
        self._loop = asyncio.get_running_loop()
        self._rang: set[str] = set()
        self._lock = threading.Lock()
        self._event = asyncio.Event()
        self._woken = float("-inf")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._changes.forget(self)

    def ring(self, topics: frozenset[str]) -> None:
        """From any thread; until it is heard, ringing again only adds topics."""
        with self._lock:
            first = not self._rang
            self._rang |= topics
        if first:
            self._wake()

    def close(self) -> None:
        """From any thread: end the wait."""
        self.closed = True
        self._wake()

    async def wait(self, timeout: float) -> frozenset[str]:
        """The topics that rang since the last call; empty when none did in time.

        However often the bell rings, it returns once in `gap` seconds.
        """
        try:
            await asyncio.wait_for(self._event.wait(), timeout)
        except TimeoutError:
            return frozenset()
        if not self.closed:
            await asyncio.sleep(max(0.0, self._woken + self._gap - self._loop.time()))
            self._event.clear()
        self._woken = self._loop.time()
        with self._lock:
            rang, self._rang = frozenset(self._rang), set()
        return rang

    def _wake(self) -> None:
        # A loop that has ended has nobody who listens.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._event.set)


class Changes:
    """The bell. Ringing is cheap when nobody listens, and never waits for those who do.

    Args:
        limit: most listeners at a time.
    """

    def __init__(self, limit: int = MAX_LISTENERS) -> None:
        self._limit = limit
        # Weak: a listener whose answer was never begun goes by itself.
        self._listeners: WeakSet[Listener] = WeakSet()
        self._lock = threading.Lock()

    def ring(self, *topics: str) -> None:
        """Something was stored: call this after the commit, from any thread."""
        rang = frozenset(topics)
        with self._lock:
            concerned = [listener for listener in self._listeners if not listener.topics.isdisjoint(rang)]
        for listener in concerned:
            listener.ring(rang & listener.topics)

    def listen(self, topics: Iterable[str], gap: float = 1.0) -> Listener:
        """Listen to some topics from now on, within an event loop.

        Raises:
            Conflict: too many listen already.
        """
        listener = Listener(self, frozenset(topics), gap)
        with self._lock:
            if len(self._listeners) >= self._limit:
                raise Conflict("live view", f"is open {self._limit} times already", "Close pages that nobody looks at")
            self._listeners.add(listener)
        return listener

    def forget(self, listener: Listener) -> None:
        """One who listens no more."""
        with self._lock:
            self._listeners.discard(listener)

    def close(self) -> None:
        """The server ends: nobody has to wait any longer."""
        with self._lock:
            listeners = list(self._listeners)
        for listener in listeners:
            listener.close()
