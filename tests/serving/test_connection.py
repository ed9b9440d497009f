"""Connections that drip, one write an answer, and who runs on which thread. On real sockets."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from wherry_serving.app import Options
from wherry_serving.bodies import Limits
from wherry_serving.connection import OneWrite
from wherry_serving.dataplane import Inference
from wherry_serving.pace import PROVEN, QUICK_NS, STALL_NS, Pace, Work

ITEM = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
BRIEF = Options(limits=Limits(header_seconds=1.5, body_seconds=1.5))
PATIENCE = 20.0


def everything(connection):
    """All that the server sends until it closes."""
    data = b""
    while part := connection.recv(4096):
        data += part
    return data


def drip(connection, start, stop):
    """Send one byte at a time, quicker than any timer between bytes, until told to stop."""

    def run():
        try:
            connection.sendall(start)
            while not stop.wait(0.02):
                connection.sendall(b"a")
        except OSError:
            return

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("start_of_request", "said"),
    [
        (b"GET /", b"408 Request Timeout"),
        (b"GET /v2/health/live HTTP/1.1\r\nX-Slow: ", b"request headers: are not complete in time"),
        (b"POST /v2/models/same/infer HTTP/1.1\r\nContent-Length: 100000\r\n\r\n", b"is not complete after 1.5 s"),
        (
            b"GET /v2/health/live HTTP/1.1\r\n\r\nGET /v2/health/live HTTP/1.1\r\nX-Slow: ",
            b"request headers: are not complete in time",
        ),
    ],
    ids=["request line", "headers", "body", "headers of the second request"],
)
def test_what_drips_has_one_deadline_in_all(shop, start, start_of_request, said):
    shop.identity("same")
    running, stop = start(BRIEF), threading.Event()
    with socket.create_connection(("127.0.0.1", running.port), timeout=PATIENCE) as slow:
        thread = drip(slow, start_of_request, stop)
        try:
            found = b""
            while b" 408 " not in found or said not in found:
                part = slow.recv(4096)
                assert part, found
                found += part
        finally:
            stop.set()
            thread.join()


def test_a_connection_that_sends_nothing_is_closed(shop, start):
    shop.identity("same")
    with socket.create_connection(("127.0.0.1", start(BRIEF).port), timeout=PATIENCE) as silent:
        assert b"408" in everything(silent)


def test_a_connection_in_use_outlives_the_deadline(shop, start):
    shop.identity("same")
    running = start(BRIEF)
    with socket.create_connection(("127.0.0.1", running.port), timeout=PATIENCE) as kept:
        for pause in (0, 2.0):
            time.sleep(pause)
            kept.sendall(b"GET /v2/health/live HTTP/1.1\r\n\r\n")
            assert b"200 OK" in kept.recv(4096)


class Transport:
    def __init__(self):
        self.sent = []

    def write(self, data):
        self.sent.append(data)

    def writelines(self, parts):
        self.sent.append(b"".join(parts))

    def close(self):
        self.sent.append("closed")

    def is_closing(self):
        return "closed" in self.sent


def test_head_and_body_are_one_write():
    transport, answering = Transport(), [False]
    out = OneWrite(transport, lambda: answering[0])
    out.write(b"100 continue")
    answering[0] = True
    out.write(b"head")
    out.write(b"body")
    out.flush()
    out.write(b"head of HEAD")
    out.flush()
    out.write(b"last head")
    assert not out.is_closing()
    out.close()
    assert transport.sent == [b"100 continue", b"headbody", b"head of HEAD", b"last head", "closed"]


def test_answers_without_a_body_and_interim_answers_still_come(shop, start):
    shop.identity("same")
    running = start()
    with socket.create_connection(("127.0.0.1", running.port), timeout=PATIENCE) as connection:
        connection.sendall(b"HEAD /v2/health/live HTTP/1.1\r\n\r\n")
        assert b"200 OK" in connection.recv(4096)
        head = b"POST /v2/repository/index HTTP/1.1\r\nContent-Length: 2\r\n"
        connection.sendall(head + b"Expect: 100-continue\r\nConnection: close\r\n\r\n")
        assert b"100 Continue" in connection.recv(4096)
        connection.sendall(b"{}")
        assert b"READY" in everything(connection)


SOUND = Work(("y",), ((1, 4),))
"""What `ITEM` asks of the model."""


@pytest.fixture
def where(shop, start, monkeypatch):
    """A steady model that is taken to be quick: ask it a tensor, and hear the thread that answered."""
    shop.identity("same", steady=True)
    running = start()
    plane, names = running.server._app._plane, []
    run = plane.models[0].runtime.run
    monkeypatch.setattr(
        plane.models[0].runtime, "run", lambda *given: names.append(threading.current_thread().name) or run(*given)
    )

    def ask(proven=True, **more):
        if proven:
            pace = plane.models[0].pace
            pace.quick, pace.most, pace.size = PROVEN, SOUND, 10_000
        assert running.infer("same", ITEM | more)[0] == 200
        return "event loop" if names[-1] == running.thread.name else names[-1]

    ask.pace = plane.models[0].pace
    return ask


def test_a_quick_model_runs_on_the_event_loop_and_a_slow_one_on_its_thread(where):
    assert where(proven=False) == "inference"
    assert where() == "event loop"
    where.pace.took(SOUND, 1, QUICK_NS + 1)
    assert where(proven=False) == "inference"
    where.pace.quick = PROVEN
    where.pace.took(SOUND, 1, STALL_NS + 1)
    assert where() == "inference", "once and for good"


def test_a_larger_tensor_in_no_larger_a_body_runs_on_the_thread(where):
    assert where(shape=[1, 4]) == "event loop"
    assert where(shape=[2, 4], data=[0] * 8) == "inference"


def test_a_model_whose_cost_may_depend_on_values_never_runs_on_the_event_loop(shop, start):
    shop.identity("same")
    running = start()
    plane = running.server._app._plane
    (model,) = plane.models
    model.pace.quick, model.pace.most, model.pace.size = PROVEN, SOUND, 10_000
    assert not plane.runs_at_once(model, Inference(b"{}", None, 0))


def test_pace_is_proven_by_a_row_and_lost_by_one():
    pace, work = Pace(), Work(("y",), ((2, 3),))
    for number in range(PROVEN):
        assert not pace.may_be_quick(1), number
        pace.took(work, 500, QUICK_NS)
    assert pace.may_be_quick(500)
    assert not pace.may_be_quick(501), "nobody knows how long a larger request takes"
    pace.took(None, 900, 10)
    assert not pace.may_be_quick(501), "a failure says nothing about sizes"
    pace.took(work, 3, STALL_NS)
    assert not pace.may_be_quick(1)
    for _ in range(PROVEN):
        pace.took(work, 500, QUICK_NS)
    assert pace.may_be_quick(500), "a machine that was busy once is not slow for ever"
    pace.took(work, 500, STALL_NS + 1)
    for _ in range(PROVEN):
        pace.took(work, 500, QUICK_NS)
    assert not pace.may_be_quick(500), "a proof that failed is not made again"


def test_a_row_proves_no_work_but_its_own():
    pace = Pace()
    for rows in range(1, 2 * PROVEN):
        pace.took(Work(("y",), ((rows, 3),)), 500, 1)
        assert not pace.may_be_quick(500), "each asked for more than the last"
    for rows in range(PROVEN):
        pace.took(Work(("y",), ((rows, 3),)), 500, 1)
    assert pace.may_be_quick(500)
    assert pace.most.covers(Work(("y",), ((PROVEN, 3),)))
    assert not pace.most.covers(Work(("y",), ((3, PROVEN),)))
    assert not pace.most.covers(Work(("y",), ((3, 1, 1),)))
    assert not pace.most.covers(Work(("y", "z"), ((1, 3),))), "another output may cost anything"
