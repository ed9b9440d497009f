"""Numbers and times as a reader says them. Pure."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from wherry.errors import InputError
from wherry.messages import Problem, ReleaseRef

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_VERBS = frozenset(
    {
        "is", "has", "was", "cannot", "does", "did", "holds", "shows", "answered", "names", "needs", "calls",
        "belongs", "are", "have", "were", "expired", "failed", "selects", "differs", "asks", "stands",
    }
)  # fmt: skip
_SPAN = re.compile(r"(?P<count>[0-9]{1,6})(?P<unit>[smhd])")


def _unit(count: int) -> tuple[int, str]:
    for length, unit in ((1_000_000_000, "GB"), (1_000_000, "MB"), (1000, "kB")):
        if count >= length:
            return length, unit
    return 1, "B"


def size(count: int) -> str:
    """Bytes in decimal units: `1.6 MB`."""
    length, unit = _unit(count)
    return f"{count} B" if length == 1 else f"{count / length:.1f} {unit}"


def part_of(done: int, total: int) -> str:
    """Bytes of bytes, in one unit: `1.2 of 3.4 MB`."""
    length, unit = _unit(total)
    return f"{done} of {total} B" if length == 1 else f"{done / length:.1f} of {total / length:.1f} {unit}"


def duration(seconds: float) -> str:
    """A length of time: `3.2 s`, `4 min 10 s`, `3 h`, `2 d`."""
    if seconds < 60:
        return f"{max(seconds, 0):.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3600)} h" if seconds < 48 * 3600 else f"{int(seconds // 86400)} d"


def ago(then: datetime | None, now: datetime) -> str:
    """How long ago: `just now`, `40 s ago`, `3 d ago`; `never` for None."""
    if then is None:
        return "never"
    seconds = (now - then).total_seconds()
    if seconds < 5:
        return "just now"
    for unit, length, until in (("s", 1, 90), ("min", 60, 5400), ("h", 3600, 172800)):
        if seconds < until:
            return f"{int(seconds // length)} {unit} ago"
    return f"{int(seconds // 86400)} d ago"


def latency(microseconds: int | None) -> str:
    """A latency in milliseconds, `-` for none."""
    if microseconds is None:
        return "-"
    return f"{microseconds / 1000:.2f} ms" if microseconds < 100_000 else f"{microseconds / 1000:.0f} ms"


def share(used: int, total: int) -> str:
    """Used of total: `61 % of 8.0 GB`."""
    return f"{100 * used / total:.0f} % of {size(total)}" if total else "-"


def clause(thing: str, reason: str) -> str:
    """An error's thing and reason: `server X cannot be reached`, `vision 2: golden gate` where that is no sentence."""
    return f"{thing} {reason}" if reason.partition(" ")[0] in _VERBS else f"{thing}: {reason}"


def release_name(release: ReleaseRef | None) -> str:
    """The release as people say it: `vision 2`, `-` for none."""
    return f"{release.model} {release.version}" if release else "-"


def labels_text(labels: dict[str, str]) -> str:
    """`site=north, row=2`."""
    return ", ".join(f"{key}={value}" for key, value in sorted(labels.items()))


def parse_span(text: str) -> timedelta:
    """Read `90s`, `15m`, `1h` or `7d`.

    Raises:
        InputError: anything else.
    """
    match = _SPAN.fullmatch(text.strip())
    if match is None:
        raise InputError(f"time span {text!r}", "is not a number with a unit", "Write it like 90s, 15m, 1h or 7d")
    return timedelta(seconds=int(match["count"]) * _UNITS[match["unit"]])


def parse_pairs(texts: list[str], what: str) -> dict[str, str]:
    """Read `key=value` texts.

    Raises:
        InputError: a text without `=` or key, or the same key twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise InputError(f"{what} {text!r}", "is not of the form key=value")
        if key in found:
            raise InputError(f"{what} {key!r}", "is given twice")
        found[key] = value
    return found


def until(then: datetime, now: datetime) -> str:
    """When something ends: `expires in 59 d`, `EXPIRED 2 h ago`."""
    seconds = (then - now).total_seconds()
    if seconds <= 0:
        return f"EXPIRED {ago(then, now)}"
    return f"expires in {duration(seconds)}"


def rate_text(per_second: float | None) -> str:
    """Bytes a second: `1.1 MB/s`."""
    return f"{size(int(per_second))}/s" if per_second else ""


def printable(text: str) -> str:
    """Text of a device, safe for a terminal: what is not printable shows as its escape and does nothing."""
    return "".join(sign if sign.isprintable() else _escaped(sign) for sign in text.expandtabs(4))


def _escaped(sign: str) -> str:
    return repr(sign)[1:-1]


def problem_text(problem: Problem) -> str:
    """A problem in one line."""
    return printable(f"{clause(problem.thing, problem.reason)}. {problem.fix}.")


def names_text(names: list[str]) -> str:
    """One or two names, or the first and how many more."""
    return ", ".join(names) if len(names) <= 2 else f"{names[0]} and {len(names) - 1:,} more"
