"""The audit trail: every change with its actor, in the same unit of work; refusals too, but not without bound."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import select

from wherry.errors import StoreError
from wherry_server.services import access, rollouts
from wherry_server.services.context import REFUSALS_AN_HOUR
from wherry_server.store.schema import Audit, RolloutRow

SECRET = "no-such-token"


def trail(api, **query):
    reply = api.get("/v1/audit", params=query)
    assert reply.status_code == 200, reply.text
    return [(item["actor"], item["action"], item["thing"]) for item in reply.json()["items"]]


def test_what_operators_do_is_recorded_under_their_tokens_name(context, api, owner, device):
    owner.release("1")
    api.post("/v1/rollouts", {"model": "vision", "version": "1", "selector": {"everything": True}})
    digest = "sha256:" + "0" * 64
    for method, path, body, line in (
        ("POST", "/v1/rollouts/1/pause", None, ("rollout.pause", "1")),
        ("POST", "/v1/rollouts/1/start", None, ("rollout.start", "1")),
        ("PATCH", "/v1/devices/dev-1", {"labels": {"site": "lyon"}}, ("device.labels", "dev-1")),
        ("POST", "/v1/devices/dev-1/poll", None, ("poll", "dev-1")),
        ("POST", "/v1/devices/dev-1/retry", {"slot": "main", "digest": digest}, ("retry", "dev-1")),
        ("DELETE", "/v1/devices/dev-1/slots/main", None, ("unassign", "dev-1")),
        ("POST", "/v1/tokens", {"device": "dev-2"}, ("enrol.token", "dev-2")),
        ("DELETE", "/v1/devices/dev-1", None, ("revoke", "dev-1")),
    ):
        assert api.request(method, path, json=body).status_code < 300, path
        assert ("test", *line) in trail(api, limit=3), path
    assert ("test", "rollout.create", "1") in trail(api)
    detail = api.get("/v1/audit?action=rollout.create").json()["items"][0]["detail"]
    assert detail.endswith(": 1 device")


def test_an_upload_is_recorded_under_its_token_and_the_command_line_is_the_server(context, api, owner):
    files = {name: data.decode() for name, data in owner.files.items()}
    assert api.post("/v1/repository", {"files": files}).status_code == 200
    assert trail(api, action="repository.publish", limit=1) == [("test", "repository.publish", "targets 1")]
    assert ("server", "token.create", "test") in trail(api)


def test_devices_act_for_themselves(api, device, make_device):
    assert trail(api, limit=1) == [("device dev-1", "enrol", "dev-1")]
    device.signed("POST", "/v1/renew", {"csr_pem": device.csr(ec.generate_private_key(ec.SECP256R1()))})
    assert trail(api, limit=1) == [("device dev-1", "renew", "dev-1")]
    assert make_device("dev-2").enrol_with("guess").status_code == 401
    assert trail(api, limit=1) == [("device dev-2", "enrol.refused", "dev-2")]


def test_what_the_server_decides_is_its_own(context, api, owner, make_device):
    from wherry.messages import Problem
    from wherry_server.services import reports

    release = owner.release("1")
    device = make_device().enrol()
    api.post("/v1/rollouts", {"model": "vision", "version": "1", "selector": {"everything": True}})
    device.sequence = 1
    problem = Problem(code="deployment.gate", thing="gate", reason="wrong", fix="mend")
    reports.ingest_state(context, device.runs(release, "rejected", problem=problem))
    rollouts.advance_all(context)
    actor, action, thing = trail(api, action="rollout", limit=1)[0]
    assert (actor, thing) == ("server", "1")
    assert action in ("rollout.pause", "rollout.failed")


def test_a_login_and_a_refused_one_are_told(context, api):
    assert access.login(context, api.token, "192.0.2.7").name == "test"
    assert access.login(context, SECRET, "203.0.113.9") is None
    first, second = api.get("/v1/audit?limit=2").json()["items"]
    assert (first["actor"], first["action"], first["detail"]) == ("anonymous", "login.refused", "203.0.113.9")
    assert (second["actor"], second["action"], second["detail"]) == ("test", "login", "192.0.2.7")


def test_strangers_cannot_fill_the_trail(context, api, clock):
    for _ in range(REFUSALS_AN_HOUR + 5):
        access.login(context, SECRET)
    refused = api.get("/v1/audit?action=login.refused&limit=500").json()["items"]
    assert len(refused) == REFUSALS_AN_HOUR
    assert "further ones of this hour" in refused[0]["detail"]
    clock.pass_time(minutes=61)
    access.login(context, SECRET)
    assert len(trail(api, action="login.refused", limit=500)) == REFUSALS_AN_HOUR + 1


def test_a_change_that_fails_leaves_no_line_and_a_line_that_fails_no_change(context, api, owner, device, monkeypatch):
    owner.release("1")
    before = len(trail(api, limit=500))
    body = {"model": "vision", "version": "1", "selector": {"everything": True}}

    def broken(*_args, **_rest):
        raise StoreError("audit", "cannot be written")

    monkeypatch.setattr(type(context), "record", broken)
    assert api.post("/v1/rollouts", body).status_code == 503
    with context.store.read() as session:
        assert session.scalars(select(RolloutRow)).all() == []
    monkeypatch.undo()
    assert api.post("/v1/rollouts", body | {"version": "9"}).status_code == 404
    assert len(trail(api, limit=500)) == before


def test_the_trail_pages_newest_first_and_filters(context, api):
    with context.store.write() as session:
        for number in range(30):
            context.acting_as(f"op{number % 2}").record(session, ("rollout.create", "rollout", "rolloutx")[number % 3],
                                                        f"thing{number % 5}", f"n{number}")  # fmt: skip
    details, after = [], ""
    while after is not None:
        page = api.get("/v1/audit", params={"limit": 7, "after": after}).json()
        details += [item["detail"] for item in page["items"]]
        after = page["next"]
    assert details == [*(f"n{number}" for number in reversed(range(30))), ""]
    assert len(trail(api, action="rollout")) == 20
    assert {action for _, action, _ in trail(api, action="rollout.create")} == {"rollout.create"}
    assert len(trail(api, action="rollout", actor="op1", thing="thing3")) == 2
    assert trail(api, action="roll") == []
    assert api.get("/v1/audit?after=x").status_code == 422


def test_tokens_are_listed_and_revoked_over_http(context, api):
    secret = access.create_token(context, "ci/deploy")
    items = api.get("/v1/api-tokens").json()["items"]
    assert [(item["name"], item["revoked"]) for item in items] == [("test", None), ("ci/deploy", None)]
    assert secret not in api.get("/v1/api-tokens").text
    assert api.request("DELETE", "/v1/api-tokens/ci/deploy").status_code == 204
    assert api.get("/v1/devices", headers={"Authorization": f"Bearer {secret}"}).status_code == 401
    assert trail(api, limit=1) == [("test", "token.revoke", "ci/deploy")]
    assert api.request("DELETE", "/v1/api-tokens/nobody").status_code == 404


@pytest.mark.parametrize("actor", ["x" * 300])
def test_long_names_fit_the_columns(context, actor):
    with context.store.write() as session:
        context.acting_as(actor).record(session, "test", "t" * 500, "d" * 5000)
    with context.store.read() as session:
        row = session.scalars(select(Audit)).one()
    assert (len(row.actor), len(row.thing), len(row.detail)) == (100, 200, 2000)
