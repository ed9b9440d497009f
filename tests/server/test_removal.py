"""A device that is gone for good leaves the fleet; what must outlive it stays."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import delete, select

from wherry.errors import StoreError
from wherry.messages import HostSample, Presence, TelemetryBatch, TelemetryRecord
from wherry_server.services import enrolment, outbox, removal, reports, rollouts, telemetry
from wherry_server.store.schema import Base, Device, RemovedDevice


def roll_out(api, owner, version="1", ids=("dev-1",)):
    release = owner.release(version)
    body = {"model": "vision", "version": version, "selector": {"ids": list(ids)}}
    return release, api.post("/v1/rollouts", body).json()["id"]


def rows_of(context, device):
    """Tables with a row that names the device."""
    found = set()
    with context.store.read() as session:
        for table in Base.metadata.tables.values():
            column = table.c.get("device") if table.name != "device" else table.c.id
            if column is not None and session.execute(select(column).where(column == device)).first():
                found.add(table.name)
    return found


def test_nothing_of_a_removed_device_is_left_but_its_past_in_the_trail(context, api, device, owner, clock):
    release, rollout = roll_out(api, owner)
    device.sequence = 1
    reports.ingest_state(context, device.runs(release))
    api.request("PATCH", "/v1/devices/dev-1", json={"labels": {"site": "hall"}})
    reports.ingest_presence(context, Presence(device="dev-1", online=False))
    assert rows_of(context, "dev-1") >= {"device", "device_key", "device_label", "rollout_target", "enrol_token"}
    clock.pass_time(days=2)

    assert api.post("/v1/devices/dev-1/remove").status_code == 204

    assert rows_of(context, "dev-1") == {"outbox"}
    assert api.get("/v1/devices").json()["items"] == []
    assert api.get("/v1/fleet").json()["devices"] == 0
    assert api.get(f"/v1/rollouts/{rollout}").json()["state"] == "completed"
    trail = api.get("/v1/audit?thing=dev-1").json()["items"]
    assert {"device.remove", "device.labels", "enrol"} <= {entry["action"] for entry in trail}
    assert trail[0]["detail"] == ("generic-amd64; enrolled 2026-03-01; last seen 2026-03-01 12:00 UTC; main: vision 1")
    missing = api.get("/v1/devices/dev-1")
    assert missing.status_code == 404
    assert missing.json()["error"]["reason"] == "was removed on 2026-03-03"


def test_what_the_broker_retains_of_it_is_cleared(context, api, device, owner):
    roll_out(api, owner)
    api.post("/v1/devices/dev-1/poll")
    api.post("/v1/devices/dev-1/remove")
    waiting = [(str(message.topic), message.payload) for message in outbox.pending(context)]
    assert waiting == [(f"wherry/v1/d/dev-1/{kind}", b"") for kind in ("assign", "up/state", "up/presence")]


def test_an_online_device_is_removed_by_force_only(context, api, device):
    reports.ingest_presence(context, Presence(device="dev-1", online=True))
    refused = api.post("/v1/devices/dev-1/remove")
    assert refused.status_code == 409
    assert "wherry-agent uninstall" in refused.json()["error"]["fix"]
    assert api.get("/v1/devices/dev-1").status_code == 200
    assert api.post("/v1/devices/dev-1/remove?force=true").status_code == 204
    assert api.post("/v1/devices/dev-1/remove?force=true").status_code == 404


def test_the_trail_tells_that_it_was_removed_by_force_and_only_then(context, api, device):
    reports.ingest_presence(context, Presence(device="dev-1", online=True))
    api.post("/v1/devices/dev-1/remove?force=true")
    assert last_words(api).endswith("; online, removed by force")
    device.enrol()
    api.post("/v1/devices/dev-1/remove?force=true")
    assert "force" not in last_words(api)


def last_words(api):
    return api.get("/v1/audit?thing=dev-1&action=device.remove").json()["items"][0]["detail"]


def test_an_acl_that_cannot_be_written_keeps_neither_rollouts_nor_messages_waiting(
    context, api, device, owner, tmp_path, change_settings
):
    _, rollout = roll_out(api, owner)
    broken = change_settings(context, broker_folder=tmp_path / "gone")
    woken = context.wake.count
    with pytest.raises(StoreError, match="broker acl"):
        removal.remove(broken, "dev-1")
    assert context.wake.count > woken
    assert api.get(f"/v1/rollouts/{rollout}").json()["state"] == "aborted"


def test_an_acl_that_cannot_be_written_keeps_no_messages_of_a_revoked_device_waiting(
    context, device, tmp_path, change_settings
):
    woken = context.wake.count
    with pytest.raises(StoreError, match="broker acl"):
        enrolment.revoke(change_settings(context, broker_folder=tmp_path / "gone"), "dev-1")
    assert context.wake.count > woken


def test_a_device_that_leaves_while_its_rollout_moves_on_does_not_hold_up_the_others(
    context, api, make_device, owner, monkeypatch
):
    for name in ("dev-1", "dev-2"):
        make_device(name).enrol()
    read = rollouts._to_domain

    def read_then_lose_one(session, row):
        found = read(session, row)
        session.execute(delete(Device).where(Device.id == "dev-1"))
        return found

    monkeypatch.setattr(rollouts, "_to_domain", read_then_lose_one)
    _, rollout = roll_out(api, owner, ids=("dev-1", "dev-2"))
    assert api.get(f"/v1/rollouts/{rollout}").json()["counts"] == {"assigned": 1}


def test_a_rollout_that_waited_for_it_alone_ends(context, api, make_device, owner):
    gone, stays = make_device("dev-1").enrol(), make_device("dev-2").enrol()
    release, rollout = roll_out(api, owner, ids=("dev-1", "dev-2"))
    stays.sequence = 1
    reports.ingest_state(context, stays.runs(release))
    assert api.get(f"/v1/rollouts/{rollout}").json()["state"] == "running"
    api.post(f"/v1/devices/{gone.name}/remove")
    view = api.get(f"/v1/rollouts/{rollout}").json()
    assert (view["state"], [target["device"] for target in view["targets"]]) == ("completed", ["dev-2"])


def test_a_rollout_without_any_device_left_is_aborted(api, device, owner):
    _, rollout = roll_out(api, owner)
    api.post("/v1/devices/dev-1/remove")
    assert api.get(f"/v1/rollouts/{rollout}").json()["state"] == "aborted"


def test_what_it_still_says_is_nobodys(context, api, device, owner, clock):
    release, _ = roll_out(api, owner)
    api.post("/v1/devices/dev-1/remove")
    assert not reports.ingest_state(context, device.runs(release))
    reports.ingest_presence(context, Presence(device="dev-1", online=True))
    sample = HostSample(cpu_percent=1, memory_used_bytes=1, memory_total_bytes=2, disk_used_bytes=1, disk_total_bytes=2)
    record = TelemetryRecord(sequence=1, at=clock(), record=sample)
    batch = TelemetryBatch(device="dev-1", stream="s", records=[record])
    assert telemetry.ingest(context, batch) is None
    assert device.signed("GET", "/v1/devices/dev-1/assignment").status_code == 401
    assert device.signed("POST", "/v1/renew", {"csr_pem": device.csr()}).status_code == 401
    assert rows_of(context, "dev-1") == {"outbox"}


def test_its_certificate_is_denied_until_it_ends(context, api, device, clock):
    api.post("/v1/devices/dev-1/remove")
    assert enrolment.denied_devices(context) == ["dev-1"]
    clock.pass_time(days=context.config.device_days + 1)
    assert enrolment.denied_devices(context) == []


def test_an_old_token_brings_nothing_back(api, make_device):
    device = make_device("dev-1")
    used = device.get_token()
    assert device.enrol_with(used).status_code == 200
    unused = device.get_token()
    api.post("/v1/devices/dev-1/remove")
    assert [device.enrol_with(secret).status_code for secret in (used, unused)] == [401, 401]
    assert api.get("/v1/devices/dev-1").status_code == 404


def test_enrolled_again_it_is_new_but_its_sequence_goes_on(context, api, device, owner):
    roll_out(api, owner)
    roll_out(api, owner, "2")
    before = api.get("/v1/devices/dev-1").json()["sequence"]
    api.post("/v1/devices/dev-1/remove")
    device.key = ec.generate_private_key(ec.SECP256R1())
    device.enrol()
    assert enrolment.denied_devices(context) == []
    view = api.get("/v1/devices/dev-1").json()
    assert (view["sequence"], view["desired"], view["slots"]) == (before, {}, [])
    roll_out(api, owner, "3")
    assert api.get("/v1/devices/dev-1").json()["sequence"] == before + 1
    with context.store.read() as session:
        assert session.get(RemovedDevice, "dev-1") is None
