"""The real agent, told to die at a chosen point: `python -m faults.hooked run --state DIR`.

Before the program starts, its calls to the outside are wrapped: engine, registry pull and its progress lines, packet
filter, inference probes, database commits, fsync, rename and unlink. Each call is two points, one before it and one
after it took effect. At point number WHERRY_FAULT_POINT the process kills itself with SIGKILL. Every point that is
passed is written to WHERRY_FAULT_LOG, so that a sweep knows where it killed and how many points there are.

The wrapped program is the one that ships, started through its own `main`.
"""

from __future__ import annotations

import functools
import os
import select
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_CALLS = ("fsync", "replace", "rename", "unlink", "ftruncate")
_ENGINE = (
    "inspect", "has_image", "create", "start", "stop", "restart_policy", "remove", "remove_image", "read_file",
)  # fmt: skip


class Points:
    """Counts points from all threads and ends the process at one of them.

    Args:
        kill_at: number of the fatal point; 0 for none.
        log: where the points go, one a line.
        lost: label of a call that is left out, to prove that the sweep notices; empty for none.
    """

    def __init__(self, kill_at: int, log: Path, lost: str) -> None:
        self._kill_at = kill_at
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        self._lock = threading.Lock()
        self._passed = 0
        self.lost = lost

    def passes(self, label: str) -> None:
        """One point."""
        with self._lock:
            self._passed += 1
            os.write(self._log, f"{label}\n".encode())
            if self._passed == self._kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
                threading.Event().wait()

    def around(self, label: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """A call with a point before and one after it."""

        @functools.wraps(call)
        def wrapped(*arguments: Any, **named: Any) -> Any:
            self.passes(f"before {label}")
            result = None if self.lost == label else call(*arguments, **named)
            self.passes(f"after {label}")
            return result

        return wrapped


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


def _wrap(points: Points) -> None:
    for name in _CALLS:
        setattr(os, name, points.around(name, getattr(os, name)))
    _wrap_databases(points)
    from wherry_agent.containers import DockerEngine
    from wherry_agent.fetch import registry
    from wherry_agent.prober import HttpProber
    from wherry_agent.route.kernel import KernelRoute

    for name in _ENGINE:
        setattr(DockerEngine, name, points.around(f"engine {name}", getattr(DockerEngine, name)))
    for name in ("read", "apply"):
        setattr(KernelRoute, name, points.around(f"route {name}", getattr(KernelRoute, name)))
    for name in ("ready", "infer"):
        setattr(HttpProber, name, points.around(f"probe {name}", getattr(HttpProber, name)))
    tally: Any = registry._Tally
    tally.add = points.around("pull progress", tally.add)


def _steady_sleep() -> None:
    """Sleep by select: libfaketime 0.9.10 breaks the absolute clock_nanosleep that Python sleeps by."""

    def sleep(seconds: Any) -> None:
        select.select([], [], [], max(0.0, float(seconds)))

    time.sleep = sleep


def main() -> int:
    """Wrap, then be the agent."""
    environ = os.environ
    if "FAKETIME_TIMESTAMP_FILE" in environ:
        _steady_sleep()
    log = Path(environ["WHERRY_FAULT_LOG"])
    _wrap(Points(int(environ.get("WHERRY_FAULT_POINT", "0")), log, environ.get("WHERRY_FAULT_LOST", "")))
    from wherry_agent.app import main as agent

    return agent()


if __name__ == "__main__":
    sys.exit(main())
