"""What a container wrote, as an answer carries it: bounded, and safe to show in a terminal. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from wherry.questions import LOG_LINE_CHARS, REPLY_BYTES, LogLine
from wherry_agent.observed import ActiveSlot, Container

_STAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d) ?")
_COLOUR = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_PER_LINE = 100
"""Bytes that a line's instant, version and punctuation take in an answer."""


def log_lines(raw: bytes, version: str, since: datetime | None, most: int) -> tuple[list[LogLine], bool]:
    """The newest lines of a log, oldest first, and whether there were more.

    Args:
        raw: lines that begin with their instant, as the engine writes them.
        version: of the release whose container wrote them.
        since: only lines written after this instant.
        most: lines; the answer's bytes are bounded as well.
    """
    found: list[LogLine] = []
    for line in raw.decode("utf-8", "replace").split("\n"):
        stamp = _STAMP.match(line)
        at = _instant(stamp) if stamp else None
        if stamp is None or at is None or (since is not None and at <= since):
            continue
        found.append(LogLine(at=at, text=_plain(line[stamp.end() :]), version=version))
    kept = _newest(found[-most:] if most else [])
    return kept, len(kept) < len(found)


def _newest(lines: Sequence[LogLine]) -> list[LogLine]:
    room, kept = REPLY_BYTES, 0
    for line in reversed(lines):
        # As JSON counts: what must be escaped there takes more bytes than it has here.
        room -= len(json.dumps(line.text, ensure_ascii=False).encode()) + _PER_LINE
        if room < 0:
            break
        kept += 1
    return list(lines[len(lines) - kept :])


def _instant(stamp: re.Match[str]) -> datetime | None:
    day, fraction, zone = stamp.groups()
    try:
        found = datetime.fromisoformat(f"{day}.{(fraction or '0')[:6]:0<6}{zone.replace('Z', '+00:00')}")
    except ValueError:
        return None
    return found.astimezone(UTC)


def _plain(text: str) -> str:
    """Without what would steer the reader's terminal."""
    plain = _CONTROL.sub("", _COLOUR.sub("", text[: 4 * LOG_LINE_CHARS]))
    return plain if len(plain) <= LOG_LINE_CHARS else plain[: LOG_LINE_CHARS - 1] + "…"


def container_to_read(
    slot: str, containers: Mapping[str, Container], active: Sequence[ActiveSlot]
) -> Container | None:  # fmt: skip
    """The container that serves a slot; the newest release's when none does."""
    mine = [container for container in containers.values() if container.slot == slot]
    addresses = [found.base_url for found in active if found.slot == slot]
    for address in reversed(addresses):  # the last one is what new callers reach
        for container in mine:
            if container.running and address.endswith(f":{container.port}"):
                return container
    return max(mine, key=_counter, default=None)


def _counter(container: Container) -> int:
    tail = container.name.rpartition(".")[2]
    return int(tail) if tail.isdigit() else 0
