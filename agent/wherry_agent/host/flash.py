"""What the agent itself writes to flash storage, counted by the kernel: a loop that writes wears a device out."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from wherry_agent.host.files import text

_HOUR = 3600.0
_DAY = 24
ALL = "all"
"""Everything that the process has written, also what no writer is named for."""


class FlashMeter:
    """Bytes that this process handed to the storage layer, by writer, in the last 24 hours. Thread-safe.

    The kernel counts them for each thread when pages are dirtied, so a write that happens later counts for who
    caused it, and what is in memory only counts for nobody.

    Args:
        root: where /proc is looked for.
        steady: a clock that nobody sets.
    """

    def __init__(self, root: Path, steady: Callable[[], float] = time.monotonic) -> None:
        self._root = root
        self._steady = steady
        self._lock = threading.Lock()
        self._written: Counter[str] = Counter()
        self._hours: deque[tuple[float, Counter[str]]] = deque([(steady(), self._now())], maxlen=_DAY + 1)

    @contextmanager
    def writing(self, writer: str) -> Iterator[None]:
        """Count what this thread writes meanwhile for a writer."""
        before = self._bytes("thread-self")
        try:
            yield
        finally:
            written = self._bytes("thread-self") - before
            with self._lock:
                self._written[writer] += written

    def last_day(self) -> dict[str, int]:
        """Bytes by writer, and `all`; of a shorter time if the agent started less than a day ago."""
        with self._lock:
            now, found = self._steady(), self._now()
            if now - self._hours[-1][0] >= _HOUR:
                self._hours.append((now, found))
            _, before = self._hours[0]
            return {writer: written - before[writer] for writer, written in sorted(found.items())}

    def _now(self) -> Counter[str]:
        return Counter({**self._written, ALL: self._bytes("self")})

    def _bytes(self, process: str) -> int:
        """0 where the kernel does not count."""
        for line in text(self._root / "proc" / process / "io").splitlines():
            name, _, value = line.partition(": ")
            if name == "write_bytes" and value.isdigit():
                return int(value)
        return 0
