"""Questions to model servers that answer well, badly, slowly, endlessly or not at all."""

from __future__ import annotations

import http.server
import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from agent_fakes import GOLDEN

from wherry.errors import InferenceError
from wherry.release import GoldenFile
from wherry.tensors import (
    HEADER_LENGTH,
    PROBE,
    TOKEN,
    InferResponse,
    decode_request,
    encode_response,
    tensor_from_values,
)
from wherry_agent.prober import HttpProber

CASE = GoldenFile.model_validate_json(GOLDEN).cases[0]


class ModelServer(http.server.BaseHTTPRequestHandler):
    """Answers by `mode`."""

    mode = "good"
    protocol_version = "HTTP/1.1"

    def _answer(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.mode == "drip":
            self.send_response(200)
            self.end_headers()
            for _ in range(200):
                self.wfile.write(b" ")
                time.sleep(0.05)
        elif self.mode == "endless":
            self.send_response(200)
            self.end_headers()
            while True:
                self.wfile.write(b" " * 65536)
        elif self.mode == "hung":
            time.sleep(2)
        elif self.path.endswith("/ready"):
            self._answer(b"", 200 if self.mode == "good" else 503)
        else:
            self._answer(b"[1]" if self.mode == "list" else b"{" if self.mode == "broken" else b'{"name": "vision"}')

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        request = decode_request(body, int(self.headers[HEADER_LENGTH]))
        assert self.headers[PROBE] == "1", "a golden case must not count as a request"
        if self.mode == "good":
            assert list(request.inputs[0].values()) == [1.0, 2.0]
            found = [tensor_from_values("y", "FP32", [1, 2], [0.25, 0.75])]
            answer, length = encode_response(InferResponse("vision", "1", "", tuple(found)), lambda _: True)
            self._answer(answer, **{HEADER_LENGTH: str(length)})
        elif self.mode == "refuses":
            self._answer(json.dumps({"error": "wrong shape"}).encode(), 400)
        else:
            self._answer(b"\x00\x01\x02", **{HEADER_LENGTH: "999"})

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[str]:
    ModelServer.mode = "good"
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), ModelServer) as found:
        found.daemon_threads = True
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()


def test_a_good_server_is_ready_and_answers_a_golden_case(server):
    prober = HttpProber()
    assert prober.ready(server, "vision", 2)
    assert prober.metadata(server, "vision", 2) == {"name": "vision"}
    outputs, seconds = prober.infer(server, "vision", CASE, 2)
    assert list(outputs[0].values()) == [0.25, 0.75]
    assert 0 < seconds < 2


def test_what_is_not_200_or_nothing_is_not_ready(server):
    prober = HttpProber()
    ModelServer.mode = "bad"
    assert not prober.ready(server, "vision", 2)
    assert prober.status(server, "/ready", 2) == 503
    assert prober.status("http://127.0.0.1:1", "/ready", 2) is None


@pytest.mark.parametrize("mode", ["hung", "drip", "endless"])
def test_nothing_takes_longer_than_its_deadline(server, mode):
    ModelServer.mode = mode
    began = time.monotonic()
    with pytest.raises(InferenceError):
        HttpProber().metadata(server, "vision", 0.5)
    assert time.monotonic() - began < 1.5


@pytest.mark.parametrize(("mode", "words"), [("list", "not a JSON object"), ("broken", "not JSON")])
def test_metadata_that_is_no_document_is_an_inference_error(server, mode, words):
    ModelServer.mode = mode
    with pytest.raises(InferenceError, match=words):
        HttpProber().metadata(server, "vision", 2)


@pytest.mark.parametrize(
    ("mode", "words"), [("refuses", "status 400.*wrong shape"), ("garbage", "golden case 'first'")]
)
def test_an_answer_that_is_no_answer_is_an_inference_error(server, mode, words):
    ModelServer.mode = mode
    with pytest.raises(InferenceError, match=words):
        HttpProber().infer(server, "vision", CASE, 2)


@pytest.mark.parametrize(("manner", "kept"), [("keeps", True), ("talks", True), ("closes", False), ("absent", False)])
def test_a_port_behind_a_proxy_that_closes_at_once_is_not_open(manner, kept):
    listener = socket.create_server(("127.0.0.1", 0))
    port, held = listener.getsockname()[1], []

    def serve() -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        if manner == "talks":
            connection.sendall(b"220 hello")
        if manner == "closes":
            connection.close()
        held.append(connection)

    thread = threading.Thread(target=serve, daemon=True)
    if manner == "absent":
        listener.close()
    else:
        thread.start()
    assert HttpProber().keeps_connection(port, 5.0) is kept
    listener.close()
    if manner != "absent":
        thread.join(5)
    for connection in held:
        connection.close()


def recent_server(serve, answers):
    """A model server that keeps requests: path to status and body."""
    asked = []

    class Keeps(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers.get(TOKEN)))
            status, body = answers.get(self.path, (404, b"{}"))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    return serve(Keeps), asked


@pytest.fixture
def serve():
    started = []

    def begin(handler) -> str:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        started.append((server, thread))
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield begin
    for server, thread in started:
        server.shutdown()
        server.server_close()
        thread.join(5)


def test_recent_requests_are_read_with_the_token_and_split_where_the_answer_begins(serve):
    outputs = (tensor_from_values("y", "FP32", [1], [0.5]),)
    answer, _ = encode_response(InferResponse("vision", "1", "", outputs), lambda _: False)
    head = {"number": 2, "model": "vision", "form": "tensors", "request_bytes": 4, "request_header": None}
    record = json.dumps(head | {"answer_header": None}).encode() + b"\nask\n" + answer
    url, asked = recent_server(
        serve,
        {
            "/wherry/recent": (200, b'{"recent": [[1, "vision", 9], [2, "vision", 9], [3, "other", 9]]}'),
            "/wherry/recent/2": (200, record),
            "/wherry/recent/9": (200, b"nonsense"),
        },
    )
    prober = HttpProber()
    assert prober.recent(url, "sesame", "vision", 5) == [1, 2]
    found = prober.recorded(url, "sesame", 2, 5)
    assert (found.form, found.request, list(found.outputs[0].values())) == ("tensors", b"ask\n", [0.5])
    assert prober.recorded(url, "sesame", 5, 5) is None
    with pytest.raises(InferenceError, match="is not readable"):
        prober.recorded(url, "sesame", 9, 5)
    assert {token for _, token in asked} == {"sesame"}


def test_a_server_that_keeps_nothing_has_no_recent_requests(serve):
    url, asked = recent_server(serve, {})
    assert HttpProber().recent(url, "sesame", "vision", 5) == []
    assert HttpProber().recent(url, "", "vision", 5) == []
    assert len(asked) == 1, "without a token nobody is asked"
