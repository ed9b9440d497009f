"""Programs of a board's maker that tell what no file tells. The only place of this package that starts one."""

from __future__ import annotations

import os
import select
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
        seconds: it is ended after that; what it has printed by then counts.
        one_line: it is ended after its first line: tegrastats prints for ever.
        steady: a clock that nobody sets.
    """

    def __init__(
        self,
        root: Path,
        name: str,
        arguments: Sequence[str],
        every: float,
        seconds: float = 5.0,
        one_line: bool = False,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._paths = tuple(root / folder / name for folder in _FOLDERS)
        self._arguments = tuple(arguments)
        self._every = every
        self._seconds = seconds
        self._one_line = one_line
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
        command = [str(path), *self._arguments]
        try:
            with subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            ) as running:
                try:
                    return self._read(running).decode("utf-8", errors="replace")
                finally:
                    running.kill()
        except OSError:
            return ""

    def _read(self, running: subprocess.Popen[bytes]) -> bytes:
        printed, end = b"", self._steady() + self._seconds
        while len(printed) < _LIMIT and running.stdout and (left := end - self._steady()) > 0:
            ready, _, _ = select.select([running.stdout], [], [], left)
            part = os.read(running.stdout.fileno(), _LIMIT) if ready else b""
            printed += part
            if not part or (self._one_line and b"\n" in printed):
                break
        return printed
