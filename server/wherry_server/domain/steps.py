"""How a window of time is cut into evenly spaced steps. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

MINUTE, HOUR, DAY = 60, 3600, 86_400
TEN_MINUTES = 600
_MINUTES = (1, 2, 3, 4, 5, 10, 20, 30)
_HOURS = (1, 2, 3, 4, 6, 8, 12)
LADDER = (*(MINUTE * count for count in _MINUTES), *(HOUR * count for count in _HOURS), DAY)
"""Lengths of a step, so that people can read them."""
HOST_BUCKET_SECONDS = 300
MINUTES_KEPT = timedelta(hours=48)
"""How long telemetry is kept by the minute; by ten of them (all devices) and by the hour (one device) it stays."""


@dataclass(frozen=True, slots=True)
class Steps:
    """Steps of a window, the last one unfinished as a rule.

    Attributes:
        seconds: length of a step.
        grain: length of the stored sums to read: a minute or ten.
        times: beginning of each step, Unix seconds.
    """

    seconds: int
    grain: int
    times: list[int]

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.times)

    @property
    def first(self) -> datetime:
        """Where the first begins."""
        return datetime.fromtimestamp(self.times[0], UTC)

    @property
    def last(self) -> datetime:
        """Where the last ends."""
        return datetime.fromtimestamp(self.times[-1] + self.seconds, UTC)

    def index(self, at: datetime) -> int:
        """The step that a time is in."""
        return (int(at.timestamp()) - self.times[0]) // self.seconds


def choose_steps(since: datetime, until: datetime, points: int, least: int = MINUTE) -> Steps:
    """The shortest steps of which not more than `points` cover a window.

    Args:
        since: the window's beginning.
        until: its end.
        points: at most so many steps.
        least: no step is shorter, seconds.
    """
    begin, end = int(since.timestamp()), int(until.timestamp())
    fitting = (size for size in LADDER if size >= least and _count(begin, end, size) <= points)
    seconds = next(fitting, None) or DAY * -(-_count(begin, end, DAY) // (points - 1))
    start = begin - begin % seconds
    times = [start + seconds * number for number in range(_count(begin, end, seconds))]
    return Steps(seconds, TEN_MINUTES if seconds >= TEN_MINUTES else MINUTE, times)


def _count(begin: int, end: int, seconds: int) -> int:
    return -(-end // seconds) - begin // seconds
