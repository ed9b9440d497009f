"""What an operator is told before a rollout starts: what it replaces, slots it makes, devices that will refuse it."""

from __future__ import annotations

from wherry_server.services import reports


def notes(api, version, model="vision", slot="main", selector=None):
    body = {"model": model, "version": version, "slot": slot, "selector": selector or {"everything": True}}
    reply = api.post("/v1/rollouts/preview", body)
    assert reply.status_code == 200, reply.text
    return reply.json()["notes"]


def serve(context, device, release, **fields):
    device.sequence += 1
    reports.ingest_state(context, device.runs(release, **fields))


def test_a_first_release_and_a_newer_one_need_no_words(context, api, owner, device):
    first = owner.release("1")
    assert notes(api, "1") == []
    serve(context, device, first)
    owner.release("2")
    assert notes(api, "2") == []
    assert notes(api, "1") == []
    assert api.get("/v1/rollouts").json()["items"] == []


def test_another_model_in_the_slot_and_a_slot_that_is_new_are_told(context, api, owner, make_device):
    devices = [make_device(name).enrol() for name in ("dev-1", "dev-2", "dev-3")]
    owner.release("1")
    audio = owner.release("7", model="audio")
    for device in devices[:2]:
        serve(context, device, audio)
    assert notes(api, "1") == ["It replaces audio 7 in slot main on 2 devices."]
    assert notes(api, "1", selector={"ids": ["dev-3"]}) == []
    assert notes(api, "1", slot="mian") == ["Slot mian is new on 3 devices; beside main."]


def test_devices_that_had_a_later_release_will_refuse_until_it_is_signed_again(context, api, owner, make_device):
    devices = [make_device(name).enrol() for name in ("dev-1", "dev-2", "dev-3")]
    first, second = owner.release("1"), owner.release("2")
    serve(context, devices[0], second)
    serve(context, devices[1], second, phase="rejected")
    serve(context, devices[2], first)
    (told,) = notes(api, "1")
    assert told.startswith("2 devices have had a release of vision that was signed later and will refuse 1.")
    assert "wherry release publish PACKAGE --again" in told
