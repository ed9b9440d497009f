"""A release on its way through the server: publish, roll out, assign, follow, end."""

from __future__ import annotations

import json

import pytest
from tuf.api.metadata import Metadata, Targets

from wherry.messages import Problem, Retry, parse_command
from wherry.metadata import verify_role
from wherry.roles import ASSIGNMENT_FIELD, DIRECTOR
from wherry_server.services import assignments, outbox, reports, rollouts

GATE = Problem(code="deployment.gate", thing="golden gate", reason="worst error 0.4", fix="Correct the model")
TO_ALL = {"everything": True}


def roll_out(api, version, selector=None, model="vision", slot="main"):
    body = {"model": model, "version": version, "slot": slot, "selector": selector or TO_ALL}
    reply = api.post("/v1/rollouts", body)
    assert reply.status_code == 201, reply.text
    return reply.json()


def view(api, rollout):
    return api.get(f"/v1/rollouts/{rollout['id']}").json()


def target(api, rollout, device="dev-1"):
    return next(found for found in view(api, rollout)["targets"] if found["device"] == device)


def assigned_slots(payload):
    return Metadata[Targets].from_bytes(payload).signed.unrecognized_fields[ASSIGNMENT_FIELD]["slots"]


def test_a_rollout_signs_an_assignment_that_the_owner_metadata_delegates(context, api, owner, device):
    release = owner.release("2")
    rollout = roll_out(api, "2")
    assert rollout["state"] == "running"
    assert rollout["counts"] == {"assigned": 1}
    payload = device.signed("GET", "/v1/devices/dev-1/assignment").content
    metadata = Metadata[Targets].from_bytes(payload)
    verify_role(owner.set.targets, DIRECTOR, metadata, "assignment")
    path = "models/vision/generic-amd64/1.manifest.json"
    assert metadata.signed.version == 1
    assert metadata.signed.unrecognized_fields[ASSIGNMENT_FIELD] == {
        "schema": 1, "device": "dev-1", "slots": {"main": path},
    }  # fmt: skip
    owners = owner.set.targets.targets[path]
    ours = metadata.signed.targets[path]
    assert (ours.length, ours.hashes) == (owners.length, owners.hashes)
    assert release.digest.endswith(ours.hashes["sha256"])


def test_the_outbox_holds_the_same_bytes_until_the_link_sent_them(context, api, owner, device):
    owner.release("1")
    roll_out(api, "1")
    (message,) = outbox.pending(context)
    assert str(message.topic) == "wherry/v1/d/dev-1/assign"
    assert message.payload == assignments.current_assignment(context, "dev-1")
    outbox.sent(context, [message.id])
    assert outbox.pending(context) == []
    assert [found.payload for found in outbox.current_assignments(context, "", 10)] == [message.payload]
    assert context.wake.count > 0


def test_a_committed_device_completes_the_rollout(context, api, owner, device):
    release = owner.release("1")
    rollout = roll_out(api, "1")
    device.sequence = 1
    reports.ingest_state(context, device.runs(release, "probing"))
    assert target(api, rollout)["state"] == "running"
    assert api.get("/v1/devices/dev-1").json()["drift"] == ["main"]
    reports.ingest_state(context, device.runs(release))
    done = view(api, rollout)
    assert (done["state"], done["counts"]) == ("completed", {"committed": 1})
    assert done["ended"] is not None
    twin = api.get("/v1/devices/dev-1").json()
    assert twin["drift"] == []
    assert twin["online"] is True
    assert twin["desired"]["main"]["version"] == "1"


def test_a_rejection_fails_the_rollout_with_the_devices_reason(context, api, owner, device):
    release = owner.release("1")
    rollout = roll_out(api, "1")
    device.sequence, device.rejected = 1, [release.digest]
    reports.ingest_state(context, device.runs(release, "rejected", problem=GATE))
    assert view(api, rollout)["state"] == "failed"
    assert target(api, rollout)["problem"]["reason"] == "worst error 0.4"
    history = api.get("/v1/deployments?device=dev-1").json()["items"]
    assert history[0]["deployment"]["phase"] == "rejected"


def test_rolling_the_same_release_out_again_tells_at_once_that_it_was_rejected_before(context, api, owner, device):
    release = owner.release("1")
    roll_out(api, "1")
    device.sequence, device.rejected = 1, [release.digest]
    reports.ingest_state(context, device.runs(release, "rejected", problem=GATE))
    again = roll_out(api, "1")
    device.sequence = 2
    reports.ingest_state(context, device.report())
    assert view(api, again)["state"] == "failed"
    assert target(api, again)["problem"]["reason"] == "worst error 0.4"


def test_retry_of_a_rollout_sends_the_command_first_and_then_a_newer_assignment(context, api, owner, device):
    release = owner.release("1")
    rollout = roll_out(api, "1")
    device.sequence, device.rejected = 1, [release.digest]
    reports.ingest_state(context, device.runs(release, "rejected", problem=GATE))
    reply = api.post(f"/v1/rollouts/{rollout['id']}/retry")
    assert reply.json()["state"] == "running"
    retry, assignment = outbox.pending(context)[-2:]
    assert parse_command(retry.payload) == Retry(slot="main", digest=release.digest)
    assert assignment.payload == assignments.current_assignment(context, "dev-1")
    # A report from before the retry changes nothing; one from after it does.
    reports.ingest_state(context, device.report())
    assert target(api, rollout)["state"] == "assigned"
    device.sequence, device.rejected = 2, []
    reports.ingest_state(context, device.runs(release))
    assert view(api, rollout)["state"] == "completed"


def test_an_older_rollout_that_is_retried_is_followed_and_takes_the_slot_over(context, api, owner, device):
    first, second = owner.release("1"), owner.release("2")
    older = roll_out(api, "1")
    device.sequence, device.rejected = 1, [first.digest]
    reports.ingest_state(context, device.runs(first, "rejected", problem=GATE))
    newer = roll_out(api, "2")
    device.sequence, device.rejected = 2, [first.digest, second.digest]
    reports.ingest_state(context, device.runs(second, "rejected", problem=GATE))
    api.post(f"/v1/rollouts/{older['id']}/retry")
    device.sequence, device.rejected = 3, []
    reports.ingest_state(context, device.runs(first))
    assert view(api, older)["state"] == "completed"
    assert view(api, newer)["state"] == "failed"


def test_a_device_of_another_profile_is_a_misfit_with_words_and_gets_nothing(context, api, owner, make_device):
    make_device("dev-1").enrol()
    make_device("dev-2", "generic-arm64").enrol()
    owner.release("1")
    rollout = roll_out(api, "1")
    assert view(api, rollout)["counts"] == {"assigned": 1, "misfit": 1}
    reason = target(api, rollout, "dev-2")["problem"]["reason"]
    assert reason == "has no image for profile generic-arm64 (it has: generic-amd64)"
    assert api.get("/v1/devices/dev-2/assignment").status_code == 404


def test_an_image_that_the_profile_cannot_run_is_a_misfit(context, api, owner, device):
    owner.release("1", runtime="litert")
    rollout = roll_out(api, "1")
    assert target(api, rollout)["state"] == "misfit"
    assert "runtime litert is not among" in target(api, rollout)["problem"]["reason"]
    rollouts.advance_all(context)
    assert view(api, rollout)["state"] == "failed"


def test_a_newer_rollout_takes_the_slot_over(context, api, owner, device):
    owner.release("1")
    second = owner.release("2")
    first = roll_out(api, "1")
    newer = roll_out(api, "2")
    assert target(api, first)["state"] == "superseded"
    assert f"rollout {newer['id']}" in target(api, first)["problem"]["reason"]
    rollouts.advance_all(context)
    assert view(api, first)["state"] == "aborted"
    device.sequence = 2
    reports.ingest_state(context, device.runs(second))
    assert view(api, newer)["state"] == "completed"


def test_slots_are_independent(context, api, owner, device):
    owner.release("1")
    owner.release("1", model="audio")
    first = roll_out(api, "1")
    roll_out(api, "1", model="audio", slot="second")
    assert target(api, first)["state"] == "assigned"
    assert assigned_slots(assignments.current_assignment(context, "dev-1")) == {
        "main": "models/vision/generic-amd64/1.manifest.json",
        "second": "models/audio/generic-amd64/1.manifest.json",
    }


def test_after_an_abort_nothing_more_is_assigned(context, api, owner, device, monkeypatch):
    owner.release("1")
    monkeypatch.setattr(rollouts, "advance", lambda context, rollout: False)
    rollout = roll_out(api, "1")
    assert target(api, rollout)["state"] == "pending"
    assert api.post(f"/v1/rollouts/{rollout['id']}/abort").json()["state"] == "aborted"
    monkeypatch.undo()
    rollouts.advance_all(context)
    rollouts.advance(context, rollout["id"])
    assert target(api, rollout)["state"] == "pending"
    assert outbox.pending(context) == []
    assert api.post(f"/v1/rollouts/{rollout['id']}/start").status_code == 409


def test_a_paused_rollout_assigns_when_it_is_started(context, api, owner, device, monkeypatch):
    owner.release("1")
    with monkeypatch.context() as patch:
        patch.setattr(rollouts, "advance", lambda context, rollout: False)
        rollout = roll_out(api, "1")
        api.post(f"/v1/rollouts/{rollout['id']}/pause")
    rollouts.advance_all(context)
    assert target(api, rollout)["state"] == "pending"
    assert api.post(f"/v1/rollouts/{rollout['id']}/start").json()["counts"] == {"assigned": 1}


def test_a_trust_problem_that_stays_after_the_assignment_is_a_refusal(context, api, owner, device, clock):
    release = owner.release("1")
    rollout = roll_out(api, "1")
    clock.pass_time(seconds=1)
    device.problem = Problem(code="trust.tampered", thing="assignment", reason="was changed", fix="Look")
    reports.ingest_state(context, device.report())
    assert target(api, rollout)["state"] == "assigned"
    clock.pass_time(seconds=10)
    rollouts.advance_all(context)
    assert target(api, rollout)["state"] == "refused"
    assert target(api, rollout)["problem"]["reason"] == "was changed"
    assert view(api, rollout)["state"] == "failed"
    # The device comes round later: its own page tells that, what ended stays as it ended.
    device.problem, device.sequence = None, 1
    reports.ingest_state(context, device.runs(release))
    assert view(api, rollout)["state"] == "failed"
    assert target(api, rollout)["problem"]["reason"] == "was changed"


def test_a_refusal_that_names_its_assignment_ends_the_rollout_with_the_report(context, api, owner, device):
    owner.release("1")
    rollout = roll_out(api, "1")
    device.problem, device.refused = Problem(code="trust.rolled_back", thing="a", reason="is older", fix="Look"), 1
    reports.ingest_state(context, device.report())
    assert target(api, rollout)["state"] == "refused"
    assert view(api, rollout)["state"] == "failed"
    # The same refusal again says nothing of a newer assignment.
    newer = roll_out(api, "1")
    reports.ingest_state(context, device.report())
    assert target(api, newer)["state"] == "assigned"
    device.refused = 2
    reports.ingest_state(context, device.report())
    assert view(api, newer)["state"] == "failed"


@pytest.mark.parametrize("verb", ["start", "pause"])
def test_a_device_that_has_room_again_goes_on_in_its_rollout(context, api, owner, make_device, verb):
    full, slow = make_device("dev-1").enrol(), make_device("dev-2").enrol()
    full.sequence = slow.sequence = 1
    release = owner.release("1")
    rollout = roll_out(api, "1", selector={"everything": True})
    reports.ingest_state(context, slow.runs(release, "fetching"))
    no_room = Problem(code="admission", thing="disk", reason="is full", fix="Free some")
    reports.ingest_state(context, full.runs(release, "refused", problem=no_room))
    api.post(f"/v1/rollouts/{rollout['id']}/{verb}")
    assert view(api, rollout)["counts"] == {"refused": 1, "running": 1}
    reports.ingest_state(context, full.runs(release, "fetching"))
    assert view(api, rollout)["counts"] == {"running": 2}
    for one in (full, slow):
        reports.ingest_state(context, one.runs(release))
    api.post(f"/v1/rollouts/{rollout['id']}/start")
    assert (view(api, rollout)["state"], view(api, rollout)["counts"]) == ("completed", {"committed": 2})


def test_a_slot_can_be_emptied(context, api, owner, device):
    release = owner.release("1")
    roll_out(api, "1")
    device.sequence = 1
    reports.ingest_state(context, device.runs(release))
    assert api.request("DELETE", "/v1/devices/dev-1/slots/main").status_code == 204
    assert assigned_slots(assignments.current_assignment(context, "dev-1")) == {}
    assert api.get("/v1/devices/dev-1").json()["drift"] == ["main"]
    assert api.request("DELETE", "/v1/devices/dev-1/slots/main").status_code == 404


def test_selectors_that_choose_nothing_are_refused_in_words(api, owner, device):
    owner.release("1")
    for selector, reason in (
        ({}, "selects nothing"),
        ({"labels": {"site": "nowhere"}}, "selects no device"),
        ({"ids": ["dev-9"]}, "does not exist"),
    ):
        reply = api.post("/v1/rollouts", {"model": "vision", "version": "1", "selector": selector})
        assert reply.status_code in (404, 422)
        assert reason in reply.json()["error"]["reason"]
    reply = api.post("/v1/rollouts", {"model": "vision", "version": "9", "selector": TO_ALL})
    assert reply.status_code == 404


def test_labels_and_ids_select(api, owner, make_device):
    make_device("dev-1").enrol(labels={"site": "north"})
    make_device("dev-2").enrol(labels={"site": "south"})
    make_device("dev-3").enrol(labels={"site": "north"})
    owner.release("1")
    assert [t["device"] for t in roll_out(api, "1", {"labels": {"site": "north"}})["targets"]] == ["dev-1", "dev-3"]
    assert [t["device"] for t in roll_out(api, "1", {"ids": ["dev-2"]})["targets"]] == ["dev-2"]
    both = roll_out(api, "1", {"labels": {"site": "north"}, "ids": ["dev-3", "dev-2"]})
    assert [t["device"] for t in both["targets"]] == ["dev-3"]


def test_assignments_are_signed_again_at_half_their_life(context, api, owner, device, clock):
    owner.release("1")
    roll_out(api, "1")
    assert assignments.sign_due(context) == 0
    clock.pass_time(days=3.6)
    assert assignments.sign_due(context) == 1
    payload = assignments.current_assignment(context, "dev-1")
    signed = Metadata[Targets].from_bytes(payload).signed
    assert signed.version == 2
    assert signed.expires > clock()
    assert assignments.sign_due(context) == 0


def test_an_assignment_and_its_outbox_row_stand_or_fall_together(context, api, owner, device, monkeypatch):
    owner.release("1")
    owner.release("2")
    roll_out(api, "1")
    before = assignments.current_assignment(context, "dev-1")
    waiting = [message.payload for message in outbox.pending(context)]

    def fail(*_args):
        raise RuntimeError("power cut")

    monkeypatch.setattr("wherry_server.services.outbox.put_assignment", fail)
    assert api.post("/v1/rollouts", {"model": "vision", "version": "2", "selector": TO_ALL}).status_code == 500
    assert assignments.current_assignment(context, "dev-1") == before
    assert [message.payload for message in outbox.pending(context)] == waiting
    twin = api.get("/v1/devices/dev-1").json()
    assert (twin["sequence"], twin["desired"]["main"]["version"]) == (1, "1")
    monkeypatch.undo()
    rollouts.advance_all(context)
    assert api.get("/v1/devices/dev-1").json()["desired"]["main"]["version"] == "2"


def test_stale_and_foreign_reports_change_nothing(context, api, owner, device):
    release = owner.release("1")
    roll_out(api, "1")
    device.sequence = 1
    old = device.runs(release, "probing")
    new = device.runs(release)
    assert reports.ingest_state(context, new)
    assert not reports.ingest_state(context, old)
    assert api.get("/v1/devices/dev-1").json()["slots"][0]["deployment"]["phase"] == "committed"
    assert not reports.ingest_state(context, new.model_copy(update={"device": "stranger"}))


def test_a_poll_is_asked_for_over_mqtt(context, api, device):
    assert api.post("/v1/devices/dev-1/poll").status_code == 202
    (message,) = outbox.pending(context)
    assert json.loads(message.payload)["type"] == "poll_now"
    assert str(message.topic) == "wherry/v1/d/dev-1/cmd"


def test_a_release_of_the_agent_goes_into_its_own_slot_and_nothing_else_does(context, api, owner, device):
    owner.release("1.5", model="wherry-agent", runtime="agent")
    owner.release("1")
    rollout = api.post("/v1/rollouts", {"model": "wherry-agent", "version": "1.5", "selector": TO_ALL}).json()
    assert rollout["slot"] == "agent"
    payload = device.signed("GET", "/v1/devices/dev-1/assignment").content
    assert assigned_slots(payload) == {"agent": "models/wherry-agent/generic-amd64/1.manifest.json"}
    for model, version, slot, words in (
        ("wherry-agent", "1.5", "other", "belongs in slot agent and not in other"),
        ("vision", "1", "agent", "is a model, and slot agent is for releases of the agent itself"),
    ):
        body = {"model": model, "version": version, "slot": slot, "selector": TO_ALL}
        for path in ("/v1/rollouts", "/v1/rollouts/preview"):
            reply = api.post(path, body)
            assert (reply.status_code, words in reply.json()["error"]["reason"]) == (422, True), reply.text
