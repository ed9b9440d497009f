"""Programs of a board's maker that tell what no file tells. The only place of this package that starts one."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

_FOLDERS = ("usr/bin", "usr/sbin", "usr/local/bin", "opt/vc/bin")
_LIMIT = 16_384


class Program:
    """A program that is asked rarely, because starting one costs more than all files of a sample.

    Args:
        root: below it the program is looked for.
        name: of the program.
        arguments: fixed.
        every: seconds for which an answer is kept.
        seconds: it is ended after that; what it has printed by then counts (tegrastats never ends by itself).
        steady: a clock that nobody sets.
    """

    def __init__(
        self,
        root: Path,
        name: str,
        arguments: Sequence[str],
        every: float,
        seconds: float = 2.0,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._paths = tuple(root / folder / name for folder in _FOLDERS)
        self._arguments = tuple(arguments)
        self._every = every
        self._seconds = seconds
        self._steady = steady
        self._answer = ""
        self._due = float("-inf")

    def text(self) -> str:
        """What it printed when it was last asked; empty when there is no such program here."""
        now = self._steady()
        if now >= self._due:
            self._due = now + self._every
            self._answer = self._run()
        return self._answer

    def _run(self) -> str:
        path = next((path for path in self._paths if path.is_file()), None)
        if path is None:
            return ""
        try:
            done = subprocess.run(
                [path, *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=self._seconds,
                check=False,
            )
            printed = done.stdout
        except subprocess.TimeoutExpired as slow:
            printed = slow.output or b""
        except OSError:
            printed = b""
        return printed[:_LIMIT].decode("utf-8", errors="replace")
