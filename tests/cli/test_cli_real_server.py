"""The operator's tool against the real `wherry-server`, a program of its own: what one sends, the other takes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from ports import free_port

from wherry.identity import sha256_digest
from wherry.join import JoinToken
from wherry_cli.client import tls_context

BIN = Path(sys.executable).parent


@pytest.fixture
def real(tmp_path):
    """A server that runs; its data folder and its address."""
    data, port = tmp_path / "data", free_port()
    init = [BIN / "wherry-server", "init", "--data", data, "--host", "127.0.0.1", "--port", str(port)]
    subprocess.run([*init, "--broker-port", str(free_port())], check=True, capture_output=True)
    log = (tmp_path / "server.log").open("wb")
    process = subprocess.Popen([BIN / "wherry-server", "run", "--data", data], stdout=log, stderr=log)
    url = f"https://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while not _answers(url, data / "pki" / "ca.crt"):
            assert process.poll() is None, (tmp_path / "server.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield data, url
    finally:
        process.terminate()
        process.wait(20)
        log.close()


def _answers(url: str, ca: Path) -> bool:
    try:
        with httpx.Client(verify=tls_context(ca)) as http:
            return http.get(url + "/healthz").status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture
def run(wherry):
    def run(*args, code=0):
        answer = wherry(*args, "--json")
        assert answer.code == code, answer.out + answer.err
        return answer.lines[-1] if "watch" in args else answer.json

    return run


def enrol(join: JoinToken, ca: Path) -> None:
    """What `wherry-agent enroll` sends."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, join.device)])
    csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    body = {
        "device": join.device, "secret": join.secret, "profile": "generic-amd64", "agent_version": "0.1.0",
        "csr_pem": csr.public_bytes(serialization.Encoding.PEM).decode(),
    }  # fmt: skip
    with httpx.Client(verify=tls_context(ca)) as http:
        assert http.post(join.server + "/v1/enrol", json=body).status_code == 200


def package(version: str) -> str:
    image = {
        "model": "vision", "version": version, "profile": "generic-amd64", "platform": "linux/amd64",
        "repository": "127.0.0.1:5470/wherry/vision", "digest": sha256_digest(version.encode()),
        "manifest_bytes": 1234, "config_digest": sha256_digest(b"config"), "unpacked_bytes": 9, "download_bytes": 9,
        "runtime": "onnx", "provider": "CPUExecutionProvider", "precision": "fp32",
    }  # fmt: skip
    return json.dumps({"schema": 1, "model": "vision", "version": version, "images": [image]})


def test_an_operators_day(real, run, tmp_path):
    data, url = real
    ca = data / "pki" / "ca.crt"
    assert run("login", "--server", url, "--token", "wrong", "--ca-file", ca, code=1)["error"]["code"] == "not_allowed"
    run("login", "--server", url, "--token-file", data / "admin.token", "--ca-file", ca)
    assert run("keys", "init")["repository"]["targets"] == 1
    assert run("keys", "init")["repository"]["targets"] == 1

    join = JoinToken.decode(run("device", "token", "edge-1", "--label", "site=north")["join"])
    assert (join.server, join.device) == (url, "edge-1")
    enrol(join, ca)
    [device] = run("device", "list")["items"]
    assert (device["id"], device["labels"]) == ("edge-1", {"site": "north"})
    assert run("device", "list", "--label", "site=south")["items"] == []
    assert [found["id"] for found in run("device", "list", "--offline", "--search", "edge")["items"]] == ["edge-1"]
    assert run("device", "list", "--online")["items"] == []
    assert run("device", "list", "--state", "problem")["items"] == []
    assert run("device", "label", "edge-1", "row=2")["labels"] == {"site": "north", "row": "2"}

    assert run("rollout", "start", "vision", "1", "--to", "all", code=1)["error"]["code"] == "not_found"
    (tmp_path / "package.json").write_text(package("1"))
    assert run("release", "publish", tmp_path / "package.json")["images"][0]["counter"] == 1
    assert [item["version"] for item in run("release", "list")["items"]] == ["1"]
    assert run("release", "show", "vision", "1")["images"][0]["profile"] == "generic-amd64"

    number = run("rollout", "start", "vision", "1", "--to", "label=site=north")["id"]
    [target] = run("rollout", "show", number)["targets"]
    assert (target["device"], target["state"]) == ("edge-1", "assigned")
    assert run("device", "show", "edge-1")["desired"]["main"]["version"] == "1"
    assert run("rollout", "watch", number, "--timeout", "1s", code=1)["state"] == "running"
    assert run("rollout", "pause", number)["state"] == "paused"
    assert run("rollout", "resume", number)["state"] == "running"
    assert run("rollout", "abort", number, "--yes")["state"] == "aborted"
    assert run("rollout", "list")["items"][0]["id"] == number
    run("device", "poll", "edge-1")
    assert run("device", "logs", "edge-1", code=1)["error"]["code"] == "conflict"  # it is offline
    assert run("device", "diagnose", "edge-1", code=1)["error"]["code"] == "conflict"
    glance = run("top", "--once")
    assert (glance["fleet"]["devices"], glance["fleet"]["online"]) == (1, 0)
    assert [found["id"] for found in glance["troubled"]] == ["edge-1"]
    assert [(found["version"], found["desired"]) for found in glance["fleet"]["versions"]] == [("1", 1)]
    assert run("audit", "--action", "rollout.create")["items"][0]["thing"] == str(number)
    assert [found["name"] for found in run("token", "list")["items"]] == ["admin"]
    run("device", "retry", "edge-1")
    run("device", "clear", "edge-1", "main", "--yes")
    assert run("telemetry", "show")["slots"] == []

    assert run("release", "revoke", "vision", "1", "--yes")["revoked"][0]["profile"] == "generic-amd64"
    assert run("release", "renew")["targets"] == 4
    assert run("keys", "replace", "all", "--yes")["repository"]["root"] == 2
    assert run("release", "renew")["targets"] == 6
    run("device", "revoke", "edge-1", "--yes")
    assert run("device", "show", "edge-1")["revoked"]
