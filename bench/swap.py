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
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from inference import free_port  # noqa: E402  the lab's folder must be on the path first
from lab import Lab, LabError, Ports  # noqa: E402
from swap_figures import Recording, Window, bad_release_figures, swap_figures  # noqa: E402
from swap_load import RATE, WORKERS, under_load  # noqa: E402
from swap_methods import Compose, Method, StopAndRun, Unavailable, answering, wait_until  # noqa: E402
from swap_swarm import Swarm, SwarmStopFirst, has_ipvs  # noqa: E402
from swap_wherry import BAD, Wherry  # noqa: E402

BLOCK = 5
"""Swaps of one method before the next has its turn."""
QUIET, SETTLE = 4.0, 3.0
"""Seconds between swaps, for the p99 outside them; and after a swap, which the old version ends in."""
OPERATOR_SECONDS = 10.0
"""How soon an operator of a peer is taken to notice wrong answers and to give the command back. Assumed, kindly."""
AIMS = {"failed": "0", "p99_ratio": "at most 2"}
NOTES = [
    f"Each swap counts from the operator's command until the new version answers, and {SETTLE:.0f} s more for the old "
    "one to end in; 'outside' is the time between swaps. A gap is the longest time between two good answers.",
    "Failed is everything but a right answer: refused, reset, cut off, timed out (10 s), not 200, wrong.",
    f"Bad release: a peer has nothing that looks at answers, so wrong ones are counted until an operator notices, "
    f"taken to be {OPERATOR_SECONDS:.0f} s after the first wrong one (or when the tool is done, if later; assumed, not "
    "measured: it may be days), and has put the old version back with the same tool. Wherry's time to verdict is "
    "measured. Back is the time from the verdict to the next right answer after the last wrong one; a gap, here, is "
    "the longest time without a right answer.",
    "One machine holds callers, engine, registry, server, broker, agent and the operator's tool: a swap takes "
    "processor time from its own callers as no separate machines would. Trust ratios within one run.",
]


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
            time.sleep(QUIET)
            begin = time.monotonic()
            method.swap(version)
            wait_until(lambda: answering(method.port) == version, f"{method.name}: {version} does not answer")  # noqa: B023
            done = time.monotonic()
            time.sleep(SETTLE)
            windows.append(Window(begin, done, time.monotonic()))
        time.sleep(QUIET)
        return Recording(load.stop(), windows)


def bad_release(method: Method, before: str, out: Path) -> dict[str, Any]:
    """Bring the bad release; where nothing refuses it, an operator puts the old version back."""
    with under_load(method.port, out) as load:
        time.sleep(QUIET)
        begin = time.monotonic()
        first_seen = Watch(lambda: answering(method.port) == BAD)
        verdict = method.bad(BAD)
        noticed_by = "its own gate"
        if verdict is None:
            wait_until(lambda: first_seen.at is not None, f"{method.name}: the bad release does not answer")
            time.sleep(max(0.0, (first_seen.at or begin) + OPERATOR_SECONDS - time.monotonic()))
            verdict, noticed_by = time.monotonic(), f"an operator, assumed after {OPERATOR_SECONDS:.0f} s"
            method.swap(before)
            wait_until(lambda: answering(method.port) == before, f"{method.name}: {before} does not answer again")
        time.sleep(QUIET)
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
                    bad = bad_release(method, versions[-1], folder / "answers.json") if last else {}
            except Unavailable as reason:
                found[method.name] = {"how": method.how, "not_measured": str(reason)}
                print(f"  not measured: {reason}", flush=True)
                continue
            found[method.name] = {"how": method.how, **swap_figures(recordings[method.name]), "bad_release": bad}
            _say(found[method.name])
    return found


def _say(figures: dict[str, Any]) -> None:
    shown = ("sent", "failed", "gap_ms", "p99_ms", "p99_outside_ms")
    print("  " + ", ".join(f"{name} {figures[name]}" for name in shown), flush=True)


COLUMNS = {
    "sent": "sent", "failed": "failed", "failed_kept_connections": "kept", "failed_new_connections": "new",
    "gap_ms": "gap ms", "gap_outside_ms": "outside", "p99_ms": "p99 ms", "p99_outside_ms": "outside",
    "p99_ratio": "ratio", "swap_s_median": "swap s",
}  # fmt: skip
BAD_COLUMNS = {"wrong": "wrong", "failed": "failed", "verdict_s": "verdict s", "back_ms": "back ms", "gap_ms": "gap ms"}


def table(columns: dict[str, str], rows: dict[str, dict[str, Any]]) -> list[str]:
    """Lines of a table with one method a line."""
    lines = [f"{'':<24}" + "".join(f"{title:>11}" for title in columns.values())]
    for name, row in rows.items():
        cells = ("-" if row.get(key) is None else f"{row[key]:,}" for key in columns)
        lines.append(f"{name:<24}" + "".join(f"{cell:>11}" for cell in cells))
    return lines


def report(found: dict[str, dict[str, Any]], load_average: float) -> dict[str, Any]:
    """Print what was found; what the file holds."""
    measured = {name: figures for name, figures in found.items() if "not_measured" not in figures}
    print("\nSwaps under load", *table(COLUMNS, measured), sep="\n")
    print(f"aim for wherry: {', '.join(f'{name} {aim}' for name, aim in AIMS.items())} (of 40,000 in 20 swaps)")
    print(
        "\nA bad release", *table(BAD_COLUMNS, {name: one["bad_release"] for name, one in measured.items()}), sep="\n"
    )
    for name, figures in found.items():
        print(f"{name}: {figures['how']}. " + (f"NOT MEASURED: {figures.get('not_measured')}" if name not in measured
              else f"Bad release noticed by {figures['bad_release']['noticed_by']}."))  # fmt: skip
    print("\n" + "\n".join(f"- {note}" for note in NOTES))
    print(f"- Load average of this machine ({os.cpu_count()} processors) when it began: {load_average:.1f}.")
    return {
        "at": datetime.now(UTC).isoformat(),
        "machine": {
            "processors": os.cpu_count(), "kernel": platform.release(), "ipvs": has_ipvs(),
            "load_average_before": round(load_average, 2), "load_average_after": round(os.getloadavg()[0], 2),
        },
        "load": {"per_second": RATE, "workers": WORKERS, "kept_connections": WORKERS // 2, "retries": 0},
        "aims": AIMS,
        "notes": NOTES,
        "wherry": found.pop("wherry", {}),
        "peers": found,
    }  # fmt: skip


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
        peers = [peer(lab, images, free_port(), unique) for peer in (StopAndRun, Compose, Swarm, SwarmStopFirst)]
        written = report(measure([wherry, *peers], count, folder), load_average)
    except (LabError, RuntimeError) as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    finally:
        lab.stop()
    target = ROOT / "build" / "bench-swap.json"
    target.write_text(json.dumps(written, indent=2) + "\n")
    return 1 if written["wherry"]["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
