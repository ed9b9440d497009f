"""How the results of `make bench-swap` are said: a table for people, a document for programs."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from swap_load import RATE, WORKERS
from swap_swarm import has_ipvs

OPERATOR_SECONDS = 10.0
"""How soon an operator of a peer is taken to notice wrong answers and to give the command back. Assumed, kindly."""
FLOOR = "start_beside"
"""No swap: only the start and end of a second model server beside the first."""
AIMS = {"failed": "0", "p99_ratio": "at most 2"}
NOTES = [
    "Each swap counts from the operator's command until the new version answers, and longer where the old one ends "
    "after that: 6 s where the new one starts first, 1 s elsewhere. 'Outside' is the time between swaps. A gap is the "
    "longest time between two good answers.",
    "Failed is everything but a right answer: refused, reset, cut off, timed out (10 s), not 200, wrong.",
    f"Bad release: a peer has nothing that looks at answers, so wrong ones are counted until an operator notices, "
    f"taken to be {OPERATOR_SECONDS:.0f} s after the first wrong one (or when the tool is done, if later; assumed, not "
    "measured: it may be days), and has put the old version back with the same tool. Wherry's time to verdict is "
    "measured. Back is the time from the verdict to the next right answer after the last wrong one; a gap, here, is "
    "the longest time without a right answer.",
    f"{FLOOR} is the floor: no swap, but a second model server starts and ends beside the one that answers, as it must "
    "for everybody who keeps the old version answering.",
    "One machine holds callers, engine, registry, server, broker, agent and the operator's tool: a swap takes "
    "processor time from its own callers as no separate machines would. Trust ratios within one run.",
]
COLUMNS = {
    "sent": "sent", "failed": "failed", "failed_kept_connections": "kept", "failed_new_connections": "new",
    "gap_ms": "gap ms", "gap_outside_ms": "outside", "p99_ms": "p99 ms", "p99_outside_ms": "outside",
    "p99_ratio": "ratio", "swap_s_median": "swap s",
}  # fmt: skip
BAD_COLUMNS = {"wrong": "wrong", "failed": "failed", "verdict_s": "verdict s", "back_ms": "back ms", "gap_ms": "gap ms"}


def table(columns: Mapping[str, str], rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines of a table with one method a line."""
    lines = [f"{'':<24}" + "".join(f"{title:>11}" for title in columns.values())]
    for name, row in rows.items():
        cells = ("-" if row.get(key) is None else f"{row[key]:,}" for key in columns)
        lines.append(f"{name:<24}" + "".join(f"{cell:>11}" for cell in cells))
    return lines


def say(found: Mapping[str, Mapping[str, Any]], load_average: float) -> None:
    """Print what was found, and how far it can be trusted."""
    measured = {name: figures for name, figures in found.items() if "not_measured" not in figures}
    print("\nSwaps under load", *table(COLUMNS, measured), sep="\n")
    print(f"aim for wherry: {', '.join(f'{name} {aim}' for name, aim in AIMS.items())} (of 40,000 in 20 swaps)")
    bad = {name: figures["bad_release"] for name, figures in measured.items() if figures["bad_release"]}
    print("\nA bad release", *table(BAD_COLUMNS, bad), sep="\n")
    print()
    for name, figures in found.items():
        print(f"{name}: {figures['how']}.")
        if name not in measured:
            print(f"  NOT MEASURED: {figures['not_measured']}.")
        if name in bad:
            print(f"  The bad release was noticed by {bad[name]['noticed_by']}.")
    print()
    for note in NOTES:
        print(f"- {note}")
    print(f"- Load average of this machine ({os.cpu_count()} processors) when it began: {load_average:.1f}.")


def document(found: Mapping[str, Mapping[str, Any]], load_average: float) -> dict[str, Any]:
    """What build/bench-swap.json holds."""
    return {
        "at": datetime.now(UTC).isoformat(),
        "machine": {
            "processors": os.cpu_count(), "kernel": platform.release(), "ipvs": has_ipvs(),
            "load_average_before": round(load_average, 2), "load_average_after": round(os.getloadavg()[0], 2),
        },
        "load": {"per_second": RATE, "workers": WORKERS, "kept_connections": WORKERS // 2, "retries": 0},
        "aims": AIMS,
        "notes": NOTES,
        "wherry": found["wherry"],
        "floor": found[FLOOR],
        "peers": {name: figures for name, figures in found.items() if name not in ("wherry", FLOOR)},
    }  # fmt: skip
