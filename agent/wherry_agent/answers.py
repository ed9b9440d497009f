"""Answers operators' questions on a thread of its own, so that no question holds up a deployment or the link."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from wherry.errors import EngineError, NotFound, WherryError
from wherry.questions import Check, DiagnoseReply, DiagnoseRequest, LogsReply, LogsRequest
from wherry_agent.container_logs import container_to_read, log_lines
from wherry_agent.endings import problem_of
from wherry_agent.observed import ActiveSlot, Container

Question = LogsRequest | DiagnoseRequest
Answer = LogsReply | DiagnoseReply
WAITING = 4
"""Questions that may wait; more are dropped."""
PATIENCE_SECONDS = 10.0
"""Nobody waits for an answer longer than this."""
_REMEMBERED = 32
_log = logging.getLogger(__name__)


class LogSource(Protocol):
    """What an answer about logs needs of the engine."""

    def observe(self) -> Mapping[str, Container]:
        """This device's containers."""

    def inspect(self, name: str) -> Container | None:
        """One of them, with its signed image."""

    def logs(self, name: str, lines: int, since: float | None) -> bytes:
        """The newest lines of a container's log, each with its instant."""


class Answerer:
    """One question at a time. `ask` may be called from any thread and never blocks.

    Args:
        device: its id.
        engine: where logs are read.
        active: the slots that serve now.
        examine: looks at the device as `wherry-agent doctor` does.
        facts: what hardware and system it is, by name.
        reply: sends an answer.
    """

    def __init__(
        self,
        device: str,
        engine: LogSource,
        active: Callable[[], Sequence[ActiveSlot]],
        examine: Callable[[], Sequence[Check]],
        facts: Mapping[str, str],
        reply: Callable[[Answer], object],
    ) -> None:
        self._device = device
        self._engine = engine
        self._active = active
        self._examine = examine
        self._facts = dict(facts)
        self._reply = reply
        self._waiting: queue.Queue[tuple[Question, float] | None] = queue.Queue(WAITING)
        self._seen: deque[str] = deque(maxlen=_REMEMBERED)
        self._thread: threading.Thread | None = None

    def ask(self, question: Question) -> None:
        """Take a question in; it is dropped when too many wait or when it was asked before."""
        if question.id in self._seen:
            return
        self._seen.append(question.id)
        try:
            self._waiting.put_nowait((question, time.monotonic()))
        except queue.Full:
            _log.warning("question %s dropped: %d others wait already", question.id, WAITING)
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._loop, name="wherry-answers", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Take no more questions; the one that is being answered is left to itself."""
        while self._thread is not None:
            try:
                self._waiting.put_nowait(None)
                return
            except queue.Full:
                self._drop_one()

    def _drop_one(self) -> None:
        try:
            self._waiting.get_nowait()
        except queue.Empty:
            return

    def _loop(self) -> None:
        while (item := self._waiting.get()) is not None:
            question, asked = item
            if time.monotonic() - asked > PATIENCE_SECONDS:
                _log.warning("question %s dropped: nobody waits for its answer any more", question.id)
                continue
            try:
                self._reply(self._answer(question))
            except Exception:
                _log.exception("question %s failed unexpectedly", question.id)

    def _answer(self, question: Question) -> Answer:
        try:
            if isinstance(question, LogsRequest):
                return self._logs(question)
            return DiagnoseReply(
                device=self._device, id=question.id, checks=list(self._examine()), facts=self._facts
            )  # fmt: skip
        except WherryError as error:
            problem = problem_of(error)
        except Exception as error:
            _log.exception("question %s failed unexpectedly", question.id)
            problem = problem_of(EngineError(f"question {question.id}", f"failed unexpectedly ({error!r})"))
        kind = LogsReply if isinstance(question, LogsRequest) else DiagnoseReply
        return kind(device=self._device, id=question.id, problem=problem)

    def _logs(self, question: LogsRequest) -> LogsReply:
        found = container_to_read(question.slot, self._engine.observe(), self._active())
        if found is None:
            raise NotFound(
                f"log of slot {question.slot}",
                "no container of this slot is on the device",
                "Look at its slots and their last deployments with `wherry device show`",
            )
        inspected = self._engine.inspect(found.name)
        version = inspected.image.image.version if inspected and inspected.image else ""
        since = question.since.timestamp() if question.since else None
        raw = self._engine.logs(found.name, question.lines + 1, since)
        lines, truncated = log_lines(raw, version, question.since, question.lines)
        return LogsReply(device=self._device, id=question.id, lines=lines, truncated=truncated)
