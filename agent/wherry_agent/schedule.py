"""Recurring work: ticks, samples, flushes, polls and the renewal check. The only importer of APScheduler.

Nothing piles up: a job that still runs is not started again, and runs that were missed are run once.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from wherry.errors import WherryError

_JUMP_SECONDS = 5.0
_LONGEST_WAIT = 30.0
_log = logging.getLogger(__name__)


class _SteadyScheduler(BackgroundScheduler):  # type: ignore[misc]
    """A scheduler whose jobs go on when the wall clock is set: a device may boot in 1970.

    APScheduler plans by the wall clock; set back by a year, it would rest for a year.
    """

    def __init__(self, wall: Callable[[], float], steady: Callable[[], float], **options: Any) -> None:
        super().__init__(**options)
        self._wall = wall
        self._steady = steady
        self._offset = wall() - steady()

    def _process_jobs(self) -> float:
        offset = self._wall() - self._steady()
        if abs(offset - self._offset) > _JUMP_SECONDS:
            _log.warning("the clock was set by %.0f s; recurring work is planned anew", offset - self._offset)
            self._offset = offset
            for job in self.get_jobs():
                job.modify(next_run_time=datetime.now(UTC))
        wait = super()._process_jobs()
        return _LONGEST_WAIT if wait is None else min(wait, _LONGEST_WAIT)


class Schedule:
    """A few recurring jobs on a few threads.

    Args:
        workers: threads for jobs.
        wall, steady: the wall clock and one that nobody sets, in seconds.

    Attributes:
        failures: how often each job has failed.
    """

    def __init__(
        self,
        workers: int = 3,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        # It warns whenever a job is left out because it still runs; that is what we ask of it.
        logging.getLogger("apscheduler").setLevel(logging.ERROR)
        self.failures: Counter[str] = Counter()
        self._last_words: dict[str, str] = {}
        self._scheduler = _SteadyScheduler(
            wall,
            steady,
            timezone=UTC,
            daemon=True,
            executors={"default": ThreadPoolExecutor(workers)},
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        )

    def every(self, seconds: float, name: str, job: Callable[[], object], soon: bool = False) -> None:
        """Run a job again and again. What it raises is logged and counted.

        Args:
            seconds: from start to start.
            name: for the log and `failures`.
            job: what to do.
            soon: run it for the first time at once instead of after `seconds`; then spread a little, so
                that a fleet does not act in step.
        """
        first = datetime.now(UTC) + timedelta(seconds=0 if soon else seconds)
        jitter = seconds / 10 if seconds >= 60 else None
        self._scheduler.add_job(
            self._run, "interval", (name, job), id=name, seconds=seconds, jitter=jitter, next_run_time=first
        )

    def start(self) -> None:
        """Begin."""
        self._scheduler.start()

    def stop(self) -> None:
        """End; waits for jobs that run."""
        if self._scheduler.running:
            self._scheduler.shutdown(wait=True)

    def _run(self, name: str, job: Callable[[], object]) -> None:
        try:
            job()
        except WherryError as error:
            self._failed(name, str(error))
        except Exception:
            self.failures[name] += 1
            _log.exception("%s failed by a defect; it is tried again", name)
        else:
            self._last_words.pop(name, None)

    def _failed(self, name: str, words: str) -> None:
        self.failures[name] += 1
        # Said once, not every five seconds for as long as a network is away.
        if self._last_words.get(name) != words:
            self._last_words[name] = words
            _log.warning("%s: %s", name, words)
