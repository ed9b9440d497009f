"""Two versions of a model compared, in words. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from wherry_server.dashboard import words
from wherry_server.store.model_views import VersionInField

ENOUGH = 50
"""Requests below which two versions are not compared."""
NOTICEABLE = 0.05
"""Part by which latencies must differ to be called different; the histogram's bins are coarser than less."""
ERROR_STEP = 0.001
"""Difference of error rates that counts."""
_NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Verdict:
    """One sentence or two, and their colour."""

    text: str
    tone: str


def asked(one: VersionInField) -> int:
    """Requests, answered or failed."""
    return one.requests + one.failures


def by_age(versions: Sequence[VersionInField]) -> list[VersionInField]:
    """Versions, the newest first; those that the owner's metadata no longer names last."""
    return sorted(versions, key=lambda one: (one.published or _NEVER, one.version), reverse=True)


def verdict(versions: Sequence[VersionInField]) -> Verdict | None:
    """The newest version beside the one before it, of those that were asked; None when there are not two."""
    used = [one for one in by_age(versions) if asked(one)]
    return compare(used[0], used[1]) if len(used) > 1 else None


def compare(new: VersionInField, old: VersionInField) -> Verdict:
    """What changed from one version to a newer one."""
    few = [one for one in (new, old) if asked(one) < ENOUGH]
    if few:
        counted = " and ".join(f"{one.version} had {words.number(asked(one))}" for one in few)
        return Verdict(f"Too few requests to compare {new.version} with {old.version}: {counted}.", "quiet")
    pace, pace_tone = _pace(new, old)
    errors, errors_tone = _errors(new, old)
    tone = next(tone for tone in ("bad", "warn", "good") if tone in (pace_tone, errors_tone))
    return Verdict(f"{new.version} {pace}, and {errors}.{_caveat(new, old)}", tone)


def _pace(new: VersionInField, old: VersionInField) -> tuple[str, str]:
    if new.p95_us is None:
        return "answered nothing: every request failed", "bad"
    if not old.p95_us:
        return f"answers in {words.milliseconds(new.p95_us)} at p95, where {old.version} answered nothing", "good"
    change = (new.p95_us - old.p95_us) / old.p95_us
    times = f"({words.milliseconds(new.p95_us)} against {words.milliseconds(old.p95_us)})"
    if abs(change) < NOTICEABLE:
        return f"answers as fast as {old.version} at p95 {times}", "good"
    if change > 0:
        return f"answers {amount(change)} slower than {old.version} at p95 {times}", "warn"
    return f"answers {amount(-change)} faster than {old.version} at p95 {times}", "good"


def _errors(new: VersionInField, old: VersionInField) -> tuple[str, str]:
    mine, theirs = new.error_rate or 0.0, old.error_rate or 0.0
    rates = f"({rate(mine)} of requests against {rate(theirs)})"
    if not mine and not theirs:
        return "neither fails a request", "good"
    if abs(mine - theirs) < ERROR_STEP:
        return f"fails as often {rates}", "good"
    return (f"fails more often {rates}", "bad") if mine > theirs else (f"fails less often {rates}", "good")


def _caveat(new: VersionInField, old: VersionInField) -> str:
    """Speed on other hardware says little about the version."""
    if not new.profiles or not old.profiles or new.profiles.keys() == old.profiles.keys():
        return ""
    return " They run on different hardware, so part of this is the hardware's doing."


def amount(part: float) -> str:
    """A change as people say it: `18 %`, `2.4 times`."""
    return f"{round(100 * part)} %" if part < 1 else f"{part + 1:.1f} times"


def rate(part: float) -> str:
    """An error rate: `0 %`, `0.31 %`, `12 %`; one that is not zero is never shown as zero."""
    if part == 0:
        return "0 %"
    percent = 100 * part
    if percent < 0.01:
        return "< 0.01 %"
    return f"{percent:.2f} %" if percent < 1 else f"{percent:.1f} %" if percent < 10 else f"{percent:.0f} %"
