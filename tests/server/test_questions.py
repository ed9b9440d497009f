"""Questions to devices: asked at once, answered in time or not at all, and nobody else waits for it."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from datetime import UTC, datetime

import httpx
import pytest

from wherry.api.devices import DiagnoseAnswer, LogsAnswer, LogsQuestion
from wherry.errors import Conflict
from wherry.messages import Presence, Problem, parse_command
from wherry.questions import Check, DiagnoseReply, DiagnoseRequest, LogLine, LogsReply, LogsRequest
from wherry.topics import Kind, Topic
from wherry_server.services import questions, reports
from wherry_server.services.wire import Line, Questions

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)


class FakeWire:
    """A link whose devices answer by themselves, if told how."""

    connected, waiting, refused, lag_seconds = True, 0, 0, 0.0

    def __init__(self):
        self.sent = []
        self.answers = {}
        self.context = None

    def publish(self, topic: Topic, payload: bytes) -> bool:
        request = parse_command(payload)
        self.sent.append((topic, request))
        reply = self.answers.get(type(request))
        if reply is not None:
            self.context.questions.take(reply(topic.device, request))
        return self.connected


@pytest.fixture
def wire():
    return FakeWire()


@pytest.fixture
def asked(sqlite_context, wire, make_api, device_class, change_settings):
    """The API of a server whose link is the fake, with `dev-1` online."""
    context = dataclasses.replace(change_settings(sqlite_context, answer_seconds=30.0), line=Line(wire))
    wire.context = context
    api = make_api(context)
    reports.ingest_state(context, device_class(api, "dev-1").enrol().report())
    return api


@pytest.fixture
def hasty(asked, wire, change_settings):
    """The same server, which does not wait long."""
    asked.app.state.context = wire.context = change_settings(asked.context, answer_seconds=0.2)
    return asked


def logs(device, request):
    return LogsReply(device=device, id=request.id, lines=[LogLine(at=AT, text="ready", version="1")], truncated=True)


def problem(reply):
    return reply.status_code, reply.json()["error"]


def test_logs_come_back_as_the_device_told_them(asked, wire):
    wire.answers[LogsRequest] = logs
    reply = asked.post("/v1/devices/dev-1/logs", {"lines": 5, "since": "2026-03-01T11:00:00Z"})
    assert reply.status_code == 200
    assert LogsAnswer.model_validate(reply.json()).lines == [LogLine(at=AT, text="ready", version="1")]
    assert reply.json()["truncated"] is True
    ((topic, request),) = wire.sent
    assert topic == Topic("dev-1", Kind.CMD)
    assert (request.slot, request.lines, request.since) == ("main", 5, datetime(2026, 3, 1, 11, tzinfo=UTC))


def test_a_device_examines_itself(asked, wire):
    check = Check(name="disk", level="warning", detail="91 % used", fix="Free some space")
    wire.answers[DiagnoseRequest] = lambda device, request: DiagnoseReply(
        device=device, id=request.id, checks=[check], facts={"kernel": "6.1"}
    )
    reply = asked.post("/v1/devices/dev-1/diagnose")
    assert DiagnoseAnswer.model_validate(reply.json()) == DiagnoseAnswer(checks=[check], facts={"kernel": "6.1"})


def test_silence_is_answered_in_words_in_time(hasty):
    status, error = problem(hasty.post("/v1/devices/dev-1/diagnose"))
    assert status == 504
    assert (error["code"], error["thing"]) == ("adapter.link", "device dev-1")
    assert error["reason"] == "did not answer within 0.2 s"


def test_an_offline_device_is_not_asked(asked, wire):
    reports.ingest_presence(asked.context, Presence(device="dev-1", online=False))
    status, error = problem(asked.post("/v1/devices/dev-1/logs", {}))
    assert status == 409
    assert error["reason"].startswith("is offline (was last seen 2026-03-01 12:00:00 UTC)")
    assert wire.sent == []


def test_unknown_and_revoked_devices_are_not_asked(asked, wire):
    assert problem(asked.post("/v1/devices/dev-9/logs", {}))[0] == 404
    asked.request("DELETE", "/v1/devices/dev-1")
    assert problem(asked.post("/v1/devices/dev-1/logs", {}))[0] == 404
    assert wire.sent == []


def test_without_a_broker_nobody_waits(asked, wire):
    wire.connected = False
    status, error = problem(asked.post("/v1/devices/dev-1/logs", {}))
    assert status == 503
    assert "not connected to the broker" in error["reason"]


@pytest.mark.parametrize(
    "code",
    ["not_found", "identity", "not_allowed", "conflict", "adapter.engine", "adapter.engine.new", "odd", "wherry"],
)
def test_the_devices_own_problem_reaches_the_caller_and_passes_for_no_other(asked, wire, code):
    told = Problem(code=code, thing="slot main", reason="has no container", fix="Roll a release out")
    wire.answers[LogsRequest] = lambda device, request: LogsReply(device=device, id=request.id, problem=told)
    got, error = problem(asked.post("/v1/devices/dev-1/logs", {}))
    assert (got, error["code"]) == (502, "adapter")
    assert (error["thing"], error["reason"]) == ("slot main on device dev-1", "has no container")


def test_an_answer_of_another_device_or_kind_is_not_taken(hasty, wire):
    wire.answers[LogsRequest] = lambda _, request: logs("dev-2", request)
    assert problem(hasty.post("/v1/devices/dev-1/logs", {}))[0] == 504
    wire.answers[LogsRequest] = lambda device, request: DiagnoseReply(device=device, id=request.id)
    assert "another question" in problem(hasty.post("/v1/devices/dev-1/logs", {}))[1]["reason"]


def test_a_late_reply_is_dropped_with_a_line_in_the_log(caplog):
    waiting = Questions()
    with caplog.at_level(logging.INFO):
        assert not waiting.take(DiagnoseReply(device="dev-1", id="abcdefgh"))
    assert "came too late, or nobody asked" in caplog.text


def test_one_device_does_not_take_all_the_room_for_questions():
    waiting = Questions(limit=10, of_device=2)

    async def ask():
        for question in ("a", "b"):
            waiting.expect("dev-1", question)
        with pytest.raises(Conflict, match="questions to device dev-1: are 2 already that wait"):
            waiting.expect("dev-1", "c")
        waiting.expect("dev-2", "c")
        waiting.forget("a")
        waiting.expect("dev-1", "d")

    asyncio.run(ask())


def test_who_asks_is_in_the_audit_trail_once_a_minute(asked, wire, clock):
    wire.answers[LogsRequest] = logs

    def lines():
        return [
            (line["actor"], line["action"]) for line in asked.get("/v1/audit?thing=dev-1&action=device").json()["items"]
        ]

    for _ in range(3):
        assert asked.post("/v1/devices/dev-1/logs", {}).status_code == 200
    wire.answers[DiagnoseRequest] = lambda device, request: DiagnoseReply(device=device, id=request.id)
    asked.post("/v1/devices/dev-1/diagnose")
    assert lines() == [("test", "device.diagnose"), ("test", "device.logs")]
    clock.pass_time(seconds=61)
    asked.post("/v1/devices/dev-1/logs", {})
    assert lines()[0] == ("test", "device.logs")
    assert len(lines()) == 3


def test_questions_that_wait_are_bounded_and_leave_no_trace():
    waiting = Questions(limit=2)

    async def ask():
        for question in ("a", "b"):
            waiting.expect("dev-1", question)
        with pytest.raises(Conflict, match="2 already that wait"):
            waiting.expect("dev-1", "c")
        waiting.forget("a")
        answer = waiting.expect("dev-2", "c" * 8)
        assert waiting.take(DiagnoseReply(device="dev-2", id="c" * 8))
        assert not waiting.take(DiagnoseReply(device="dev-2", id="c" * 8))
        assert (await answer).device == "dev-2"
        assert not waiting.expects("dev-2")
        assert waiting.expects("dev-1")

    asyncio.run(ask())


def test_many_questions_wait_at_once_without_holding_a_thread(asked, wire):
    """More wait than the pool has threads; meanwhile another request is answered."""
    asked.app.state.context = wire.context = dataclasses.replace(wire.context, questions=Questions(of_device=60))

    async def ask():
        transport = httpx.ASGITransport(app=asked.app)
        headers = {"Authorization": f"Bearer {asked.token}"}
        async with httpx.AsyncClient(transport=transport, base_url="https://server", headers=headers) as client:
            tasks = [asyncio.create_task(client.post("/v1/devices/dev-1/diagnose")) for _ in range(60)]
            async with asyncio.timeout(60):
                while len(wire.sent) < 60:
                    await asyncio.sleep(0.01)
                assert (await client.get("/v1/devices/dev-1")).status_code == 200
                for topic, request in wire.sent:
                    wire.context.questions.take(DiagnoseReply(device=topic.device, id=request.id))
                return [(await task).status_code for task in tasks]

    assert asyncio.run(ask()) == [200] * 60


def test_a_cancelled_question_is_forgotten(asked):
    async def ask():
        task = asyncio.create_task(questions.ask_logs(asked.context, "dev-1", LogsQuestion()))
        async with asyncio.timeout(60):
            while not asked.context.questions.expects("dev-1"):
                await asyncio.sleep(0.005)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert not asked.context.questions.expects("dev-1")

    asyncio.run(ask())
