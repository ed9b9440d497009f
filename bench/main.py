"""`make bench`: measures what Wherry costs, prints a table and writes build/bench.json.

Every figure is measured on this machine, in this run, next to its limit or a peer. Machines are noisy: trust
ratios, and differences within one run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import fleet  # noqa: E402  the lab's folder must be on the path first
import inference  # noqa: E402

AIMS = {
    "agent_rss_mb": "at most 64",
    "agent_cpu_percent": "at most 0.5",
    "rollout_overhead_s": "at most 1",
    "swap_failed": "0",
    "serving_added_us": "under 350",
    "serving_times_better_than_mlserver": "at least 3",
}


def main() -> int:
    """Measure what is asked for (default: everything)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts: dict[str, Callable[[], dict[str, float]]] = {"inference": inference.measure, "fleet": fleet.measure}
    parser.add_argument("parts", nargs="*", choices=[[], *parts], help="which parts; default all")
    wanted = parser.parse_args().parts or list(parts)
    figures: dict[str, float] = {}
    for name in wanted:
        print(f"measuring {name} …", flush=True)
        figures |= parts[name]()
    target = ROOT / "build" / "bench.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps({"at": datetime.now(UTC).isoformat(), **figures}, indent=2) + "\n")
    for name, value in figures.items():
        aim = f"aim: {AIMS[name]}" if name in AIMS else ""
        print(f"{name:<38} {value:>12,.2f}   {aim}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
