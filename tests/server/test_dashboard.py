"""The pages: who sees them, what they say, and that nothing in them runs."""

from __future__ import annotations

import asyncio
import re
from urllib.parse import quote

import httpx
import pytest

from wherry.messages import HostSample, Problem, SlotSample, TelemetryBatch, TelemetryRecord
from wherry_server.dashboard import assets
from wherry_server.dashboard.session import COOKIE, Sessions
from wherry_server.domain.histogram import BINS
from wherry_server.services import access, reports, telemetry
from wherry_server.services.changes import Changes

OURS = {"Sec-Fetch-Site": "same-origin"}


def login(api, token=None):
    reply = api.request("POST", "/login", content=f"token={token or api.token}", headers={"Authorization": ""} | OURS)
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
    text = words_of(page())
    for words in (
        "1 device ", "dev-1", "drifting", "generic-amd64", "main vision 1.0 → but should serve 2.0",
        "rejected vision 2.0", "golden gate: case 3 differs by 0.412", "1.58 ms", "7 failed", "61 °C",
        "#2 vision 2.0 failed", "to all devices, slot main",
    ):  # fmt: skip
        assert words in text, words
    text = words_of(page("/devices/dev-1"))
    for words in (
        "vision 2.0 was rejected (golden gate: case 3 differs by 0.412), so vision 1.0 serves on. Mend it.",
        "8500", "2.0 GB of 8.0 GB", "61 °C", "Try vision 2.0 again", "It has the newest assignment, number 2.",
    ):  # fmt: skip
        assert words in text, words


def words_of(html):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>|\s+", " ", html))


def test_filters_show_the_devices_that_need_a_look(context, page, make_device):
    for name in ("dev-1", "dev-2"):
        made = make_device(name).enrol()
        if name == "dev-2":
            made.problem = Problem(code="adapter.engine", thing="engine", reason="is down", fix="Start it")
        reports.ingest_state(context, made.report())
    text = page("/?state=problem")
    assert "dev-2" in text
    assert "dev-1" not in text
    assert "engine: is down. Start it." in text
    assert "dev-1" not in page("/?state=offline")
    assert "dev-1" in page("/?state=everything-else")


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
    text = page() + api.get("/login").text
    for address in re.findall(r'(?:src|href)="(/static/[^"]+)"', text):
        asset = api.get(address)
        assert asset.status_code == 200, address
        assert "immutable" in asset.headers["cache-control"]
        text += "" if "/vendor/" in address else asset.text
    assert not re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?:https?:)?//""", text)
    assert "style=" not in text
    for path in ("/static/routes.py", "/static/../routes.py", "/static/%2e%2e/frame.py", "/static/vendor/none.js"):
        assert api.get(path).status_code == 404


def test_an_empty_fleet_says_what_to_do_next(page):
    assert "wherry device token ID" in page()


def test_logging_out_takes_the_cookie_back(api):
    reply = api.request("POST", "/logout", headers=OURS)
    assert reply.status_code == 303
    assert "max-age=0" in reply.headers["set-cookie"].lower()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, 303),
        ({"Origin": "https://server"}, 303),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Origin": "https://server"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({}, 403),
    ],
)
def test_only_forms_of_ours_change_anything(api, device, headers, status):
    _, cookie = login(api)
    reply = api.request("POST", "/devices/dev-1/poll", headers=cookie | headers)
    assert reply.status_code == status
    assert ("was not sent from a page of this server" in reply.text) == (status == 403)


def test_forms_need_a_session(api, device):
    for path in ("/devices/dev-1/poll", "/devices/dev-1/retry", "/devices/dev-1/clear"):
        reply = api.request("POST", path, headers={"Authorization": ""} | OURS)
        assert (reply.status_code, reply.headers["location"]) == (303, "/login")


@pytest.mark.parametrize(
    "fields", ["", "slot=main", "slot=main&digest=sha256:x", "slot=../x&digest=sha256:" + "a" * 64]
)
def test_a_form_with_wrong_fields_says_which(api, device, fields):
    _, cookie = login(api)
    reply = api.request("POST", "/devices/dev-1/retry", content=fields, headers=cookie | OURS)
    assert reply.status_code == 422
    assert "field " in reply.text


def test_the_login_leads_back_to_where_one_wanted_to_go(api):
    reply = api.get("/devices/dev-1?range=7d", headers={"Authorization": ""})
    assert reply.headers["location"] == "/login?next=/devices/dev-1%3Frange%3D7d"
    assert 'value="/devices/dev-1?range=7d"' in api.get(reply.headers["location"]).text
    for there, then in (
        ("/rollouts", "/rollouts"),
        ("//evil.example", "/"),
        ("https://evil.example", "/"),
        ("/\\evil", "/"),
    ):
        content = f"token={api.token}&next={quote(there)}"
        reply = api.request("POST", "/login", content=content, headers={"Authorization": ""} | OURS)
        assert reply.headers["location"] == then


def test_a_script_without_a_session_is_told_so(api):
    reply = api.get("/", headers={"Authorization": "", "HX-Request": "true"})
    assert (reply.status_code, reply.headers["hx-redirect"]) == (401, "/login")


def test_without_vendored_files_pages_say_how_to_get_them(context, monkeypatch, make_api, tmp_path):
    monkeypatch.setattr(assets, "FOLDER", tmp_path)
    assets._load.cache_clear()
    try:
        api = make_api(context)
        _, headers = login(api)
        text = api.get("/", headers=headers).text
        assert "run <code>make assets</code>" in text
        assert "htmx.min.js" not in text
        missing = api.get("/static/vendor/htmx.min.js")
        assert (missing.status_code, "make assets" in missing.text) == (404, True)
    finally:
        assets._load.cache_clear()


def test_streams_end_when_the_server_stops():
    changes = Changes()

    async def listen():
        with changes.listen(["fleet"], gap=0) as listener:
            waiting = asyncio.create_task(listener.wait(timeout=600))
            await asyncio.sleep(0)
            changes.close()
            assert await asyncio.wait_for(waiting, 60) == frozenset()
            assert listener.closed

    asyncio.run(listen())


def events_until_the_end(context, api, headers, rings):
    """What `/live` sends a browser that watches while `rings` are rung and then the server stops."""

    async def watch():
        transport = httpx.ASGITransport(app=api.app)
        async with httpx.AsyncClient(transport=transport, base_url="https://server") as client:
            asked = asyncio.create_task(client.get("/live?watch=device:dev-1&watch=fleet", headers=headers))
            while not context.changes._listeners:
                await asyncio.sleep(0.01)
            context.changes.ring(*rings)
            while any(listener._rang for listener in context.changes._listeners):
                await asyncio.sleep(0.01)
            context.changes.close()
            return await asyncio.wait_for(asked, 60)

    return asyncio.run(watch())


def test_the_stream_names_what_changed_of_what_is_watched(sqlite_context, make_api):
    api = make_api(sqlite_context)
    _, headers = login(api)
    reply = events_until_the_end(sqlite_context, api, headers, ["device dev-1", "device dev-2"])
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert 'event: change\ndata: ["device:dev-1"]\n\n' in reply.text


def test_the_stream_needs_a_session(api):
    assert api.get("/live?watch=fleet", headers={"Authorization": ""}).status_code == 303


@pytest.mark.parametrize("cookie", ["", "x", "..", "a.b.c", "1.2", "1.9999999999." + "0" * 64])
def test_cookies_that_are_not_ours_are_nobodys(cookie, clock):
    assert Sessions(b"k" * 32, 1).check(cookie, clock()) is None
