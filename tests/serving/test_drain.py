"""SIGTERM loses no request: not on connections that idle, and not in the middle of one."""

from __future__ import annotations

import json
import signal
import socket
import time

import pytest

from wherry_serving.app import Options, drain_over

GET = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"


def answer(connection):
    """One response, read to its end."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(4096)
        assert part, f"closed after {data!r}"
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode().lower().split("\r\n")
    length = next(int(line.split(": ")[1]) for line in lines if line.startswith("content-length"))
    while len(body) < length:
        body += connection.recv(4096)
    return lines, body


def draining(process):
    with process.connect() as raw:
        raw.sendall(GET.replace(b"live", b"ready"))
        return answer(raw)[0][0] == "http/1.1 503 service unavailable"


@pytest.mark.parametrize(
    ("elapsed", "connections", "unread", "seconds", "over"),
    [
        (0.5, 0, False, 5, False),
        (1.0, 0, False, 5, True),
        (1.0, 0, True, 5, False),
        (1.0, 1, False, 5, False),
        (5.0, 1, True, 5, True),
        (0.0, 3, True, 0, True),
        (0.4, 0, False, 0.3, True),
    ],
)
def test_when_a_drain_is_over(elapsed, connections, unread, seconds, over):
    assert drain_over(elapsed, connections, unread, seconds) is over


def test_idle_connections_stay_usable_and_are_told_to_close(shop, launch):
    shop.identity("same")
    process = launch("--drain-seconds", "20")
    with process.connect() as first, process.connect() as second:
        for connection in (first, second):
            connection.sendall(GET)
            lines, _ = answer(connection)
            assert lines[0] == "http/1.1 200 ok"
            assert "connection: close" not in lines
        process.terminate()
        while not draining(process):
            pass
        body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]})
        first.sendall(f"POST /v2/models/same/infer HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        lines, found = answer(first)
        assert lines[0] == "http/1.1 200 ok"
        assert "connection: close" in lines
        assert json.loads(found)["outputs"][0]["data"] == [1, 2, 3, 4]
        assert first.recv(1) == b""
        with process.connect() as late:
            late.sendall(GET)
            assert "connection: close" in answer(late)[0]
        assert process.process.poll() is None, "an idle connection is still open"
    began = time.monotonic()
    assert process.wait() == 0
    assert time.monotonic() - began < 10, "all have left: no need to wait for the drain time"


def test_a_client_that_never_leaves_does_not_hold_it_up(shop, launch):
    shop.identity("same")
    process = launch("--drain-seconds", "1.2")
    with process.connect() as idle:
        idle.sendall(GET)
        answer(idle)
        process.terminate()
        assert process.wait() == 0
        assert idle.recv(1) == b""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_it_at_once(shop, launch, number):
    shop.identity("same")
    process = launch("--drain-seconds", "60")
    with process.connect() as idle:
        idle.sendall(GET)
        answer(idle)
        process.terminate()
        while not draining(process):
            pass
        process.process.send_signal(number)
        assert process.wait() == 0


def test_a_request_in_work_is_answered(start, slow):
    running = start(loader=slow.load)
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=20)
    item = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
    connection.request("POST", "/v2/models/slow/infer", json.dumps({"inputs": [item]}))
    assert slow.runtime.entered.acquire(timeout=10)
    running.server.handle_exit(signal.SIGTERM, None)
    assert not running.ready
    slow.runtime.go.release()
    reply = connection.getresponse()
    assert (reply.status, reply.getheader("connection")) == (200, "close")
    connection.close()
    running.thread.join(20)
    assert not running.thread.is_alive()


def test_what_was_answered_while_draining_can_still_be_read(start, shop):
    shop.identity("same")
    running = start(Options(drain_seconds=60))
    item = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
    with socket.create_connection(("127.0.0.1", running.port), timeout=20) as kept:
        kept.sendall(GET)
        answer(kept)
        assert count(running) == 0
        running.server.handle_exit(signal.SIGTERM, None)
        body = json.dumps({"inputs": [item]})
        kept.sendall(f"POST /v2/models/same/infer HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        answer(kept)
    running.thread.join(2.5)
    assert running.thread.is_alive(), "the count of that request has not been read"
    assert count(running) == 1
    running.thread.join(20)
    assert not running.thread.is_alive(), "it waits no longer than that"


def count(running):
    return running.ask("/v2/models/same/stats")[1]["model_stats"][0]["inference_stats"]["success"]["count"]
