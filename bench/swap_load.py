"""The load of `make bench-swap`, in a process of its own: nothing that the bench does besides slows it down.

As a program (`swap_load.py PORT OUT`) it asks until its standard input closes, then writes every answer to OUT.
It runs before everything else on the machine, where it may: its own waiting for a processor would be taken for
the server's, for Wherry and for every peer alike.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT)]

from inference import FEATURES  # noqa: E402  the scripts' folder must be on the path first
from load import Answer, Load  # noqa: E402
from swap_figures import WRONG  # noqa: E402

from wherry.tensors import Tensor, tensor_from_values  # noqa: E402

MODEL, RATE, WORKERS = "tiny", 200.0, 16
RIGHT = (4.2, 4.6, 5.0)
"""What the tiny model makes of eight times 0.5."""


def sample() -> Tensor:
    """The one question."""
    return tensor_from_values("x", "FP32", [1, FEATURES], [0.5] * FEATURES)


def judge(outputs: list[Tensor]) -> str | None:
    """Whether the answer is right, number by number."""
    values = [float(value) for value in outputs[0].values()]
    near = len(values) == len(RIGHT) and all(abs(a - b) < 1e-3 for a, b in zip(values, RIGHT, strict=True))
    return None if near else f"{WRONG} {[round(value, 2) for value in values]}"


class Recorder:
    """A load that runs until `stop`."""

    def __init__(self, port: int, out: Path) -> None:
        argv = [sys.executable, __file__, str(port), str(out)]
        self._out = out
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"asking\n":
            raise RuntimeError("the load generator did not start")

    def stop(self) -> list[Answer]:
        """End the load; every answer, by the time it was sent."""
        self._process.communicate(timeout=60)
        if self._process.returncode:
            raise RuntimeError(f"the load generator ended with {self._process.returncode}")
        return sorted((Answer(*row) for row in json.loads(self._out.read_text())), key=lambda answer: answer.at)

    def abandon(self) -> None:
        """End it without an answer, if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


@contextlib.contextmanager
def under_load(port: int, out: Path) -> Iterator[Recorder]:
    """Requests keep coming until the recorder is stopped, at the latest at the end of the block."""
    recorder = Recorder(port, out)
    try:
        yield recorder
    finally:
        recorder.abandon()


def main() -> int:
    """Ask until standard input closes."""
    port, out = int(sys.argv[1]), Path(sys.argv[2])
    with contextlib.suppress(PermissionError):
        os.nice(-10)
    with Load("127.0.0.1", port, MODEL, [sample()], judge=judge, rate=RATE, workers=WORKERS) as load:
        print("asking", flush=True)
        sys.stdin.read()
    out.write_text(json.dumps([astuple(answer) for answer in load.answers]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
