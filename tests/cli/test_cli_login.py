"""Logging in: whom the tool trusts, what it keeps, and that a failed login changes nothing."""

from __future__ import annotations

import pytest


@pytest.fixture
def login(wherry, server, make):
    def run(*args, **more):
        return wherry("login", "--server", server.url, "--token", make.token, *args, **more)

    return run


def test_a_known_fingerprint_is_enough(login, server, home):
    written = ":".join(server.ca_sha256[i : i + 2] for i in range(0, 64, 2)).upper()
    answer = login("--ca-sha256", written, "--json")
    assert answer.code == 0
    assert answer.json["ca_sha256"] == server.ca_sha256
    assert home.joinpath("ca.crt").read_bytes() == server.ca_pem


def test_another_fingerprint_is_refused(login, home):
    answer = login("--ca-sha256", "00" * 32, "--json")
    assert answer.code == 1
    assert answer.json["error"]["code"] == "identity"
    assert not home.joinpath("config.toml").exists()
    assert "64 hexadecimal" in login("--ca-sha256", "abc").err


def test_without_a_ca_nobody_is_trusted_unseen(login, server):
    answer = login()
    assert answer.code == 1
    assert server.ca_sha256 in answer.err
    assert all(path == "/v1/ca" for _method, path, _body in server.requests)  # the token stayed here


def test_at_a_terminal_the_fingerprint_is_shown_and_asked(login, server, monkeypatch):
    monkeypatch.setattr("wherry_cli.login.may_ask", lambda _out: True)
    shown = ":".join(server.ca_sha256[i : i + 2] for i in range(0, 64, 2)).upper()
    refused = login(input="n\n")
    assert refused.code == 1
    assert shown in refused.err
    assert login(input="y\n").code == 0


def test_a_wrong_token_leaves_the_old_login_alone(operator, server, home, tmp_path):
    before = {path.name: path.read_bytes() for path in home.iterdir()}
    answer = operator("login", "--server", server.url, "--token", "wrong", "--ca-file", tmp_path / "ca.pem", "--json")
    assert answer.json["error"]["code"] == "not_allowed"
    assert "wherry-server token create" in answer.json["error"]["fix"]
    assert {path.name: path.read_bytes() for path in home.iterdir()} == before


def test_a_token_file(wherry, server, make, tmp_path, monkeypatch):
    ca, secret = tmp_path / "ca.pem", tmp_path / "token"
    ca.write_bytes(server.ca_pem)
    secret.write_text(make.token + "\n")
    common = ("login", "--server", server.url, "--ca-file", ca)
    assert wherry(*common, "--token-file", secret).code == 0
    assert "cannot be read" in wherry(*common, "--token-file", tmp_path / "none").err
    assert "both given" in wherry(*common, "--token-file", secret, "--token", "x").err
    assert "admin.token" in wherry(*common).err
    monkeypatch.setenv("WHERRY_TOKEN", make.token)
    assert wherry(*common).code == 0


def test_the_server_must_be_https(wherry, make):
    assert "https://" in wherry("login", "--server", "http://127.0.0.1:1", "--token", make.token).err
    answer = wherry("login", "--server", "https://127.0.0.1:1", "--token", "x", "--registry", "nowhere")
    assert "HOST:PORT" in answer.err


def test_a_ca_file_that_is_none(login, tmp_path):
    tmp_path.joinpath("x.pem").write_text("no certificate")
    assert "is not a PEM certificate" in login("--ca-file", tmp_path / "x.pem").err


def test_a_server_that_does_not_answer_is_named(wherry, make, server, tmp_path, monkeypatch):
    monkeypatch.setattr("wherry_cli.client.RETRY_WAITS", ())
    ca = tmp_path / "ca.pem"
    ca.write_bytes(server.ca_pem)
    answer = wherry("login", "--server", "https://127.0.0.1:1", "--token", "x", "--ca-file", ca, "--json")
    assert answer.json["error"]["thing"] == "server https://127.0.0.1:1"
    assert answer.json["error"]["code"] == "adapter.server"


def test_commands_before_login_say_so(wherry):
    answer = wherry("device", "list")
    assert answer.code == 1
    assert answer.err.splitlines()[0].startswith("Error: wherry is not logged in to a server")
    assert "  Next: Run `wherry login" in answer.err
    assert "wherry explain input.config" in answer.err


def test_a_damaged_settings_file_is_named(wherry, home):
    home.mkdir()
    home.joinpath("config.toml").write_text("server = [")
    assert "is not usable TOML" in wherry("device", "list").err
    home.joinpath("config.toml").write_text("server = 3")
    assert "not text" in wherry("device", "list").err
    home.joinpath("config.toml").write_text('server="https://h"\ntoken="t"\nca_file="/nowhere"')
    answer = wherry("device", "list", "--json")
    assert answer.json["error"]["code"] == "identity"


def test_the_environment_overrides(operator, server, monkeypatch):
    monkeypatch.setenv("WHERRY_TOKEN", "wrong")
    assert operator("device", "list", "--json").json["error"]["code"] == "not_allowed"
    monkeypatch.setenv("WHERRY_TOKEN", "operator-token")
    assert operator("device", "list").code == 0
