"""Questions to a device: asked over MQTT at once, answered within seconds or not at all.

Not through the outbox: an answer that nobody waits for any more is worth nothing. Waiting costs a future in the
event loop, no thread.
"""

from __future__ import annotations

import asyncio
import secrets
from datetime import timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from wherry.api.devices import DiagnoseAnswer, LogsAnswer, LogsQuestion
from wherry.errors import AdapterError, Conflict, LinkError
from wherry.questions import DiagnoseReply, DiagnoseRequest, LogsReply, LogsRequest
from wherry.topics import Kind, Topic
from wherry_server.services.context import Context
from wherry_server.services.wire import Reply
from wherry_server.store.missing import no_device
from wherry_server.store.schema import Audit, Device

_AUDITED = timedelta(minutes=1)


class NoAnswer(LinkError):
    """The device did not answer a question in time."""


class DeviceProblem(AdapterError):
    """The device answered that it cannot answer. Of one code whatever it says: it must not pass for our own error."""


async def ask_logs(context: Context, device: str, question: LogsQuestion) -> LogsAnswer:
    """The newest lines that a slot's container wrote.

    Raises:
        NotFound: no such device; also what the device does not know.
        Conflict: the device is offline, or too many questions wait.
        LinkError: the broker is away, or (NoAnswer) the device says nothing.
        DeviceProblem: the device cannot answer, and says why.
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
        DeviceProblem: the device cannot answer, and says why.
    """
    reply = await _ask(context, device, DiagnoseRequest(id=_new_id()))
    if not isinstance(reply, DiagnoseReply):
        raise _unusable(device)
    return DiagnoseAnswer(checks=reply.checks, facts=reply.facts)


async def _ask(context: Context, device: str, request: LogsRequest | DiagnoseRequest) -> Reply:
    await asyncio.to_thread(_check, context, device, f"device.{request.type}")
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
        problem = reply.problem
        raise DeviceProblem(f"{problem.thing} on device {device}", problem.reason, problem.fix)
    return reply


def _check(context: Context, device: str, action: str) -> None:
    with context.store.read() as session:
        row = session.get(Device, device)
        if row is None or row.revoked is not None:
            raise no_device(session, device, "does not exist" if row is None else "is revoked")
        if not row.online:
            seen = f"was last seen {row.last_seen:%Y-%m-%d %H:%M:%S} UTC" if row.last_seen else "was never seen"
            raise Conflict(f"device {device}", f"is offline ({seen}), so it cannot be asked", "Ask when it is online")
        known = _is_recorded(context, session, device, action)
    if not known:
        with context.store.write() as session:
            context.record(session, action, device)


def _is_recorded(context: Context, session: Session, device: str, action: str) -> bool:
    """Whether the audit trail has it of the last minute: who follows a log asks every two seconds."""
    query = select(Audit.at).where(Audit.action == action, Audit.thing == device, Audit.actor == context.actor)
    newest = session.scalar(query.order_by(Audit.id.desc()).limit(1))
    return newest is not None and newest > context.clock() - _AUDITED


def _unusable(device: str) -> LinkError:
    return LinkError(f"device {device}", "answered another question than it was asked", "Upgrade its agent")


def _new_id() -> str:
    return secrets.token_hex(8)
