"""Two helpers of the control loop: the worker does steps, the aide asks the network. Both answer through the inbox."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Protocol

from wherry_agent.events import Cancelled, Event, News, Outcome, StepFinished
from wherry_agent.ports import Cancel
from wherry_agent.steps import Step

_log = logging.getLogger(__name__)
Put = Callable[[Event], None]


class Runs(Protocol):
    """What does a step (see `executor.Executor`)."""

    def run(self, step: Step, cancel: Cancel, tell: Callable[[News], None]) -> Outcome:
        """Do it, tell how it goes, and say what came of it."""


class Worker:
    """One thread, one step at a time.

    Attributes:
        step: the step under way, or None. Set by `submit`, cleared by `settle` in the control loop's
            thread, so that a finished step counts as under way until its outcome is journaled.
    """

    def __init__(self, executor: Runs, put: Put) -> None:
        self._executor = executor
        self._put = put
        self._steps: queue.SimpleQueue[tuple[Step, Cancel] | None] = queue.SimpleQueue()
        self._cancel = Cancel()
        self._thread: threading.Thread | None = None
        self.step: Step | None = None

    def submit(self, step: Step) -> None:
        """Begin a step; there must be none under way."""
        self.step, self._cancel = step, Cancel()
        if self._thread is None:
            self._thread = threading.Thread(target=self._loop, name="wherry-worker", daemon=True)
            self._thread.start()
        self._steps.put((step, self._cancel))

    def cancel(self) -> None:
        """Ask the step under way to give way; its outcome comes all the same."""
        self._cancel.set()

    def settle(self) -> None:
        """The outcome of the step was taken in."""
        self.step = None

    def stop(self, seconds: float) -> None:
        """Ask the step to give way and wait a little for it."""
        self.cancel()
        self._steps.put(None)
        if self._thread is not None:
            self._thread.join(seconds)

    def _loop(self) -> None:
        while (item := self._steps.get()) is not None:
            step, cancel = item
            outcome: Outcome = Cancelled() if cancel.is_set else self._executor.run(step, cancel, self._put)
            self._put(StepFinished(step, outcome))


class Aide:
    """One thread for questions to the network; of jobs with one name only the newest waits."""

    def __init__(self) -> None:
        self._jobs: dict[str, Callable[[], None]] = {}
        self._wake = threading.Condition()
        self._stopping = False
        self._thread: threading.Thread | None = None

    def submit(self, name: str, job: Callable[[], None]) -> None:
        """Do it soon, instead of a job of that name that still waits."""
        with self._wake:
            self._jobs[name] = job
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="wherry-aide", daemon=True)
                self._thread.start()
            self._wake.notify()

    def stop(self) -> None:
        """Take no more jobs."""
        with self._wake:
            self._stopping = True
            self._wake.notify()

    def _loop(self) -> None:
        while True:
            with self._wake:
                while not self._jobs and not self._stopping:
                    self._wake.wait()
                if self._stopping:
                    return
                name = next(iter(self._jobs))
                job = self._jobs.pop(name)
            try:
                job()
            except Exception:
                _log.exception("job %s failed unexpectedly", name)
