"""The API's manners: who may call, errors in one form, bounds, pages, its own description."""

from __future__ import annotations

import asyncio
import json
import re

import httpx
import pytest
from sqlalchemy import event

from wherry.api.base import ErrorBody
from wherry.errors import StoreError, walk_errors
from wherry_server.api.errors import status_of
from wherry_server.services import access
from wherry_server.store.schema import ApiToken, Device, DeviceLabel

OPEN = {"/healthz", "/v1/ca", "/v1/tuf/metadata/{name}", "/v1/enrol", "/v1/renew"}


def problem(reply):
    return ErrorBody.model_validate(reply.json()).error


def add_devices(context, count):
    with context.store.write() as session:
        for index in range(count):
            name, site = f"d{index:05}", f"s{index % 3}"
            session.add(
                Device(
                    id=name, profile="generic-amd64", labels=json.dumps({"site": site}),
                    enrolled=context.clock(), online=index % 2 == 0,
                )
            )  # fmt: skip
            session.flush()
            session.add(DeviceLabel(device=name, name="site", value=site))


def test_every_route_but_the_open_ones_wants_a_token(api):
    document = api.get("/openapi.json").json()
    for path, methods in document["paths"].items():
        for method in methods:
            where = path.replace("{rollout}", "1").replace("{verb}", "start")
            reply = api.request(method.upper(), where, headers={"Authorization": "Bearer wrong"})
            if path not in OPEN and not path.startswith("/install"):
                assert reply.status_code == 401, (method, path)
                assert problem(reply).fix == "Send `Authorization: Bearer TOKEN`"


def test_tokens_are_hashed_listed_without_secrets_and_revocable(context, api):
    secret = access.create_token(context, "ci")
    with context.store.read() as session:
        assert all(secret not in str(row.__dict__) for row in session.query(ApiToken))
    headers = {"Authorization": f"Bearer {secret}"}
    assert api.get("/v1/devices", headers=headers).status_code == 200
    access.revoke_token(context, "ci")
    assert api.get("/v1/devices", headers=headers).status_code == 401
    assert [(token.name, token.revoked is None) for token in access.list_tokens(context)] == [
        ("test", True), ("ci", False),
    ]  # fmt: skip


def test_a_validation_error_has_the_contracts_form_and_names_the_field(api):
    reply = api.post("/v1/tokens", {"device": "Not A Name"})
    assert reply.status_code == 422
    assert problem(reply).thing == "field body.device"
    assert problem(api.get("/v1/devices?limit=9999")).thing == "field query.limit"
    assert (
        api.request("POST", "/v1/tokens", content=b"{", headers={"Content-Type": "application/json"}).status_code == 422
    )


def test_unknown_paths_and_methods_have_the_contracts_form(api):
    assert problem(api.get("/v1/nothing")).code == "not_found"
    reply = api.request("PUT", "/v1/devices")
    assert reply.status_code == 405
    assert problem(reply).thing == "PUT /v1/devices"


def test_a_defect_is_answered_without_its_traceback(api, monkeypatch):
    def fail(*_args):
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr("wherry_server.store.device_views.device_page", fail)
    reply = api.get("/v1/devices")
    assert reply.status_code == 500
    assert "secret detail" not in reply.text
    assert problem(reply).code == "wherry"


def test_every_error_of_the_tree_has_a_status():
    for kind in walk_errors():
        assert 400 <= status_of(kind("thing", "reason")) < 600
    assert status_of(StoreError("database", "locked")) == 503


def test_bodies_over_the_limit_are_refused_declared_or_not(api):
    big = b'{"device": "' + b"x" * api.context.config.max_body_bytes + b'"}'
    reply = api.request("POST", "/v1/tokens", content=big)
    assert reply.status_code == 413
    assert "over the limit" in problem(reply).reason

    async def chunks():
        for _ in range(6):
            yield b"x" * 100_000

    assert api.request("POST", "/v1/tokens", content=chunks()).status_code == 413
    assert api.request("POST", "/v1/renew", content=chunks(), headers={
        "Authorization": "WherryDevice dev-1:1:aa"}).status_code == 413  # fmt: skip


def test_a_repository_upload_may_be_larger(api):
    body = {"files": {"1.targets.json": "x" * 1_000_000}}
    reply = api.post("/v1/repository", body)
    assert reply.status_code == 422
    assert problem(reply).code.startswith("trust")


def test_pages_follow_each_other_and_filters_hold(context, api):
    add_devices(context, 25)
    seen, after = [], ""
    while after is not None:
        page = api.get("/v1/devices", params={"after": after, "limit": 10}).json()
        seen += [item["id"] for item in page["items"]]
        after = page["next"]
    assert seen == [f"d{index:05}" for index in range(25)]
    online = api.get("/v1/devices?online=true&limit=500").json()["items"]
    assert len(online) == 13
    labelled = api.get("/v1/devices?label=site=s1&online=true").json()["items"]
    assert [item["id"] for item in labelled] == ["d00004", "d00010", "d00016", "d00022"]
    assert api.get("/v1/devices?label=site=s1&label=site=s2").json()["items"] == []
    assert api.get("/v1/devices?label=site").status_code == 422
    assert api.get("/v1/devices?profile=generic-arm64").json()["items"] == []


def test_a_page_takes_a_handful_of_queries_however_many_devices_there_are(sqlite_context, make_api):
    add_devices(sqlite_context, 300)
    client, queries = make_api(sqlite_context), []
    event.listen(sqlite_context.store._engine, "before_cursor_execute", lambda *args: queries.append(args[2]))
    assert len(client.get("/v1/devices?limit=300").json()["items"]) == 300
    assert len(queries) <= 6, queries


def test_releases_and_rollouts_page_newest_first(api, owner, device):
    for version in ("1", "2", "3"):
        owner.release(version)
        api.post("/v1/rollouts", {"model": "vision", "version": version, "selector": {"everything": True}})
    first = api.get("/v1/releases?limit=2").json()
    assert [item["version"] for item in first["items"]] == ["3", "2"]
    rest = api.get("/v1/releases", params={"limit": 2, "after": first["next"]}).json()
    assert ([item["version"] for item in rest["items"]], rest["next"]) == (["1"], None)
    image = api.get("/v1/releases/vision/3").json()["images"][0]
    assert (image["profile"], image["counter"], image["runtime"]) == ("generic-amd64", 3, "onnx")
    assert api.get("/v1/releases/vision/9").status_code == 404
    page = api.get("/v1/rollouts?limit=2").json()
    assert [item["id"] for item in page["items"]] == [3, 2]
    assert [item["id"] for item in api.get(f"/v1/rollouts?after={page['next']}").json()["items"]] == [1]
    assert api.get("/v1/rollouts?after=x").status_code == 422
    assert api.get("/v1/rollouts/99").status_code == 404


def test_labels_are_replaced_and_checked(api, device):
    reply = api.request("PATCH", "/v1/devices/dev-1", json={"labels": {"site": "south"}})
    assert reply.json()["labels"] == {"site": "south"}
    assert api.request("PATCH", "/v1/devices/dev-1", json={"labels": {"a b": "c"}}).status_code == 422
    too_many = {f"l{index}": "x" for index in range(40)}
    assert api.request("PATCH", "/v1/devices/dev-1", json={"labels": too_many}).status_code == 422
    assert api.request("PATCH", "/v1/devices/dev-9", json={"labels": {}}).status_code == 404


def test_the_repository_is_taken_over_in_whole_or_not_at_all(context, api, owner, clock):
    before = api.get("/v1/repository").json()
    assert (before["root"], before["targets"], before["snapshot"], before["timestamp"]) == (1, 1, 1, 1)
    owner.release("1")
    after = api.get("/v1/repository").json()
    assert (after["targets"], after["snapshot"], after["timestamp"]) == (2, 2, 2)
    half = {"3.snapshot.json": "{}", "3.targets.json": owner.files["2.targets.json"].decode()}
    reply = api.post("/v1/repository", {"files": half})
    assert reply.status_code == 422
    assert api.get("/v1/repository").json() == after
    assert api.get("/v1/tuf/metadata/3.snapshot.json").status_code == 404
    served = api.get("/v1/tuf/metadata/2.targets.json", headers={"Authorization": ""})
    assert served.content == owner.files["2.targets.json"]


def test_the_timestamp_is_signed_again_after_some_hours(context, api, owner, clock):
    from wherry_server.services.repository import stamp_due

    assert not stamp_due(context)
    clock.pass_time(hours=6.1)
    assert stamp_due(context)
    assert api.get("/v1/repository").json()["timestamp"] == 2
    stamp = json.loads(api.get("/v1/tuf/metadata/timestamp.json").content)
    assert stamp["signed"]["version"] == 2


def test_a_release_that_newer_metadata_leaves_out_is_not_rolled_out(context, api, owner, device):
    from wherry_server.store.schema import Image

    owner.release("1")
    with context.store.write() as session:
        session.query(Image).update({"listed": False})
    assert api.get("/v1/releases").json()["items"] == []
    reply = api.post("/v1/rollouts", {"model": "vision", "version": "1", "selector": {"everything": True}})
    assert reply.status_code == 404


def test_the_document_describes_every_route(api):
    document = api.get("/openapi.json").json()
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            assert route.get("summary"), (method, path)
            assert route.get("tags"), (method, path)


@pytest.mark.parametrize("path", ["/v1/devices/%2e%2e", "/v1/devices/UPPER", "/v1/tuf/metadata/..%2f..%2fetc"])
def test_odd_names_are_refused(api, path):
    assert api.get(path).status_code in (404, 422)


ODD = (
    "",
    "\x00",
    "'",
    "%",
    "-1",
    "9" * 30,
    "1e400",
    "NaN",
    "\ud7ff\U0001f6a2",
    "0001-01-01",
    "9999-12-31T23:59:59Z",
    "a=b",
    "~~",
)


def test_odd_parameters_are_refused_or_answered_but_never_break_anything(context, api, device):
    for path, methods in api.get("/openapi.json").json()["paths"].items():
        if "get" not in methods:
            continue
        where = re.sub(r"{\w+}", "1", path)
        for parameter in [one["name"] for one in methods["get"].get("parameters", []) if one["in"] == "query"]:
            for odd in ODD:
                reply = api.get(where, params={parameter: odd})
                assert reply.status_code < 500, (path, parameter, odd, reply.text)
                if reply.status_code >= 400:
                    assert problem(reply).reason


def test_devices_are_searched_and_filtered_together(context, api):
    add_devices(context, 25)
    found = api.get("/v1/devices?search=0001&state=online&label=site=s1").json()["items"]
    assert [item["id"] for item in found] == ["d00010", "d00016"]
    assert api.get("/v1/devices?search=d0001&online=false&limit=2").json()["next"] == "d00013"
    assert api.get("/v1/devices?state=broken").status_code == 422
    assert api.get("/v1/devices?model=vision&version=1").json()["items"] == []


def test_many_requests_at_once_are_answered(context, api, device):
    async def burst():
        transport = httpx.ASGITransport(app=api.app)
        headers = {"Authorization": f"Bearer {api.token}"}
        async with httpx.AsyncClient(transport=transport, base_url="https://server", headers=headers) as client:
            writes = [client.patch("/v1/devices/dev-1", json={"labels": {"n": str(number)}}) for number in range(10)]
            reads = [client.get("/v1/devices") for _ in range(10)]
            return await asyncio.gather(*writes, *reads)

    assert {reply.status_code for reply in asyncio.run(burst())} == {200}
