"""What a recording of requests says about swaps and about a bad release: arithmetic only, no I/O."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from load import Answer

WRONG = "wrong answer"
"""How the judge begins when a model answered, but not what is right."""


@dataclass(frozen=True, slots=True)
class Window:
    """One swap, in monotonic seconds.

    Attributes:
        begin: the operator's command was given.
        done: the command had ended and the new version answered.
        end: done, and some seconds for the old version to end in.
    """

    begin: float
    done: float
    end: float


@dataclass(frozen=True, slots=True)
class Recording:
    """Every request of one unbroken load, and the swaps that happened meanwhile."""

    answers: Sequence[Answer]
    windows: Sequence[Window]

    def inside(self, answer: Answer) -> bool:
        """Whether a request was sent during a swap."""
        return any(window.begin <= answer.at < window.end for window in self.windows)


def good(answers: Iterable[Answer]) -> list[Answer]:
    """The answers with nothing wrong about them."""
    return [answer for answer in answers if not answer.problem]


def percentile_ms(answers: Iterable[Answer], share: float) -> float | None:
    """A latency percentile in milliseconds; None without answers."""
    times = sorted(answer.seconds for answer in answers)
    return round(times[min(len(times) - 1, int(share * len(times)))] * 1000, 2) if times else None


def gaps(answers: Iterable[Answer]) -> list[tuple[float, float]]:
    """Beginning and end of every time without a good answer."""
    return list(itertools.pairwise(sorted(answer.at + answer.seconds for answer in good(answers))))


def longest_ms(spans: Iterable[tuple[float, float]]) -> float:
    """The longest of some times, in milliseconds."""
    return round(max((later - sooner for sooner, later in spans), default=0.0) * 1000, 1)


def _gap_ms(recordings: Sequence[Recording], during: bool) -> float:
    return longest_ms(
        (sooner, later)
        for one in recordings
        for sooner, later in gaps(one.answers)
        if any(sooner < window.end and later > window.begin for window in one.windows) is during
    )


def swap_figures(recordings: Sequence[Recording]) -> dict[str, Any]:
    """What callers noticed of all swaps of one method; a gap never spans two recordings."""
    answers = [answer for one in recordings for answer in one.answers]
    during = [answer for one in recordings for answer in one.answers if one.inside(answer)]
    outside = [answer for one in recordings for answer in one.answers if not one.inside(answer)]
    hurt = [answer for answer in answers if answer.problem]
    windows = [window for one in recordings for window in one.windows]
    seconds = sorted(window.done - window.begin for window in windows)
    p99, quiet = percentile_ms(good(during), 0.99), percentile_ms(good(outside), 0.99)
    return {
        "swaps": len(windows),
        "sent": len(answers),
        "failed": len(hurt),
        "failed_kept_connections": sum(answer.kept for answer in hurt),
        "failed_new_connections": sum(not answer.kept for answer in hurt),
        "failed_outside_swaps": sum(bool(answer.problem) for answer in outside),
        "gap_ms": _gap_ms(recordings, during=True),
        "gap_outside_ms": _gap_ms(recordings, during=False),
        "p50_ms": percentile_ms(good(during), 0.5),
        "p50_outside_ms": percentile_ms(good(outside), 0.5),
        "p99_ms": p99,
        "p99_outside_ms": quiet,
        "p99_ratio": round(p99 / quiet, 2) if p99 is not None and quiet else None,
        "swap_s_median": round(seconds[len(seconds) // 2], 2) if seconds else None,
        "swap_s_worst": round(seconds[-1], 2) if seconds else None,
        "problems": examples(hurt),
    }


def examples(hurt: Iterable[Answer], most: int = 4) -> dict[str, int]:
    """How often each kind of problem came, the commonest first."""
    counts: dict[str, int] = {}
    for answer in hurt:
        kind = (answer.problem or "")[:90]
        counts[kind] = counts.get(kind, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1])[:most])


def bad_release_figures(answers: Sequence[Answer], begin: float, verdict: float, bad: str) -> dict[str, Any]:
    """What a bad release did to callers.

    Args:
        answers: all requests, from before the release came until after it was gone.
        begin: when the operator gave the command that brings it.
        verdict: when it was found to be bad: by a gate, or by an operator.
        bad: the version that answers wrongly.
    """
    hurt = [answer for answer in answers if answer.problem]
    wrong = [answer for answer in hurt if (answer.problem or "").startswith(WRONG)]
    failed = [answer for answer in hurt if not (answer.problem or "").startswith(WRONG)]
    right = good(answers)
    # Back: the first moment after the verdict from which no more wrong answer comes, seen where right ones arrive.
    last_harm = max((answer.at + answer.seconds for answer in wrong), default=verdict)
    arrivals = (answer.at + answer.seconds for answer in right if answer.version != bad)
    back = min((at for at in arrivals if at >= max(verdict, last_harm)), default=None)
    return {
        "sent": len(answers),
        "wrong": len(wrong),
        "failed": len(failed),
        "verdict_s": round(verdict - begin, 2),
        "back_ms": None if back is None else round((back - verdict) * 1000, 1),
        "gap_ms": longest_ms(gaps(answers)),
        "problems": examples(failed),
    }
