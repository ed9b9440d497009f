"""A bell inside the server: who shows something live learns that it changed, without asking the database."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

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
    """One who listens, in one event loop. Made by `Changes.listen`."""

    def __init__(self, topics: frozenset[str], gap: float) -> None:
        self.topics = topics
        self._gap = gap
        self._loop = asyncio.get_running_loop()
        self._rang: set[str] = set()
        self._lock = threading.Lock()
        self._event = asyncio.Event()
        self._woken = float("-inf")

    def ring(self, topics: frozenset[str]) -> None:
        """From any thread; until it is heard, ringing again only adds topics."""
        with self._lock:
            first = not self._rang
            self._rang |= topics
        if first:
            try:
                self._loop.call_soon_threadsafe(self._event.set)
            except RuntimeError:
                return  # its loop has ended: nobody listens any more

    async def wait(self, timeout: float) -> frozenset[str]:
        """The topics that rang since the last call; empty when none did in time.

        However often the bell rings, it returns once in `gap` seconds.
        """
        try:
            await asyncio.wait_for(self._event.wait(), timeout)
        except TimeoutError:
            return frozenset()
        await asyncio.sleep(max(0.0, self._woken + self._gap - self._loop.time()))
        self._woken = self._loop.time()
        with self._lock:
            self._event.clear()
            rang, self._rang = frozenset(self._rang), set()
        return rang


class Changes:
    """The bell. Ringing is cheap when nobody listens, and never waits for those who do.

    Args:
        limit: most listeners at a time.
    """

    def __init__(self, limit: int = MAX_LISTENERS) -> None:
        self._limit = limit
        self._listeners: set[Listener] = set()
        self._lock = threading.Lock()

    def ring(self, *topics: str) -> None:
        """Something was stored: call this after the commit, from any thread."""
        if not self._listeners:
            return
        rang = frozenset(topics)
        with self._lock:
            concerned = [listener for listener in self._listeners if not listener.topics.isdisjoint(rang)]
        for listener in concerned:
            listener.ring(rang & listener.topics)

    @contextmanager
    def listen(self, topics: Iterable[str], gap: float = 1.0) -> Iterator[Listener]:
        """Listen to some topics, from within an event loop.

        Raises:
            Conflict: too many listen already.
        """
        listener = Listener(frozenset(topics), gap)
        with self._lock:
            if len(self._listeners) >= self._limit:
                raise Conflict("live view", f"is open {self._limit} times already", "Close pages that nobody looks at")
            self._listeners.add(listener)
        try:
            yield listener
        finally:
            with self._lock:
                self._listeners.discard(listener)
