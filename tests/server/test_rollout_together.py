"""Rollouts of several releases: one assignment for all slots, a device counted once, one culprit, nothing half done."""

from __future__ import annotations

from typing import Any

import pytest
from tuf.api.metadata import Metadata, Targets

from wherry.messages import UNDERSTOOD, DeploymentReport, Problem, ReleaseRef, SlotReport, parse_command
from wherry.roles import ASSIGNMENT_FIELD
from wherry_server.domain.parts import joint_state
from wherry_server.services import assignments, outbox, reports

GATE = Problem(code="deployment.gate", thing="release words 2", reason="golden gate: wrong", fix="Correct the model")
WITH = Problem(code="deployment", thing="release vision 2", reason="went back with slot text", fix="Correct the model")


def roll_out(api, status=201, selector=None, **releases: str) -> dict[str, Any]:
    """`cam="vision:2"`."""
    parts = [dict(zip(("model", "version"), of.split(":"), strict=True), slot=slot) for slot, of in releases.items()]
    body = {"together": parts} if len(parts) > 1 else parts[0]
    reply = api.post("/v1/rollouts", {**body, "selector": selector or {"everything": True}})
    assert reply.status_code == status, reply.text
    return reply.json()


def assigned(context, device="dev-1"):
    payload = assignments.current_assignment(context, device)
    field = Metadata[Targets].from_bytes(payload).signed.unrecognized_fields[ASSIGNMENT_FIELD]
    paths = {slot: path.split("/")[1] + ":" + path.split("/")[3].split(".")[0] for slot, path in field["slots"].items()}
    return paths, field.get("together")


def tell(context, device, understands=UNDERSTOOD, rejected=(), **slots: tuple[ReleaseRef, str, Any]) -> None:
    """The device reports a deployment in each slot: (release, phase, problem or culprit's)."""
    for slot, (release, phase, problem) in slots.items():
        culprit = "text" if problem is WITH else None
        done = phase == "committed"
        report = DeploymentReport(
            id=f"{slot}-{release.counter}", slot=slot, release=release, sequence=device.sequence, phase=phase,
            started=context.clock(), updated=context.clock(), problem=problem, culprit=culprit,
        )  # fmt: skip
        serving = release if done else None
        device.slots[slot] = SlotReport(
            slot=slot, port=8500, serving=serving, known_good=serving, healthy=done, deployment=report
        )
    device.rejected = [release.digest for release in rejected]
    reports.ingest_state(context, device.report().model_copy(update={"understands": list(understands)}))


def view(api, rollout):
    return api.get(f"/v1/rollouts/{rollout['id']}").json()


@pytest.fixture
def two(owner):
    """Two models in two versions each."""
    return {
        f"{model}:{version}": owner.release(version, model=model) for model in ("vision", "words") for version in "12"
    }


def test_one_assignment_names_all_slots_and_that_they_go_together(context, api, owner, device, two):
    rollout = roll_out(api, cam="vision:2", text="words:2")
    assert rollout["counts"] == {"assigned": 1}
    assert rollout["together"] == [
        {"model": "vision", "version": "2", "slot": "cam"}, {"model": "words", "version": "2", "slot": "text"},
    ]  # fmt: skip
    assert assigned(context) == ({"cam": "vision:2", "text": "words:2"}, [["cam", "text"]])
    assert len(outbox.pending(context)) == 1


def test_a_device_is_counted_once_and_done_when_all_its_slots_are(context, api, owner, device, two):
    rollout = roll_out(api, cam="vision:2", text="words:2")
    device.sequence = 1
    tell(context, device, cam=(two["vision:2"], "committed", None), text=(two["words:2"], "probing", None))
    assert view(api, rollout)["counts"] == {"running": 1}
    (target,) = view(api, rollout)["targets"]
    assert {part["slot"]: part["state"] for part in target["parts"]} == {"cam": "committed", "text": "running"}
    tell(context, device, text=(two["words:2"], "committed", None))
    done = view(api, rollout)
    assert (done["state"], done["counts"]) == ("completed", {"committed": 1})
    assert [found["id"] for found in api.get("/v1/rollouts?model=words").json()["items"]] == [rollout["id"]]


def test_the_culprit_speaks_for_the_device_and_a_retry_tells_every_slot(context, api, owner, device, two):
    rollout = roll_out(api, cam="vision:2", text="words:2")
    device.sequence = 1
    gone = [two["words:2"]]
    tell(
        context, device, rejected=gone, cam=(two["vision:2"], "rejected", WITH), text=(two["words:2"], "rejected", GATE)
    )
    failed = view(api, rollout)
    assert (failed["state"], failed["counts"]) == ("failed", {"rejected": 1})
    assert failed["targets"][0]["problem"]["reason"] == GATE.reason
    for message in outbox.pending(context):
        outbox.sent(context, [message.id])
    assert api.post(f"/v1/rollouts/{rollout['id']}/retry").json()["counts"] == {"assigned": 1}
    *commands, assignment = outbox.pending(context)
    assert {parse_command(command.payload).slot for command in commands} == {"cam", "text"}
    assert assignment.payload == assignments.current_assignment(context, "dev-1")
    assert assigned(context)[1] == [["cam", "text"]]


def test_a_group_that_is_taken_apart_before_it_is_done_leaves_its_other_slots_as_they_were(
    context, api, owner, device, two
):
    roll_out(api, text="words:1")
    first = roll_out(api, cam="vision:2", text="words:2")
    roll_out(api, cam="vision:1")
    assert assigned(context) == ({"cam": "vision:1", "text": "words:1"}, None)
    old = view(api, first)
    assert old["counts"] == {"superseded": 1}
    assert {part["state"] for part in old["targets"][0]["parts"]} == {"superseded"}


def test_a_group_that_is_done_comes_apart_without_harm(context, api, owner, device, two):
    roll_out(api, cam="vision:1", text="words:1")
    device.sequence = 1
    tell(context, device, cam=(two["vision:1"], "committed", None), text=(two["words:1"], "committed", None))
    roll_out(api, cam="vision:2")
    assert assigned(context) == ({"cam": "vision:2", "text": "words:1"}, None)


def test_emptying_one_of_two_slots_that_are_on_their_way_takes_both_back(context, api, owner, device, two):
    first = roll_out(api, cam="vision:2", text="words:2")
    assert api.request("DELETE", "/v1/devices/dev-1/slots/cam").status_code == 204
    assert assigned(context) == ({}, None)
    assert view(api, first)["counts"] == {"superseded": 1}


def test_an_agent_that_cannot_go_together_is_told_apart_before_anything_is_sent(context, api, owner, device, two):
    tell(context, device, understands=())
    body = {"together": roll_parts("cam", "text"), "selector": {"everything": True}}
    preview = api.post("/v1/rollouts/preview", body).json()
    assert (preview["devices"], preview["fit"]) == (1, 0)
    rollout = roll_out(api, cam="vision:2", text="words:2")
    assert rollout["counts"] == {"misfit": 1}
    assert view(api, rollout)["targets"][0]["problem"]["reason"] == (
        "its agent (0.1.0) does not know several slots together"
    )
    assert roll_out(api, cam="vision:2")["counts"] == {"assigned": 1}, "one release is for every agent"


def test_an_agent_from_before_releases_of_the_agent_is_not_sent_one_and_goes_on_with_models(
    context, api, owner, device, two
):
    owner.release("1.5", model="wherry-agent", runtime="agent")
    tell(context, device, understands=("together", "needs.slots"))
    rollout = roll_out(api, agent="wherry-agent:1.5")
    assert rollout["counts"] == {"misfit": 1}
    problem = view(api, rollout)["targets"][0]["problem"]
    assert problem["reason"] == "its agent (0.1.0) does not know releases of the agent"
    assert problem["fix"].startswith("Run install.sh on this device once")
    roll_out(api, cam="vision:2")
    assert assigned(context)[0] == {"cam": "vision:2"}
    tell(context, device)
    assert roll_out(api, agent="wherry-agent:1.5")["counts"] == {"assigned": 1}


def roll_parts(*slots: str) -> list[dict[str, str]]:
    return [
        {"model": model, "version": "2", "slot": slot} for model, slot in zip(("vision", "words"), slots, strict=True)
    ]


@pytest.mark.parametrize(
    "body",
    [
        {"together": roll_parts("cam", "cam")},
        {"together": roll_parts("cam", "text")[:1]},
        {"together": roll_parts("cam", "text"), "model": "vision", "version": "2"},
        {"together": roll_parts("cam", "agent")},
        {"model": "vision"},
    ],
)
def test_requests_that_make_no_sense(api, owner, device, two, body):
    assert api.post("/v1/rollouts", {**body, "selector": {"everything": True}}).status_code == 422


def test_a_misfit_of_one_part_names_the_part(api, owner, device, two):
    owner.release("9", profile="jetson-nano", model="words")
    rollout = roll_out(api, cam="vision:2", text="words:9")
    problem = view(api, rollout)["targets"][0]["problem"]
    assert problem["thing"] == "words 9 on dev-1"
    assert problem["reason"].startswith("has no image for profile generic-amd64")


def test_slots_that_a_release_needs_must_serve_already(context, api, owner, device, two):
    owner.release("1", model="caller", needs={"slots": ["features"]})
    lonely = view(api, roll_out(api, text="caller:1"))
    assert lonely["targets"][0]["problem"]["reason"] == "needs slot features, which serves nothing there yet"
    assert view(api, roll_out(api, features="vision:1", text="caller:1"))["counts"] == {"misfit": 1}
    roll_out(api, features="vision:1")
    assert roll_out(api, text="caller:1")["counts"] == {"assigned": 1}
    refused = api.request("DELETE", "/v1/devices/dev-1/slots/features")
    assert refused.status_code == 409
    assert refused.json()["error"]["reason"] == "is needed by slot text"
    owner.release("3", needs={"slots": ["text"]})
    circle = view(api, roll_out(api, features="vision:3"))
    assert (
        circle["targets"][0]["problem"]["reason"] == "needs itself: slot features needs slot text needs slot features"
    )


def test_devices_of_a_rollout_come_in_pages(api, owner, make_device, two):
    for number in range(5):
        make_device(f"cam-{number}").enrol()
    rollout = roll_out(api, cam="vision:2", text="words:2")
    seen, after = [], ""
    while after is not None:
        page = api.get(f"/v1/rollouts/{rollout['id']}?limit=2&after={after}").json()
        assert page["counts"] == {"assigned": 5}
        seen += [target["device"] for target in page["targets"]]
        after = page["next"]
    assert seen == [f"cam-{number}" for number in range(5)]
    assert api.get(f"/v1/rollouts/{rollout['id']}?state=committed").json()["targets"] == []


@pytest.mark.parametrize(
    ("states", "joint"),
    [
        (["pending", "pending"], "pending"), (["assigned", "pending"], "assigned"),
        (["running", "assigned"], "running"),
        (["committed", "assigned"], "running"), (["rejected", "running"], "running"),
        (["committed", "rejected"], "rejected"), (["refused", "committed"], "refused"),
        (["superseded", "committed"], "superseded"), (["committed", "committed"], "committed"),
        (["refused"], "refused"),
    ],
)  # fmt: skip
def test_a_device_is_as_well_as_its_worst_slot_once_all_have_ended(states, joint):
    assert joint_state(states) == joint
