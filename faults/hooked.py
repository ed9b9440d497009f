"""The real agent, told to die at a chosen point: `python -m faults.hooked run --state DIR`.

Before the program starts, its calls to the outside are wrapped: engine, registry pull and its progress lines, packet
filter, inference probes, database commits, fsync, rename and unlink. Each call is two points, one before it and one
after it took effect. A point has a key: the phase that the journal holds, the call and its subject, and how often this
life has passed it. The process kills itself with SIGKILL at one of them:

- WHERRY_FAULT_POINT: at the point of this number, counted over all;
- WHERRY_FAULT_AT: at the point with this key;
- WHERRY_FAULT_DEATHS: at the first point whose key is not in this file, a key a line; of all keys only a share
  (WHERRY_FAULT_SHARE, the same ones every time) counts.

Every point that is passed is written to WHERRY_FAULT_LOG, so that a sweep knows where it killed and what there is.
The wrapped program is the one that ships, started through its own `main`.
"""

from __future__ import annotations

import functools
import os
import re
import select
import signal
import sqlite3
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from wherry_agent.entry import Entry

OFTEN = 4
"""How often the same call in the same phase of one life is a point of its own."""
_CALLS = ("fsync", "replace", "rename", "unlink", "ftruncate")
_CHANCE = re.compile(r"tmp\w{8}|[0-9a-f]{12,}|\d+")


class Points:
    """Counts points from all threads and ends the process at one of them.

    Attributes:
        phase: of the deployment under way, as the journal holds it.
        lost: label of a call that is left out, to prove that the sweep notices; empty for none.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._log = os.open(environ["WHERRY_FAULT_LOG"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        self._number = int(environ.get("WHERRY_FAULT_POINT", "0"))
        self._key = environ.get("WHERRY_FAULT_AT", "")
        deaths = environ.get("WHERRY_FAULT_DEATHS")
        self._deaths = set(Path(deaths).read_text().splitlines()) if deaths else None
        self._share = float(environ.get("WHERRY_FAULT_SHARE", "1"))
        self.lost = environ.get("WHERRY_FAULT_LOST", "")
        self._lock = threading.Lock()
        self._passed: Counter[str] = Counter()
        self.phase = "boot"

    def passes(self, label: str) -> None:
        """One point."""
        with self._lock:
            place = f"{self.phase} | {label}"
            self._passed[place] += 1
            key = f"{place} | {self._passed[place]}"
            os.write(self._log, f"{key}\n".encode())
            if self._fatal(key, self._passed[place]):
                os.kill(os.getpid(), signal.SIGKILL)
                threading.Event().wait()

    def close(self) -> None:
        """Close the log; a process that dies does without."""
        os.close(self._log)

    def _fatal(self, key: str, times: int) -> bool:
        if self._deaths is not None:
            return times <= OFTEN and key not in self._deaths and zlib.crc32(key.encode()) % 1000 < self._share * 1000
        return key == self._key or self._passed.total() == self._number

    def around(self, label: str, call: Callable[..., Any], named: bool = False) -> Callable[..., Any]:
        """A call with a point before and one after it; `named`: its label says which file it is about."""

        @functools.wraps(call)
        def wrapped(*arguments: Any, **options: Any) -> Any:
            full = f"{label} {_subject(arguments)}" if named else label
            self.passes(f"before {full}")
            result = None if self.lost == label else call(*arguments, **options)
            self.passes(f"after {full}")
            return result

        return wrapped


def _subject(arguments: tuple[Any, ...]) -> str:
    """Name of the file that a call is about, without what differs from life to life."""
    last = arguments[-1]
    try:
        path = Path(f"/proc/self/fd/{last}").readlink() if isinstance(last, int) else Path(str(last))
    except OSError:
        return ""
    return _CHANCE.sub("N", path.name)


def _wrap_databases(points: Points) -> None:
    connect = sqlite3.connect

    class Counted(sqlite3.Connection):
        label = ""

        def execute(self, sql: str, *rest: Any) -> sqlite3.Cursor:
            if sql != "COMMIT":
                return super().execute(sql, *rest)
            points.passes(f"before commit of {self.label}")
            left_out = points.lost == f"commit of {self.label}"
            done = super().execute("ROLLBACK" if left_out else sql)
            points.passes(f"after commit of {self.label}")
            return done

    def counted(path: Any, **options: Any) -> sqlite3.Connection:
        database: Any = connect(path, factory=Counted, **options)
        database.label = Path(path).name
        return database  # type: ignore[no-any-return]

    sqlite3.connect = counted  # type: ignore[assignment]


def _wrap_journal(points: Points) -> None:
    """Points know the phase that the journal holds; a commit's own points are of the phase before it."""
    from wherry_agent.journal import Journal

    opened, kept = Journal.__init__, Journal.keep

    def opens(journal: Journal, *arguments: Any, **options: Any) -> None:
        opened(journal, *arguments, **options)
        points.phase = _phase(journal.entry)

    def keeps(journal: Journal, entry: Entry) -> Entry:
        found = kept(journal, entry)
        points.phase = _phase(found)
        return found

    Journal.__init__, Journal.keep = opens, keeps  # type: ignore[method-assign, assignment]


def _phase(entry: Entry) -> str:
    deployment = next((slot.deployment for slot in entry.slots.values()), None)
    return str(deployment.phase) if deployment else "empty"


def _wrap(points: Points) -> None:
    for name in _CALLS:
        setattr(os, name, points.around(name, getattr(os, name), named=name != "ftruncate"))
    _wrap_databases(points)
    _wrap_journal(points)
    from wherry_agent.containers import DockerEngine
    from wherry_agent.fetch import registry
    from wherry_agent.prober import HttpProber
    from wherry_agent.route.haproxy import HaproxyRoute
    from wherry_agent.route.kernel import KernelRoute

    adapters = {"engine": DockerEngine, "kernel": KernelRoute, "haproxy": HaproxyRoute, "probe": HttpProber}
    for kind, adapter in adapters.items():
        for name, call in list(vars(adapter).items()):
            if callable(call) and not name.startswith("_"):
                setattr(adapter, name, points.around(f"{kind} {name}", call))
    tally: Any = registry._Tally
    tally.add = points.around("pull progress", tally.add)


def _steady_sleep() -> None:
    """Sleep by select: libfaketime 0.9.10 breaks the absolute clock_nanosleep that Python sleeps by."""

    def sleep(seconds: Any) -> None:
        select.select([], [], [], max(0.0, float(seconds)))

    time.sleep = sleep


def main() -> int:
    """Wrap, then be the agent."""
    if "FAKETIME_TIMESTAMP_FILE" in os.environ:
        _steady_sleep()
    _wrap(Points(os.environ))
    from wherry_agent.app import main as agent

    return agent()


if __name__ == "__main__":
    sys.exit(main())
