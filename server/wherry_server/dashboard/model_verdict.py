"""Two versions of a model compared, in words. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wherry_server.dashboard import words

ENOUGH = 50
"""Answered requests below which two versions are not compared."""
NOTICEABLE = 0.05
"""Part by which latencies must differ to be called different; bins of the histogram are coarser than less."""
ERROR_STEP = 0.001
"""Difference of error rates that counts."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """How one version answered in a window.

    Attributes:
        counter: the higher, the newer.
        requests: answered; `failures` are not among them.
    """

    version: str
    counter: int
    requests: int
    failures: int
    p50_us: int | None
    p95_us: int | None
    devices: int = 0

    @property
    def error_rate(self) -> float:
        """Failures among all requests, 0 to 1."""
        asked = self.requests + self.failures
        return self.failures / asked if asked else 0.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """One sentence and its colour."""

    text: str
    tone: str


def verdict(versions: Sequence[Numbers]) -> Verdict | None:
    """The newest version beside the one before it; None when there are not two.

    Args:
        versions: that answered or failed requests in the window.
    """
    asked = sorted((one for one in versions if one.requests + one.failures), key=lambda one: one.counter)
    if len(asked) < 2:
        return None
    return compare(asked[-1], asked[-2])


def compare(new: Numbers, old: Numbers) -> Verdict:
    """What changed from one version to a newer one."""
    few = [one for one in (new, old) if one.requests + one.failures < ENOUGH]
    if few:
        counted = " and ".join(f"{one.version} has {words.number(one.requests + one.failures)}" for one in few)
        return Verdict(f"Too few requests to compare {new.version} with {old.version}: {counted}.", "quiet")
    pace, pace_tone = _pace(new, old)
    errors, errors_tone = _errors(new, old)
    tone = next(tone for tone in ("bad", "warn", "good", "quiet") if tone in (pace_tone, errors_tone))
    return Verdict(f"{new.version} {pace}, and {errors}.", tone)


def _pace(new: Numbers, old: Numbers) -> tuple[str, str]:
    if new.p95_us is None or old.p95_us is None:
        missing = new if new.p95_us is None else old
        return f"cannot be compared by latency with {old.version} ({missing.version} answered nothing)", "bad"
    change = (new.p95_us - old.p95_us) / old.p95_us if old.p95_us else 0.0
    times = f"({words.milliseconds(new.p95_us)} against {words.milliseconds(old.p95_us)})"
    if abs(change) < NOTICEABLE:
        return f"answers as fast as {old.version} at p95 {times}", "good"
    word, tone = ("slower", "warn") if change > 0 else ("faster", "good")
    return f"answers {amount(abs(change))} {word} than {old.version} at p95 {times}", tone


def _errors(new: Numbers, old: Numbers) -> tuple[str, str]:
    rates = f"({rate(new.error_rate)} against {rate(old.error_rate)})"
    if abs(new.error_rate - old.error_rate) < ERROR_STEP:
        if not new.failures and not old.failures:
            return "neither fails", "good"
        return f"fails as often {rates}", "good"
    return (f"fails more often {rates}", "bad") if new.error_rate > old.error_rate else (f"fails less {rates}", "good")


def amount(part: float) -> str:
    """A change as people say it: `18 %`, `2.4 times`."""
    return f"{round(100 * part)} %" if part < 1 else f"{part + 1:.1f} times"


def rate(part: float) -> str:
    """An error rate: `0 %`, `0.3 %`, `12 %`; one that is not zero is never shown as zero."""
    if part == 0:
        return "0 %"
    percent = 100 * part
    if percent < 0.01:
        return "< 0.01 %"
    return f"{percent:.2f} %" if percent < 1 else f"{percent:.1f} %" if percent < 10 else f"{percent:.0f} %"
