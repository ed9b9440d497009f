"""Whatever happens, one clear answer: no traceback, and JSON for programs."""

from __future__ import annotations

import httpx
import pytest

from wherry.errors import MalformedMessage, ServerError, WherryError, walk_errors
from wherry.messages import Problem
from wherry_cli.client import RETRY_WAITS, ServerClient, error_from, tls_context
from wherry_cli.output import error_text


@pytest.mark.parametrize("kind", walk_errors(), ids=lambda kind: kind.code)
def test_every_error_of_the_server_arrives_as_its_class(kind):
    found = error_from(Problem(**kind("release vision 2", "is late").as_dict()))
    assert type(found) is kind
    assert found.as_dict() == kind("release vision 2", "is late").as_dict()


def test_an_unknown_code_arrives_as_its_nearest_parent():
    def problem(code):
        return Problem(code=code, thing="a", reason="b", fix="c")

    assert error_from(problem("trust.too_new")).code == "trust"
    assert type(error_from(problem("future"))) is WherryError


def test_an_error_reads_as_sentences():
    assert error_text(ServerError("server https://a", "cannot be reached (refused)")).plain.splitlines() == [
        "Error: server https://a cannot be reached (refused).",
        "  Next: Check the server's address and that it runs.",
        "  Code: adapter.server (wherry explain adapter.server)",
    ]
    assert error_text(WherryError("vision 2", "golden gate")).plain.startswith("Error: vision 2: golden gate.\n")


def test_misuse_is_json_too(wherry):
    for args in (
        ["bogus"],
        ["device", "bogus"],
        ["device", "show"],
        ["rollout", "show", "x"],
        ["device", "list", "-z"],
    ):
        answer = wherry(*args, "--json")
        assert answer.code == 2
        assert answer.json["error"]["thing"] == "command line"
    assert wherry("bogus").code == 2
    assert "No such command" in wherry("bogus").err


def test_a_defect_is_named_as_one(wherry, monkeypatch):
    def fail():
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("wherry_cli.profile.load_profiles", fail)
    answer = wherry("profile", "list", "--json")
    assert answer.code == 1
    assert "ZeroDivisionError: oops" in answer.json["error"]["reason"]
    assert "WHERRY_DEBUG=1" in wherry("profile", "list").err


def test_no_command_shows_help(wherry):
    assert "Usage: wherry" in wherry().out + wherry().err
    for group in ("keys", "release", "rollout", "device", "telemetry", "profile"):
        assert f"wherry {group}" in wherry(group, "--help").out


class Line:
    """An HTTP transport that answers from a list; an exception in it is raised."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.seen = []
        self.waits = []

    def handle(self, request):
        self.seen.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def client(self, certificates, tmp_path):
        (tmp_path / "ca.pem").write_bytes(certificates[0])
        transport = httpx.MockTransport(self.handle)
        return ServerClient("https://h:1", "t", tls_context(tmp_path / "ca.pem"), transport, self.waits.append)


INFO = httpx.Response(200, json={"root": 1, "targets": 2, "snapshot": 2, "timestamp": 3})


def test_a_get_is_repeated_a_few_times(certificates, tmp_path):
    line = Line(httpx.ConnectError("refused"), httpx.Response(503), httpx.ReadTimeout("slow"), INFO)
    assert line.client(certificates, tmp_path).repository().targets == 2
    assert line.waits == list(RETRY_WAITS)
    assert line.seen[0].headers["authorization"] == "Bearer t"


def test_and_then_it_gives_up(certificates, tmp_path):
    line = Line(*[httpx.ConnectError("refused")] * 9)
    with pytest.raises(ServerError, match=r"server https://h:1: cannot be reached \(refused\)"):
        line.client(certificates, tmp_path).repository()
    assert len(line.seen) == len(RETRY_WAITS) + 1


def test_a_post_is_sent_once(certificates, tmp_path):
    line = Line(httpx.ReadTimeout("slow"), INFO)
    with pytest.raises(ServerError):
        line.client(certificates, tmp_path).control_rollout(1, "pause")
    assert len(line.seen) == 1


def test_an_untrusted_certificate_is_not_tried_again(certificates, tmp_path):
    line = Line(httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed"), INFO)
    with pytest.raises(ServerError, match="shows a certificate that is not trusted"):
        line.client(certificates, tmp_path).repository()


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (httpx.Response(500, text="<html>"), ServerError, "answered 500 Internal Server Error to GET /v1/repository"),
        (httpx.Response(200, text="<html>"), MalformedMessage, "answer of https://h:1 to GET /v1/repository"),
        (httpx.Response(200, json={"root": "x"}), MalformedMessage, "field root"),
    ],
)
def test_an_answer_that_is_none(certificates, tmp_path, answer, kind, words):
    with pytest.raises(kind, match=words):
        Line(answer).client(certificates, tmp_path).repository()


def test_no_foreign_exception_escapes(certificates, tmp_path):
    for error in (httpx.InvalidURL("x"), httpx.DecodingError("x"), httpx.TooManyRedirects("x"), ValueError("x")):
        with pytest.raises(ServerError):
            Line(*[error] * 9).client(certificates, tmp_path).repository()
