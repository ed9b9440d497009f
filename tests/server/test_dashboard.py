"""The pages: who sees them, what they say, and that nothing in them runs."""

from __future__ import annotations

import re

import pytest

from wherry.messages import HostSample, Problem, SlotSample, TelemetryBatch, TelemetryRecord
from wherry_server.dashboard.session import COOKIE, Sessions
from wherry_server.domain.histogram import BINS
from wherry_server.services import access, reports, telemetry


def login(api, token=None):
    reply = api.request("POST", "/login", content=f"token={token or api.token}", headers={"Authorization": ""})
    return reply, {"Cookie": reply.headers.get("set-cookie", "").split(";")[0], "Authorization": ""}


@pytest.fixture
def page(api):
    def text(path="/"):
        _, headers = login(api)
        reply = api.get(path, headers=headers)
        assert reply.status_code == 200
        return reply.text

    return text


def test_without_a_session_one_is_sent_to_the_login(api):
    reply = api.get("/")
    assert (reply.status_code, reply.headers["location"]) == (303, "/login")
    assert "API token" in api.get("/login").text


def test_a_token_opens_a_session_in_a_careful_cookie(api):
    reply, headers = login(api)
    assert reply.status_code == 303
    cookie = reply.headers["set-cookie"].lower()
    assert cookie.startswith(COOKIE.lower())
    assert all(word in cookie for word in ("httponly", "secure", "samesite=strict", "path=/"))
    assert api.token not in reply.headers["set-cookie"]
    assert api.get("/", headers=headers).status_code == 200


def test_wrong_tokens_and_forged_or_old_cookies_open_nothing(context, api, clock):
    reply, _ = login(api, "wrong")
    assert reply.status_code == 401
    assert "unknown or revoked" in reply.text
    _, headers = login(api)
    for change in (
        lambda c: c[:-1] + ("0" if c[-1] != "0" else "1"),
        lambda c: c.replace("=1.", "=2."),
        lambda c: c + "é",
    ):
        forged = {"Cookie": change(headers["Cookie"]).encode("latin-1")}
        assert api.get("/", headers=forged).status_code == 303
    clock.pass_time(hours=13)
    assert api.get("/", headers=headers).status_code == 303


def test_a_revoked_token_ends_its_sessions(context, api):
    _, headers = login(api)
    access.revoke_token(context, "test")
    assert api.get("/", headers=headers).status_code == 303


def test_a_session_cookie_is_no_api_credential(api):
    _, headers = login(api)
    assert api.get("/v1/devices", headers=headers).status_code == 401


def test_the_page_says_what_runs_what_should_and_why_not(context, api, owner, device, page, clock):
    first, second = owner.release("1.0"), owner.release("2.0")
    for version in ("1.0", "2.0"):
        api.post("/v1/rollouts", {"model": "vision", "version": version, "selector": {"everything": True}})
        device.sequence += 1
        if version == "1.0":
            reports.ingest_state(context, device.runs(first))
    device.rejected = [second.digest]
    gate = Problem(code="deployment.gate", thing="golden gate", reason="case 3 differs by 0.412", fix="Mend it")
    reports.ingest_state(context, device.runs(second, "rejected", problem=gate))
    latency = [0] * BINS
    latency[8] = 6183
    records = [
        SlotSample(
            slot="main", model="vision", version="1.0", counter=1, seconds=15, requests=6183, failures=7,
            latency=latency,
        ),
        HostSample(
            cpu_percent=20, memory_used_bytes=int(2e9), memory_total_bytes=int(8e9), disk_used_bytes=1,
            disk_total_bytes=2, temperatures={"cpu": 48.2, "gpu": 61.0},
        ),
    ]  # fmt: skip
    numbered = [TelemetryRecord(sequence=n, at=clock(), record=record) for n, record in enumerate(records)]
    telemetry.ingest(context, TelemetryBatch(device="dev-1", stream="s", records=numbered))
    text = re.sub(r"<[^>]+>|\s+", " ", page())
    text = re.sub(r"\s+", " ", text)
    for words in (
        "1 device ", "dev-1", "online", "generic-amd64", "vision 1.0 → vision 2.0 drift", "healthy", "port 8500",
        "vision 2.0 rejected", "golden gate: case 3 differs by 0.412. Mend it.", "requests 6 183", "errors 7",
        "1.37 ms", "61 °C", "2.0 GB of 8.0 GB", "#2 vision 2.0 failed to all devices, slot main",
    ):  # fmt: skip
        assert words in text, words


def test_filters_show_the_devices_that_need_a_look(context, page, make_device):
    for name in ("dev-1", "dev-2"):
        made = make_device(name).enrol()
        if name == "dev-2":
            made.problem = Problem(code="adapter.engine", thing="engine", reason="is down", fix="Start it")
        reports.ingest_state(context, made.report())
    text = page("/?show=problem")
    assert "dev-2" in text
    assert "dev-1" not in text
    assert "engine: is down. Start it." in text
    assert "dev-1" not in page("/?show=offline")
    assert "dev-1" in page("/?show=everything-else")


def test_what_devices_send_is_shown_as_text(context, device, page):
    device.problem = Problem(code="x", thing="<script>alert(1)</script>", reason="<b>", fix='" onload="x')
    reports.ingest_state(context, device.report())
    text = page()
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_nothing_is_loaded_from_elsewhere(api, page):
    _, headers = login(api)
    policy = api.get("/", headers=headers).headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    text = page() + api.get("/login").text + api.get("/static/style.css").text + api.get("/static/live.js").text
    assert not re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?:https?:)?//""", text)
    assert "style=" not in text
    assert api.get("/static/routes.py").status_code == 404


def test_an_empty_fleet_says_what_to_do_next(page):
    assert "wherry device token ID" in page()


def test_logging_out_takes_the_cookie_back(api):
    reply = api.post("/logout")
    assert reply.status_code == 303
    assert "max-age=0" in reply.headers["set-cookie"].lower()


@pytest.mark.parametrize("cookie", ["", "x", "..", "a.b.c", "1.2", "1.9999999999." + "0" * 64])
def test_cookies_that_are_not_ours_are_nobodys(cookie, clock):
    assert Sessions(b"k" * 32, 1).check(cookie, clock()) is None
