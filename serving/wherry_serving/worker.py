"""The one inference thread and the bounded queue before it. The event loop stays free to say that we are alive."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

from wherry.errors import AdmissionError

T = TypeVar("T")
_Job = tuple[Callable[[], Any], "asyncio.Future[Any]"]


class Worker:
    """Runs jobs one after the other on its own thread. All methods are for the event loop's thread.

    Args:
        waiting: how many jobs may wait behind the one that runs.
    """

    def __init__(self, waiting: int) -> None:
        self._limit = waiting + 1
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._pending = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        # A daemon, so that an inference that never returns cannot keep the process from ending.
        self._thread = threading.Thread(target=self._work, name="inference", daemon=True)

    @property
    def idle(self) -> bool:
        """Whether nothing waits or runs; until the next `run`, the models may be used on the event loop."""
        return self._pending == 0

    @property
    def pending(self) -> int:
        """Jobs waiting or running."""
        return self._pending

    def start(self) -> None:
        """Start the thread; call it inside the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self, seconds: float) -> bool:
        """Let the running job end; False when it did not end in time."""
        if not self._thread.is_alive():
            return True
        self._jobs.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    async def run(self, job: Callable[[], T]) -> T:
        """Queue a job and wait for what it returns or raises.

        Raises:
            AdmissionError: the queue is full.
        """
        if self._pending >= self._limit:
            raise AdmissionError("inference queue", f"is full with {self._limit - 1} requests", "Send it again later")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._pending += 1
        self._jobs.put((job, future))
        return await future

    def _work(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, future = item
            result, error = None, None
            try:
                if not future.cancelled():
                    result = job()
            except BaseException as caught:
                error = caught
            self._call(self._finish, future, result, error)
            del item, job, future, result, error  # do not hold a request's memory until the next one

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        try:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the loop has ended: nobody waits any more
            return

    def _finish(self, future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        self._pending -= 1
        if future.cancelled():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
