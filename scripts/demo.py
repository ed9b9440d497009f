"""The main job, end to end, on real parts, told chapter by chapter; the result is in build/demo.json.

`--once` stops everything at the end, `--stop` only stops what an earlier run left. Every chapter works
through the public commands of `wherry`, `wherry-server` and `wherry-agent`; only the attack is done by hand.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
import traceback
from datetime import UTC, datetime
from typing import Any

from demo_chapters import MODEL, Demo
from lab import ROOT, Lab
from rich.console import Console
from story import Story, StoryError

FOLDER = ROOT / "build" / "demo"
REPORT = ROOT / "build" / "demo.json"


def write_report(story: Story, ok: bool) -> None:
    """Write build/demo.json."""
    releases: Any = {}
    if ok:
        releases = story.lab.json("wherry", "release", "list")
    report = {
        "ok": ok,
        "at": datetime.now(UTC).isoformat(),
        "chapters": story.chapters,
        "requests": story.facts.get("requests", {"sent": 0, "failed": 0}),
        "releases": {f"{item['model']} {item['version']}": item for item in releases.get("items", [])},
        "telemetry": story.facts.get("telemetry", {}),
    }
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=2) + "\n")


def main() -> int:
    """Tell the story; the exit code is 1 when a chapter fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--once", action="store_true", help="stop everything at the end")
    parser.add_argument("--stop", action="store_true", help="only stop what an earlier run left running")
    options = parser.parse_args()
    console, lab = Console(), Lab(FOLDER)
    if FOLDER.exists():
        lab.stop(keep=options.stop)
    if options.stop:
        console.print("Stopped. State and logs are kept in build/demo until the next run.")
        return 0
    shutil.rmtree(FOLDER, ignore_errors=True)
    story, began, ok = Story(lab, console), time.monotonic(), False
    try:
        Demo(story).tell()
        ok = True
    except (StoryError, KeyboardInterrupt) as error:
        console.print(f"\n[red bold]{error or 'interrupted'}[/]. Logs are in build/demo/log.", highlight=False)
    except Exception:
        traceback.print_exc()
    write_report(story, ok)
    requests = story.facts.get("requests", {})
    if ok:
        console.print(
            f"\n[bold green]All {len(story.chapters)} chapters went well[/] in {time.monotonic() - began:.0f} s. "
            f"{requests['sent']} requests, {requests['failed']} failed, longest gap {requests['longest_gap_ms']} ms. "
            "Details: build/demo.json",
            highlight=False,
        )
    if options.once:
        lab.stop()
    elif ok:
        token = (lab.folder / "server" / "admin.token").read_text().strip()
        console.print(
            f"\n  Dashboard   {lab.server_url}/   (sign in with {token})\n"
            f"  The model   {lab.slot_url}/v2/models/{MODEL}\n"
            "  Stop it     make demo-stop\n",
            highlight=False,
            soft_wrap=True,
        )
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
