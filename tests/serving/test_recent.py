"""What the model server keeps of its callers' requests: for the agent alone, bounded, and only when told to."""

from __future__ import annotations

import http.client
import json

import pytest

from wherry.errors import ConfigError, NotFound
from wherry.tensors import decode_request, decode_response
from wherry_serving.recent import RecentRequests, from_environment

TOKEN = "sesame"


def tensor(value):
    return {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [value] * 4}


def ring(most=3, limit=1 << 20):
    return RecentRequests(most, TOKEN, limit)


@pytest.fixture
def keeps(shop, start):
    """A server that keeps the last three requests."""
    shop.identity("echo")
    running = start()
    running.server._plane.recent = ring()
    return running


def numbers(server):
    return [number for number, _, _ in server.ask("/wherry/recent", Wherry_Token=TOKEN)[1]["recent"]]


def test_a_server_that_was_not_told_to_keeps_nothing_and_has_no_such_path(shop, start):
    shop.identity("echo")
    server = start()
    server.infer("echo", tensor(1.0))
    assert server.ask("/wherry/recent", Wherry_Token=TOKEN)[0] == 404


@pytest.mark.parametrize("headers", [{}, {"Wherry_Token": ""}, {"Wherry_Token": "open"}, {"Wherry_Token": "sésame"}])
def test_whoever_does_not_know_the_token_finds_nothing_there(keeps, headers):
    keeps.infer("echo", tensor(1.0))
    status, body, _ = keeps.ask("/wherry/recent", **headers)
    assert (status, body) == (404, {"error": "path /wherry/recent is not part of the Open Inference Protocol"})
    assert keeps.ask("/wherry/recent/1", **headers)[0] == 404


def test_the_last_requests_are_kept_with_their_answers_and_the_oldest_give_way(keeps):
    for value in range(5):
        keeps.infer("echo", tensor(float(value)))
    assert numbers(keeps) == [3, 4, 5]
    status, body, _ = keeps.ask("/wherry/recent/5", Wherry_Token=TOKEN)
    line, _, rest = body.partition(b"\n")
    head = json.loads(line)
    asked = decode_request(rest[: head["request_bytes"]], head["request_header"])
    answered = decode_response(rest[head["request_bytes"] :], head["answer_header"])
    assert (status, head["model"], head["form"]) == (200, "echo", "tensors")
    assert list(asked.inputs[0].values()) == list(answered.outputs[0].values()) == [4.0] * 4
    assert keeps.ask("/wherry/recent/1", Wherry_Token=TOKEN)[0] == 404


def test_probes_and_refused_requests_are_not_kept(keeps):
    keeps.ask("/v2/models/echo/infer", {"inputs": [tensor(1.0)]}, Wherry_Probe="1")
    keeps.infer("echo", {**tensor(1.0), "name": "y"})
    assert numbers(keeps) == []


def test_bytes_are_bounded_and_what_is_too_large_is_left_out():
    kept = ring(most=100, limit=100)
    for _ in range(10):
        kept.add("m", "tensors", bytes(20), None, bytes(10), None)
    assert len(kept.index()["recent"]) == 3
    kept.add("m", "tensors", bytes(50), None, bytes(1), None)
    assert [number for number, _, _ in kept.index()["recent"]] == [8, 9, 10]
    with pytest.raises(NotFound):
        kept.one("1")


def test_only_number_and_token_together_switch_it_on():
    assert from_environment({}) is None
    assert from_environment({"WHERRY_REHEARSAL": "5"}) is None
    assert from_environment({"WHERRY_REHEARSAL": "0", "WHERRY_CONTROL_TOKEN": "t"}) is None
    assert from_environment({"WHERRY_REHEARSAL": "5", "WHERRY_CONTROL_TOKEN": "t"}) is not None
    with pytest.raises(ConfigError):
        from_environment({"WHERRY_REHEARSAL": "many", "WHERRY_CONTROL_TOKEN": "t"})


def test_the_program_itself_keeps_what_its_environment_asks_for(shop, launch, monkeypatch):
    shop.identity("echo")
    monkeypatch.setenv("WHERRY_REHEARSAL", "2")
    monkeypatch.setenv("WHERRY_CONTROL_TOKEN", TOKEN)
    process = launch()
    connection = http.client.HTTPConnection("127.0.0.1", process.port, timeout=20)
    try:
        connection.request("POST", "/v2/models/echo/infer", json.dumps({"inputs": [tensor(1.0)]}))
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status == 200, body
        connection.request("GET", "/wherry/recent", headers={"Wherry-Token": TOKEN})
        found = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    assert [number for number, _, _ in found["recent"]] == [1]
