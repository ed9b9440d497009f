"""Numbers and times as people read them. Pure."""

from __future__ import annotations

from datetime import datetime

NOTHING = "\N{EN DASH}"
_TONES = {
    "committed": "good", "completed": "good", "running": "busy", "assigned": "busy", "pending": "quiet",
    "paused": "warn", "rejected": "bad", "refused": "bad", "failed": "bad", "misfit": "warn",
    "superseded": "quiet", "aborted": "quiet", "removed": "quiet", "rolling_back": "warn",
}  # fmt: skip
STATE_ORDER = ("committed", "running", "assigned", "pending", "misfit", "superseded", "refused", "rejected")
"""States of a rollout's targets, from left to right in its bar."""
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


def age(when: datetime | None, now: datetime) -> str:
    """How long ago: `now`, `12 s ago`, `3 h ago`; `never` for None."""
    if when is None:
        return "never"
    seconds = max(0, int((now - when).total_seconds()))
    for size, unit in _UNITS:
        if seconds >= size and (size > 1 or seconds > 2):
            return f"{seconds // size} {unit} ago"
    return "now"


def milliseconds(microseconds: int | None) -> str:
    """A latency: `0.42 ms`, `12 ms`, `1.3 s`."""
    if microseconds is None:
        return NOTHING
    if microseconds >= 1_000_000:
        return f"{microseconds / 1e6:.1f} s"
    value = microseconds / 1000
    return f"{value:.2f} ms" if value < 10 else f"{value:.0f} ms"


def size(count: int) -> str:
    """Bytes: `512 MB`, `7.6 GB`."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if value >= 100 or unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def number(count: int) -> str:
    """A count with thin spaces: `12 345`."""
    return f"{count:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def percent(part: float, whole: float) -> int:
    """Part of a whole, 0 to 100."""
    return round(100 * min(1.0, max(0.0, part / whole))) if whole else 0


def duration(seconds: float) -> str:
    """A length of time: `0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 else "")
    if whole < 86_400:
        return f"{whole // 3600} h" + (f" {whole % 3600 // 60} min" if whole % 3600 // 60 else "")
    return f"{whole // 86_400} d" + (f" {whole % 86_400 // 3600} h" if whole % 86_400 // 3600 else "")


def tone(state: str) -> str:
    """The colour class of a state or phase: good, busy, warn, bad or quiet. Phases on the way are busy."""
    return _TONES.get(state, "busy")


def phase_words(phase: str) -> str:
    """A phase as people say it."""
    return phase.replace("_", " ")


def clock_time(when: datetime) -> str:
    """A time of day with its date, UTC: `1 Mar 12:00:05`."""
    return f"{when.day} {when:%b %H:%M:%S}"
