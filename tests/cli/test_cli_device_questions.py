"""What a device is asked through the server: its logs, and what it finds wrong with itself."""

from __future__ import annotations

from datetime import timedelta

import pytest

from wherry.errors import Conflict, LinkError
from wherry.questions import LogLine
from wherry_cli.logs import Tail, line_text


@pytest.fixture
def line(make):
    def line(seconds, text, version="2"):
        return LogLine(at=make.started + timedelta(seconds=seconds), text=text, version=version)

    return line


@pytest.fixture
def asked(operator, server, make, line):
    server.devices = {"edge-1": make.device("edge-1")}
    server.logs = [answer(line(0, "listening"), line(1, "ready"))]
    return server


def answer(*lines, truncated=False):
    return {"lines": [line.model_dump(mode="json") for line in lines], "truncated": truncated}


def test_a_line_is_told_once_however_often_it_comes(line):
    tail = Tail()
    assert tail.since is None
    first = [line(0, "a"), line(1, "b"), line(1, "b")]
    assert tail.fresh(first) == first
    assert tail.since == line(1, "").at - timedelta(microseconds=1)
    # The same instant once more: what was there is known, what came to it is new.
    assert tail.fresh([line(1, "b"), line(1, "b"), line(1, "b"), line(1, "c"), line(2, "d")]) == [
        line(1, "b"), line(1, "c"), line(2, "d"),
    ]  # fmt: skip
    assert tail.fresh([line(2, "d")]) == []
    assert tail.fresh([]) == []
    assert tail.fresh([line(0, "late"), line(3, "e")]) == [line(3, "e")]


def test_what_a_container_writes_cannot_steer_the_terminal(line):
    shown = line_text(line(0, "red \x1b[31m bell \x07 tab\tbidi \u202e")).plain
    assert "\\x1b[31m" in shown
    assert "\\x07" in shown
    assert "\\u202e" in shown
    assert shown.isprintable()


def test_logs_are_shown_once(operator, asked):
    shown = operator("device", "logs", "edge-1", "--lines", "7", "--since", "10m")
    assert [row.split()[1:] for row in shown.out.splitlines()] == [["2", "listening"], ["2", "ready"]]
    [sent] = asked.bodies("POST", "/v1/devices/edge-1/logs")
    assert (sent["slot"], sent["lines"]) == ("main", 7)
    assert sent["since"]
    assert operator("device", "logs", "edge-1", "--json").json["lines"][1]["text"] == "ready"


def test_logs_name_the_slot_when_they_must(operator, asked, make):
    slot = make.device("x").slots[0]
    asked.devices["edge-1"].slots = [slot.model_copy(update={"slot": "camera"})]
    asked.devices["edge-1"].desired = {}
    operator("device", "logs", "edge-1")
    assert asked.bodies("POST", "/v1/devices/edge-1/logs")[0]["slot"] == "camera"
    asked.devices["edge-1"].slots.append(slot.model_copy(update={"slot": "door"}))
    assert "Name one: camera, door" in operator("device", "logs", "edge-1").err


def test_logs_say_when_there_are_none_and_when_there_were_more(operator, asked, line):
    asked.logs = [answer()]
    assert "edge-1 has no such lines of slot main." in operator("device", "logs", "edge-1").err
    asked.logs = [answer(line(0, "x"), truncated=True)]
    assert "Older lines are left out" in operator("device", "logs", "edge-1").err


@pytest.fixture
def rests(monkeypatch):
    """Rests between looks, which end the following after some of them, as Ctrl-C does."""

    def after(count):
        left = [None] * count

        def sleep(_seconds):
            if not left:
                raise KeyboardInterrupt
            left.pop()

        monkeypatch.setattr("wherry_cli.looking.time.sleep", sleep)

    return after


def test_following_goes_on_without_repeating_itself(operator, asked, line, rests):
    rests(2)
    asked.logs += [answer(line(1, "ready"), line(2, "one")), answer(line(2, "one"), line(3, "two"), truncated=True)]
    shown = operator("device", "logs", "-f", "edge-1", "main")
    assert shown.code == 0
    assert [row.split()[-1] for row in shown.out.splitlines()] == ["listening", "ready", "one", "two"]
    assert "Some lines are missing here" in shown.err
    sent = asked.bodies("POST", "/v1/devices/edge-1/logs")
    assert [body["lines"] for body in sent] == [100, 500, 500]
    assert sent[0]["since"] is None
    assert sent[1]["since"] < sent[2]["since"]


def test_following_lives_through_what_passes(operator, asked, line, rests):
    rests(4)
    away = Conflict("device edge-1", "is offline", "Wait")
    asked.logs += [away, away, LinkError("device edge-1", "did not answer", "Ask again"), answer(line(2, "back"))]
    shown = operator("device", "logs", "--follow", "edge-1", "main", "--json")
    assert [item["text"] for item in shown.lines] == ["listening", "ready", "back"]
    assert shown.err.count("is offline; trying again") == 1
    assert shown.err.count("did not answer; trying again") == 1


def test_following_a_device_that_never_answered_ends(operator, asked):
    asked.logs = [Conflict("device edge-1", "is offline", "Look at `wherry device list`")]
    shown = operator("device", "logs", "-f", "edge-1", "main")
    assert shown.code == 1
    assert "edge-1 is offline" in shown.err


OK = {"name": "disk", "level": "ok", "detail": "7 GB free", "fix": ""}
BAD = {"name": "clock", "level": "error", "detail": "9 min behind", "fix": "Start systemd-timesyncd"}
WARNING = {"name": "inodes", "level": "warning", "detail": "4 % free", "fix": "Remove files"}


def test_diagnose_shows_what_is_wrong_first_and_how_to_mend_it(operator, asked):
    asked.checks = [OK, WARNING, BAD]
    shown = operator("device", "diagnose", "edge-1")
    assert shown.code == 1
    assert shown.out.index("clock") < shown.out.index("inodes") < shown.out.index("disk")
    assert "→ Start systemd-timesyncd" in shown.out
    assert "edge-1: 1 of 3 checks failed, 1 warnings." in shown.out
    assert operator("device", "diagnose", "edge-1", "--json").json["checks"][2] == BAD


def test_diagnose_of_a_device_that_works(operator, asked):
    asked.checks = [OK, WARNING]
    assert operator("device", "diagnose", "edge-1").code == 0
    assert "works; 1 of 2 checks warn." in operator("device", "diagnose", "edge-1").out
    asked.checks = [OK]
    assert "all 1 checks are fine" in operator("device", "diagnose", "edge-1").out
