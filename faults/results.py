"""What a sweep has found: build/faults.json, the code it was found with, and the table of it."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults import ROOT

GROUPS = ("Crash", "Disk", "Engine", "Registry", "MQTT", "Time", "Server")
_TAKES_PART = ("wherry", "agent", "server/wherry_server", "serving", "cli", "faults", "scripts")
_COLUMNS = ("inject.", "kills", "checks", "sent", "failed", "by fault", "wrong", "gap ms")
_COUNTS = (
    "injections", "kill_points", "checks", "sent", "failed_requests", "failed_by_fault", "wrong_answers",
    "longest_gap_ms",
)  # fmt: skip
_OUTCOME_CHARS = 120

Document = dict[str, Any]


@dataclass(frozen=True)
class Code:
    """Which code a row is about.

    Attributes:
        commit: for people; with a plus sign where files differ from it.
        digest: of every program file that takes part, so that a page of the docs makes no row old.
    """

    commit: str
    digest: str

    @classmethod
    def here(cls) -> Code:
        """Of this tree."""
        digest = hashlib.sha256()
        for path in sorted(path for folder in _TAKES_PART for path in (ROOT / folder).rglob("*.py")):
            digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
        git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"]
        said = subprocess.run(git, capture_output=True, text=True, check=False)
        return cls(said.stdout.strip() or "unknown", digest.hexdigest()[:12])


def read(path: Path) -> list[Document]:
    """Rows of an earlier run; none where there is no file of that kind."""
    try:
        return [row for row in json.loads(path.read_text())["faults"] if row["group"] in GROUPS]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def still_true(rows: Iterable[Document], code: Code, scale: float) -> tuple[list[Document], list[Document]]:
    """Rows that tell of this code, at no smaller scale; and those that do not."""
    good: list[Document] = []
    old: list[Document] = []
    for row in rows:
        fits = row.get("code") == code.digest and row.get("scale", 0) >= scale
        (good if fits else old).append(row)
    return good, old


def write(path: Path, rows: Iterable[Document]) -> None:
    """Replace the file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps({"faults": list(rows)}, indent=1) + "\n")
    fresh.replace(path)


def line(row: Document, number: int, total: int) -> str:
    """One row, as it is printed when its fault is through."""
    return (
        f"[{number}/{total}] {_mark(row):8} {row['group']} {row['name']}: {row['injections']} injections, "
        f"{row['kill_points']} kills, {row['checks']} checks, {_failed(row)} of {row['sent']} requests failed, "
        f"{row['wrong_answers']} wrong ({row['seconds']:.0f} s)" + ("" if row["ok"] else f"\n    {row['outcome']}")
    )


def _mark(row: Document) -> str:
    return "ok" if row["ok"] else "NOT DONE" if row["not_done"] else "FAILED"


def _failed(row: Document) -> str:
    if not row["failed_requests"]:
        return "0"
    return f"{row['failed_requests']} ({row['failed_by_fault']} by the fault itself)"


def table(rows: Sequence[Document]) -> str:
    """What was injected and what came of it, group by group; then the sum of it."""
    lines = [("fault", *_COLUMNS, "outcome")]
    ordered = sorted(rows, key=lambda row: (GROUPS.index(row["group"]), int(row["name"].split()[0]), row["name"]))
    for row in ordered:
        mark = "" if row["ok"] else f"{_mark(row)}: "
        counts = (f"{row[key]:,}" if row[key] else "-" for key in _COUNTS)
        lines.append((row["name"], *counts, (mark + row["outcome"])[:_OUTCOME_CHARS]))
    widths = [max(len(cells[column]) for cells in lines) for column in range(len(_COLUMNS) + 1)]
    text = [_aligned(lines[0], widths)]
    group = None
    for row, cells in zip(ordered, lines[1:], strict=True):
        if row["group"] != group:
            group = row["group"]
            text.append(f"\n{group}")
        text.append(_aligned(cells, widths))
    return "\n".join([*text, "", *_allowances(ordered), _sum(rows)])


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    name, *counts, outcome = cells
    numbers = (count.rjust(width) for count, width in zip(counts, widths[1:], strict=True))
    return "  ".join([name.ljust(widths[0]), *numbers, outcome]).rstrip()


def _allowances(rows: Iterable[Document]) -> list[str]:
    found = [f"  {row['name']}: {row['allowed']}" for row in rows if row["allowed"]]
    return ["Requests that may fail, because nobody could answer them; any other fails its fault:", *found, ""]


def _sum(rows: Sequence[Document]) -> str:
    total = {key: sum(row[key] for row in rows) for key in _COUNTS}
    states: Mapping[str, int] = {
        mark: sum(_mark(row) == mark for row in rows) for mark in ("ok", "FAILED", "NOT DONE")
    }  # fmt: skip
    commits = sorted({str(row.get("commit") or "unknown") for row in rows})
    small = sum(row.get("scale", 0) < 1 for row in rows)
    words = [
        f"{len(rows)} faults: {states['ok']} ok, {states['FAILED']} failed, {states['NOT DONE']} not done here.",
        f"{total['injections']:,} injections, {total['kill_points']:,} kill points, {total['checks']:,} checks.",
        f"{total['failed_requests']:,} of {total['sent']:,} requests failed, {total['failed_by_fault']:,} of them by "
        f"the faults themselves; {total['wrong_answers']} answers were wrong.",
        f"Code: {', '.join(commits)}." + ("" if len(commits) == 1 else " THESE ROWS ARE OF DIFFERENT CODE."),
    ]
    if small:
        words.append(f"{small} of the faults were scaled down.")
    return "\n".join(words)
