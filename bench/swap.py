"""`make bench-swap`: what callers notice when a model is swapped; Wherry and its peers in one run.

A client that never retries asks 200 times a second, half on kept connections, half on a new one each time, and
checks every answer, while versions are swapped. Methods take turns in blocks, so that a noisy machine disturbs all
alike. Then each gets a release that starts, says it is healthy and answers wrongly. Writes build/bench-swap.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from lab import Lab, LabError, Ports  # noqa: E402
from ports import free_port  # noqa: E402  the lab's folder must be on the path first
from swap_figures import Recording, Window, bad_release_figures, swap_figures  # noqa: E402
from swap_load import under_load  # noqa: E402
from swap_methods import Compose, Method, StartBeside, StopAndRun, Unavailable, wait_until  # noqa: E402
from swap_report import FLOOR, OPERATOR_SECONDS, document, say  # noqa: E402
from swap_swarm import Swarm, SwarmStopFirst  # noqa: E402
from swap_wherry import BAD, Wherry  # noqa: E402

BLOCK = 5
"""Swaps of one method before the next has its turn."""
QUIET_SECONDS = 3.0
"""Between swaps, for the p99 outside them."""


class Watch:
    """Looks, beside everything else, for the first moment at which something holds."""

    def __init__(self, holds: Callable[[], bool]) -> None:
        self.at: float | None = None
        self._over = threading.Event()
        self._holds = holds
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while self.at is None and not self._over.wait(0.1):
            if self._holds():
                self.at = time.monotonic()

    def end(self) -> None:
        """Look no longer."""
        self._over.set()
        self._thread.join(5)


@contextlib.contextmanager
def standing(method: Method, version: str) -> Iterator[Method]:
    """A method that serves a version, and is taken down again whatever happens."""
    try:
        method.up(version)
        yield method
    finally:
        method.down()


def swaps(method: Method, versions: Sequence[str], out: Path) -> Recording:
    """Swap to each version in turn, under one unbroken load."""
    windows = []
    with under_load(method.port, out) as load:
        for version in versions:
            time.sleep(QUIET_SECONDS)
            begin = time.monotonic()
            method.swap(version)
            wait_until(partial(method.answers, version), f"{method.name}: {version} does not answer")
            done = time.monotonic()
            time.sleep(method.settle)
            windows.append(Window(begin, done, time.monotonic()))
        time.sleep(QUIET_SECONDS)
        return Recording(load.stop(), windows)


def bad_release(method: Method, before: str, out: Path) -> dict[str, Any]:
    """Bring the bad release; where nothing refuses it, an operator puts the old version back."""
    with under_load(method.port, out) as load:
        time.sleep(QUIET_SECONDS)
        begin = time.monotonic()
        first_seen = Watch(partial(method.answers, BAD))
        verdict = method.bad(BAD)
        noticed_by = "its own gate"
        if verdict is None:
            wait_until(lambda: first_seen.at is not None, f"{method.name}: the bad release does not answer")
            time.sleep(max(0.0, (first_seen.at or begin) + OPERATOR_SECONDS - time.monotonic()))
            verdict, noticed_by = time.monotonic(), f"an operator, assumed after {OPERATOR_SECONDS:.0f} s"
            method.swap(before)
            wait_until(partial(method.answers, before), f"{method.name}: {before} does not answer again")
        time.sleep(QUIET_SECONDS)
        answers = load.stop()
        first_seen.end()
    return {"noticed_by": noticed_by, **bad_release_figures(answers, begin, verdict, BAD)}


def measure(methods: Sequence[Method], count: int, folder: Path) -> dict[str, dict[str, Any]]:
    """All methods in turns; what each gave, or why it could not run."""
    recordings: dict[str, list[Recording]] = {method.name: [] for method in methods}
    found: dict[str, dict[str, Any]] = {}
    blocks = [min(BLOCK, count - done) for done in range(0, count, BLOCK)]
    for number, size in enumerate(blocks):
        for method in methods:
            if "not_measured" in found.get(method.name, {}):
                continue
            print(f"block {number + 1} of {len(blocks)}: {method.name}, {size} swaps …", flush=True)
            last = number + 1 == len(blocks)
            try:
                with standing(method, "0"):
                    versions = [str(version) for version in range(1, 1 + size)]
                    recordings[method.name].append(swaps(method, versions, folder / "answers.json"))
                    wanted = last and method.name != FLOOR
                    bad = bad_release(method, versions[-1], folder / "answers.json") if wanted else {}
            except (Unavailable, LabError, RuntimeError) as reason:
                if method.name == "wherry":
                    raise
                found[method.name] = {"how": method.how, "not_measured": str(reason)}
                print(f"  not measured: {reason}", flush=True)
                continue
            found[method.name] = {"how": method.how, **swap_figures(recordings[method.name]), "bad_release": bad}
            _say(found[method.name])
    return found


def _say(figures: dict[str, Any]) -> None:
    shown = ("sent", "failed", "gap_ms", "p99_ms", "p99_outside_ms")
    print("  " + ", ".join(f"{name} {figures[name]}" for name in shown), flush=True)


def main() -> int:
    """Measure, print, write; 1 when a request of Wherry's failed or a part did not work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swaps", type=int, default=20, help="of each method; default 20")
    count = parser.parse_args().swaps
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # clean up then, too
    load_average = os.getloadavg()[0]
    unique = f"bench-swap-{os.getpid()}"
    folder = ROOT / "build" / "bench" / "swap"
    lab = Lab(folder, Ports.free(), device=unique)
    wherry = Wherry(lab, 1 + min(count, BLOCK))
    try:
        print("starting registry, broker, server and agent; publishing releases …", flush=True)
        images = wherry.prepare()
        kinds = (StartBeside, StopAndRun, Compose, Swarm, SwarmStopFirst)
        others = [kind(lab, images, free_port(), unique) for kind in kinds]
        found = measure([wherry, *others], count, folder)
    except (LabError, RuntimeError) as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    finally:
        lab.stop()
    target = ROOT / "build" / "bench-swap.json"
    target.write_text(json.dumps(document(found, load_average), indent=2) + "\n")
    say(found, load_average)
    return 1 if found["wherry"]["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
