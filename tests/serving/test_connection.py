"""Connections that drip, one write an answer, and who runs on which thread. On real sockets."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from wherry_serving.app import Options
from wherry_serving.bodies import Limits
from wherry_serving.connection import OneWrite
from wherry_serving.pace import PROVEN, QUICK_NS, Pace

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


def test_a_quick_model_runs_on_the_event_loop_and_a_slow_one_on_its_thread(shop, start, monkeypatch):
    shop.identity("same")
    running = start()
    names = []
    plane = running.server._app._plane
    infer = plane.infer

    def noting(model, inference):
        names.append(threading.current_thread().name)
        return infer(model, inference)

    monkeypatch.setattr(plane, "infer", noting)
    pace = plane.models[0].pace
    assert running.infer("same", ITEM)[0] == 200
    assert names == ["inference"]
    pace.took(10_000, 0)
    pace.quick = PROVEN
    assert running.infer("same", ITEM)[0] == 200
    assert names[-1] == running.thread.name
    pace.took(1, QUICK_NS + 1)
    assert running.infer("same", ITEM)[0] == 200
    assert names[-1] == "inference"


def test_pace_is_proven_by_a_row_and_lost_by_one():
    pace = Pace()
    for number in range(PROVEN):
        assert not pace.is_quick(1), number
        pace.took(500, QUICK_NS)
    assert pace.is_quick(500)
    assert not pace.is_quick(501), "nobody knows how long a larger request takes"
    pace.took(0, 10)
    assert not pace.is_quick(501), "a failure says nothing about sizes"
    pace.took(3, QUICK_NS + 1)
    assert not pace.is_quick(1)
