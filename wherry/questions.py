"""Questions an operator asks of a device through the server, and the device's answers.

A fixed set, no shell. A question travels on the device's `cmd` topic, its answer on `up/reply`; both carry
the question's id. Every answer is bounded, so that asking cannot hurt the device or the channel.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from wherry.envelope import Instant, Message, Model, Problem
from wherry.identity import DeviceId, SlotName

LOG_LINES = 500
"""Most lines of an answer."""
LOG_LINE_CHARS = 2_000
"""A longer line is cut."""
REPLY_BYTES = 128 * 1024
"""Most bytes of an answer's text; the oldest lines give way."""

QuestionId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]{8,64}$")]


class Check(Model):
    """One thing that `wherry-agent doctor` looked at.

    Attributes:
        name: what was looked at: "engine", "disk", "clock", …
        level: "ok", "warning" (works, for now) or "error" (does not).
        detail: what was found, with its numbers, one sentence.
        fix: how to mend it; empty when there is nothing to mend.
    """

    name: str
    level: Literal["ok", "warning", "error"]
    detail: str
    fix: str = ""


class LogLine(Model):
    """A line that a slot's container wrote.

    Attributes:
        version: of the release whose container wrote it.
    """

    at: Instant
    text: str
    version: str = ""


class LogsRequest(Message):
    """Topic cmd: the newest lines of a slot's container, oldest first.

    Attributes:
        lines: at most so many.
        since: only lines written after this instant.
    """

    type: Literal["logs"] = "logs"
    id: QuestionId
    slot: SlotName
    lines: int = Field(default=100, ge=1, le=LOG_LINES)
    since: Instant | None = None


class DiagnoseRequest(Message):
    """Topic cmd: examine yourself as `wherry-agent doctor` does."""

    type: Literal["diagnose"] = "diagnose"
    id: QuestionId


class LogsReply(Message):
    """Topic up/reply: answers `LogsRequest`.

    Attributes:
        truncated: there were more lines than the answer holds.
        problem: why there is no answer.
    """

    type: Literal["logs_reply"] = "logs_reply"
    device: DeviceId
    id: QuestionId
    lines: list[LogLine] = []
    truncated: bool = False
    problem: Problem | None = None


class DiagnoseReply(Message):
    """Topic up/reply: answers `DiagnoseRequest`.

    Attributes:
        facts: what hardware and system it is, by name.
        problem: why there is no answer.
    """

    type: Literal["diagnose_reply"] = "diagnose_reply"
    device: DeviceId
    id: QuestionId
    checks: list[Check] = []
    facts: dict[str, str] = {}
    problem: Problem | None = None
