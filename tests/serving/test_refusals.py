"""Every wrong request gets the protocol's error with the right status, and the server goes on."""

from __future__ import annotations

import gzip
import json
import socket
import zlib

import pytest

from wherry_serving.app import Options
from wherry_serving.bodies import Limits

X = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
SMALL = Options(limits=Limits(body_bytes=10_000, inflight_bytes=15_000, body_seconds=0.3))


@pytest.fixture
def running(shop, start):
    shop.identity("same")
    shop.identity("text", "BYTES", [1])
    running = start(SMALL)
    yield running
    status, reply, _ = running.infer("same", X)
    assert status == 200, "the server must go on after a refusal"
    assert reply["outputs"][0]["data"] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ([], "input 'x' is missing, expected FP32 of shape [-1, 4]"),
        ([{**X, "name": "z"}], "input 'z' is not an input of this model, expected x"),
        ([{**X, "datatype": "INT32"}], "input 'x' has datatype INT32, expected FP32"),
        ([{**X, "shape": [4], "data": [1, 2, 3, 4]}], "input 'x' has shape [4], expected [-1, 4] (-1 is any size)"),
        ([{**X, "shape": [2, 2]}], "input 'x' has shape [2, 2], expected [-1, 4] (-1 is any size)"),
        ([{**X, "data": [1, 2, 3]}], "tensor 'x' has 3 values, expected 4 for shape [1, 4]"),
        ([{**X, "data": [1, 2, 3, "a"]}], "tensor 'x' has data that is not FP32"),
        ([X, X], "input 'x' is given twice"),
        ([{**X, "shape": [2**62, 2**62]}], "expected"),
    ],
)
def test_bad_inputs_are_named_with_what_was_expected(running, tensors, said):
    status, reply, _ = running.infer("same", *tensors)
    assert status == 400
    assert said in reply["error"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b"[]", "not a JSON object"),
        (b"[" * 5000, "JSON"),
        (b'{"inputs": {}}', "input"),
        (b'{"inputs": [], "outputs": [{"name": "q"}]}', "requested output 'q'"),
        (b"\xff\xfe", "JSON"),
    ],
)
def test_bad_bodies(running, body, said):
    status, reply, _ = running.ask("/v2/models/same/infer", body)
    assert status == 400
    assert said in reply["error"]


@pytest.mark.parametrize("length", ["-1", "x", "999999", "1e3", "9" * 30, "\xb2"])
def test_bad_header_lengths(running, length):
    status, reply, _ = running.ask("/v2/models/same/infer", b"{}", Inference_Header_Content_Length=length)
    assert status == 400
    assert "Inference-Header-Content-Length" in reply["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v2/models", 404),
        ("GET", "/v3", 404),
        ("GET", "/v2/models/none", 404),
        ("GET", "/v2/models/none/ready", 404),
        ("POST", "/v2/models/none/infer", 404),
        ("GET", "/v2/models/same/versions/2", 404),
        ("GET", "/v2/models/same/versions/1/nothing", 404),
        ("POST", "/v2/models/same/versions/2/infer", 404),
        ("POST", "/v2/models/same/versions/1/x/infer", 404),
        ("GET", "/v2/models/%2e%2e/ready", 404),
        ("GET", "/v2/models/same/infer", 405),
        ("DELETE", "/v2/models/same", 405),
        ("GET", "/v2/repository/index", 405),
        ("POST", "/v2/repository/models/same/load", 405),
    ],
)
def test_unknown_things_and_wrong_methods(running, method, path, status):
    found, reply, _ = running.ask(path, b"{}" if method == "POST" else None, method)
    assert found == status
    assert set(reply) == {"error"}


def test_a_body_that_says_it_is_too_large_is_not_read(running):
    status, reply, _ = running.ask("/v2/models/same/infer", b"x" * 10_001)
    assert status == 413
    assert "10000 bytes" in reply["error"]


def test_a_body_that_does_not_say_how_large_it_is(running):
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as raw:
        raw.sendall(b"POST /v2/models/same/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(11):
            raw.sendall(b"3e8\r\n" + b"x" * 1000 + b"\r\n")
        raw.sendall(b"0\r\n\r\n")
        assert raw.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_a_body_that_never_ends_is_given_up(running):
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as raw:
        raw.sendall(b"POST /v2/models/same/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert raw.recv(4096).startswith(b"HTTP/1.1 408 ")


def test_a_client_that_leaves_in_the_middle_costs_nothing(running):
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", running.port), timeout=10) as raw:
            raw.sendall(b"POST /v2/models/same/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n\r\n{")


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_bomb_is_refused_before_it_unpacks(running, coding):
    bomb = (gzip.compress if coding == "gzip" else zlib.compress)(b"\0" * 5_000_000)
    assert len(bomb) < 10_000
    status, reply, _ = running.ask("/v2/models/same/infer", bomb, Content_Encoding=coding)
    assert status == 413
    assert "larger than" in reply["error"]


@pytest.mark.parametrize(
    ("coding", "body", "status"),
    [
        ("gzip", b"not gzip at all", 400),
        ("gzip", gzip.compress(b"{}" * 100)[:-9], 400),
        ("gzip", gzip.compress(b"{}") * 2, 400),
        ("deflate", b"\x78\x9c garbage", 400),
        ("br", b"{}", 415),
        ("gzip, gzip", b"{}", 415),
    ],
)
def test_bad_codings(running, coding, body, status):
    found, reply, _ = running.ask("/v2/models/same/infer", body, Content_Encoding=coding)
    assert found == status
    assert "request body" in reply["error"]


def test_deflate_without_its_header_is_understood(running):
    packer = zlib.compressobj(wbits=-15)
    body = packer.compress(json.dumps({"inputs": [X]}).encode()) + packer.flush()
    assert running.ask("/v2/models/same/infer", body, Content_Encoding="deflate")[0] == 200


def test_text_models_refuse_bytes_that_are_not_text(running):
    head = {
        "inputs": [{"name": "x", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 5}}],
    }
    text = json.dumps(head).encode()
    status, reply, _ = running.ask(
        "/v2/models/text/infer", text + b"\x01\0\0\0\xff", Inference_Header_Content_Length=str(len(text))
    )
    assert status == 400
    assert "not UTF-8" in reply["error"]


def test_nan_has_no_json_form_but_a_binary_one(running):
    text = json.dumps(
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": 16}}]}
    ).encode()
    body = text + b"\xff" * 16
    status, reply, _ = running.ask("/v2/models/same/infer", body, Inference_Header_Content_Length=str(len(text)))
    assert status == 400
    assert "NaN" in reply["error"]
    text = text[:-1] + b',"parameters":{"binary_data_output":true}}'
    body = text + b"\xff" * 16
    status, reply, headers = running.ask("/v2/models/same/infer", body, Inference_Header_Content_Length=str(len(text)))
    assert status == 200
    assert reply[int(headers["inference-header-content-length"]) :] == b"\xff" * 16
