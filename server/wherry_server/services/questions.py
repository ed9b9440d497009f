"""Questions to a device: asked over MQTT at once, answered within seconds or not at all.

Not through the outbox: an answer that nobody waits for any more is worth nothing. Waiting costs a future in the
event loop, no thread.
"""

from __future__ import annotations

import asyncio
import secrets

from wherry.api import DiagnoseAnswer, LogsAnswer, LogsQuestion
from wherry.errors import AdapterError, Conflict, LinkError, NotFound, WherryError, walk_errors
from wherry.messages import Problem
from wherry.questions import DiagnoseReply, DiagnoseRequest, LogsReply, LogsRequest
from wherry.topics import Kind, Topic
from wherry_server.services.context import Context
from wherry_server.services.wire import Reply
from wherry_server.store.schema import Device

_CLASSES = {kind.code: kind for kind in walk_errors()}


class NoAnswer(LinkError):
    """The device did not answer a question in time."""


async def ask_logs(context: Context, device: str, question: LogsQuestion) -> LogsAnswer:
    """The newest lines that a slot's container wrote.

    Raises:
        NotFound: no such device; also what the device does not know.
        Conflict: the device is offline, or too many questions wait.
        LinkError: the broker is away, or (NoAnswer) the device says nothing.
        WherryError: the device's own problem.
    """
    request = LogsRequest(id=_new_id(), slot=question.slot, lines=question.lines, since=question.since)
    reply = await _ask(context, device, request)
    if not isinstance(reply, LogsReply):
        raise _unusable(device)
    return LogsAnswer(lines=reply.lines, truncated=reply.truncated)


async def ask_diagnose(context: Context, device: str) -> DiagnoseAnswer:
    """What a device finds when it examines itself.

    Raises:
        NotFound: no such device.
        Conflict: the device is offline, or too many questions wait.
        LinkError: the broker is away, or (NoAnswer) the device says nothing.
        WherryError: the device's own problem.
    """
    reply = await _ask(context, device, DiagnoseRequest(id=_new_id()))
    if not isinstance(reply, DiagnoseReply):
        raise _unusable(device)
    return DiagnoseAnswer(checks=reply.checks, facts=reply.facts)


async def _ask(context: Context, device: str, request: LogsRequest | DiagnoseRequest) -> Reply:
    await asyncio.to_thread(_check, context, device)
    wire, questions, seconds = context.line.wire, context.questions, context.config.answer_seconds
    answer = questions.expect(device, request.id)
    try:
        if wire is None or not wire.publish(Topic(device, Kind.CMD), request.to_bytes()):
            raise LinkError(f"question to device {device}", "cannot be sent: the server is not connected to the broker")
        reply = await asyncio.wait_for(answer, seconds)
    except TimeoutError as error:
        fix = "Its agent may be busy, too old for questions, or cut off; look at when it was seen last"
        raise NoAnswer(f"device {device}", f"did not answer within {seconds:g} s", fix) from error
    finally:
        questions.forget(request.id)
    if reply.problem is not None:
        raise _error(reply.problem)
    return reply


def _check(context: Context, device: str) -> None:
    with context.store.read() as session:
        row = session.get(Device, device)
        if row is None or row.revoked is not None:
            raise NotFound(f"device {device}", "does not exist" if row is None else "is revoked")
        if not row.online:
            seen = f"was last seen {row.last_seen:%Y-%m-%d %H:%M:%S} UTC" if row.last_seen else "was never seen"
            raise Conflict(f"device {device}", f"is offline ({seen}), so it cannot be asked", "Ask when it is online")


def _error(problem: Problem) -> WherryError:
    """A device's problem as the error it was; of a newer agent perhaps only its ancestor."""
    code = problem.code
    while code not in _CLASSES and "." in code:
        code = code.rpartition(".")[0]
    return _CLASSES.get(code, AdapterError)(problem.thing, problem.reason, problem.fix)


def _unusable(device: str) -> LinkError:
    return LinkError(f"device {device}", "answered another question than it was asked", "Upgrade its agent")


def _new_id() -> str:
    return secrets.token_hex(8)
