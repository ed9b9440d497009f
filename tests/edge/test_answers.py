"""Questions to a device: bounded, one at a time, and never in the way of its work."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest

from wherry.errors import EngineError
from wherry.questions import LOG_LINE_CHARS, LOG_LINES, REPLY_BYTES, Check, DiagnoseRequest, LogsReply, LogsRequest
from wherry_agent import answers
from wherry_agent.answers import WAITING, Answerer
from wherry_agent.container_logs import container_to_read, log_lines
from wherry_agent.observed import ActiveSlot, Container

AT = datetime(2030, 1, 1, tzinfo=UTC)
RAW = b"2030-01-01T00:00:00.123456789Z one\n2030-01-01T00:00:01Z two\n2030-01-01T02:00:02.5+02:00 three\n"


def container(counter, state="running", slot="main"):
    return Container(f"wherry.dev-1.{slot}.tiny.{counter}", slot, "sha256:1", state, 18500 + counter, 8500)


def found(*containers):
    return {one.name: one for one in containers}


class TestLogLines:
    def test_lines_come_with_their_instant_and_version(self):
        lines, truncated = log_lines(RAW, "7", None, 10)
        assert [line.text for line in lines] == ["one", "two", "three"]
        assert lines[0].at == AT + timedelta(microseconds=123456)
        assert lines[2].at == AT + timedelta(seconds=2.5)
        assert {line.version for line in lines} == {"7"}
        assert not truncated

    def test_the_newest_are_kept_and_it_says_that_there_were_more(self):
        lines, truncated = log_lines(RAW, "7", None, 2)
        assert ([line.text for line in lines], truncated) == (["two", "three"], True)

    def test_only_what_was_written_after_an_instant(self):
        lines, truncated = log_lines(RAW, "7", AT + timedelta(seconds=1), 10)
        assert ([line.text for line in lines], truncated) == (["three"], False)

    def test_no_answer_is_longer_than_the_channel_takes(self):
        one = b"2030-01-01T00:00:00Z " + b'"\\' * 900 + "é".encode() * 200 + b"\n"
        lines, truncated = log_lines(one * LOG_LINES, "7", None, LOG_LINES)
        reply = LogsReply(device="dev-1", id="12345678", lines=lines, truncated=truncated)
        assert truncated
        assert len(reply.to_bytes()) <= REPLY_BYTES + 1000
        assert len(lines) > 10

    def test_a_line_without_end_is_cut(self):
        lines, _ = log_lines(b"2030-01-01T00:00:00Z " + b"x" * 1_000_000, "7", None, 10)
        assert len(lines[0].text) == LOG_LINE_CHARS

    def test_nothing_steers_the_readers_terminal(self):
        lines, _ = log_lines(b"2030-01-01T00:00:00Z \x1b[31mred\x1b[0m\x07\x1b]0;title\x07\ttab\r\n", "7", None, 10)
        assert lines[0].text == "red]0;title\ttab"

    def test_what_is_no_log_is_left_out(self):
        assert log_lines(b"\xff\xfe\n\n9999-99-99T00:00:00Z x\n", "7", None, 10) == ([], False)


class TestWhichContainer:
    def test_the_one_that_serves(self):
        active = [
            ActiveSlot("main", None, "http://127.0.0.1:18501"),
            ActiveSlot("other", None, "http://127.0.0.1:18502"),
        ]
        assert container_to_read("main", found(container(1), container(2)), active) == container(1)

    def test_the_newest_when_none_serves(self):
        stopped = found(container(9, "exited"), container(10, "exited"), container(11, slot="other"))
        assert container_to_read("main", stopped, []) == container(10, "exited")

    def test_none_when_the_slot_has_none(self):
        assert container_to_read("main", found(container(1, slot="other")), []) is None


class Engine:
    """Containers and their log; `hold` keeps a reader waiting."""

    def __init__(self) -> None:
        self.containers = found(container(1))
        self.asked: list[tuple[str, int, float | None]] = []
        self.hold = threading.Event()
        self.hold.set()
        self.reading = threading.Event()
        self.error: Exception | None = None

    def observe(self):
        if self.error:
            raise self.error
        return self.containers

    def inspect(self, name):
        return self.containers.get(name)

    def logs(self, name, lines, since):
        self.reading.set()
        assert self.hold.wait(20)
        self.asked.append((name, lines, since))
        return RAW


class Desk:
    def __init__(self) -> None:
        self.engine, self.replies, self.checks = Engine(), [], [Check(name="disk", level="ok", detail="fine")]
        self.answerer = Answerer(
            "dev-1", self.engine, list, lambda: self.checks, {"architecture": "x86_64"}, self.replies.append
        )  # fmt: skip


@pytest.fixture
def desk():
    made = Desk()
    yield made
    made.engine.hold.set()
    made.answerer.stop()


def logs(number, **changes):
    return LogsRequest(**({"id": f"question{number}", "slot": "main"} | changes))


def test_logs_are_read_and_sent(desk, wait_until):
    desk.answerer.ask(logs(1, lines=2, since=AT))
    wait_until(lambda: desk.replies, "an answer comes")
    reply = desk.replies[0]
    assert (reply.id, [line.text for line in reply.lines], reply.truncated) == ("question1", ["two", "three"], True)
    assert desk.engine.asked == [("wherry.dev-1.main.tiny.1", 3, AT.timestamp())]


def test_an_examination_is_sent_with_the_facts(desk, wait_until):
    desk.answerer.ask(DiagnoseRequest(id="question1"))
    wait_until(lambda: desk.replies, "an answer comes")
    assert (desk.replies[0].checks, desk.replies[0].facts) == (desk.checks, {"architecture": "x86_64"})


@pytest.mark.parametrize(
    ("error", "slot", "words"),
    [
        (None, "absent", "no container of this slot"),
        (EngineError("containers", "the engine is away"), "main", "the engine is away"),
        (RuntimeError("a defect"), "main", "failed unexpectedly"),
    ],
)
def test_why_there_is_no_answer_is_an_answer(desk, wait_until, error, slot, words):
    desk.engine.error = error
    desk.answerer.ask(logs(1, slot=slot))
    wait_until(lambda: desk.replies, "an answer comes")
    assert words in desk.replies[0].problem.reason
    desk.engine.error = None
    desk.answerer.ask(logs(2))
    wait_until(lambda: len(desk.replies) == 2, "the next question is answered")


def test_a_flood_is_dropped_and_nobody_who_asks_waits(desk, wait_until, caplog):
    desk.engine.hold.clear()
    desk.answerer.ask(logs(0))
    assert desk.engine.reading.wait(20)
    for number in range(1, 20):
        desk.answerer.ask(logs(number))
    desk.engine.hold.set()
    wait_until(lambda: len(desk.replies) == WAITING + 1, "those that waited are answered")
    assert [reply.id for reply in desk.replies] == [f"question{number}" for number in range(WAITING + 1)]
    assert sum("dropped" in record.message for record in caplog.records) == 19 - WAITING


def test_a_question_that_the_broker_sends_twice_is_answered_once(desk, wait_until):
    for number in (1, 1, 2):
        desk.answerer.ask(logs(number))
    wait_until(lambda: len(desk.replies) == 2, "both are answered")
    assert [reply.id for reply in desk.replies] == ["question1", "question2"]


def test_a_question_that_waited_too_long_is_dropped(desk, wait_until, monkeypatch, caplog):
    desk.engine.hold.clear()
    desk.answerer.ask(logs(1))
    assert desk.engine.reading.wait(20)
    desk.answerer.ask(logs(2))
    monkeypatch.setattr(answers, "PATIENCE_SECONDS", -1.0)
    desk.engine.hold.set()
    wait_until(lambda: any("nobody waits" in record.message for record in caplog.records), "the second is dropped")
    assert [reply.id for reply in desk.replies] == ["question1"]
