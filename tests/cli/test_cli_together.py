"""Several releases in one rollout: how to say it, what is refused, and what watching shows of each slot."""

from __future__ import annotations

import pytest

from wherry.api.rollouts import RolloutPart, TargetPartView
from wherry_cli.rollout import read_request

BOTH = ("--together", "cam=vision:2", "--together", "text=vision:2")
PARTS = [RolloutPart(model="vision", version="2", slot=slot) for slot in ("cam", "text")]


@pytest.fixture
def released(server, make):
    server.releases = [make.release("vision", "2", "generic-amd64", 2)]
    return server


def test_releases_for_several_slots_are_named_one_by_one():
    request = read_request(None, None, None, ["cam=vision:2.0-rc1", "text=big.words:3"], ["all"])
    assert [(part.slot, part.model, part.version) for part in request.parts] == [
        ("cam", "vision", "2.0-rc1"), ("text", "big.words", "3"),
    ]  # fmt: skip
    assert (request.model, request.version) == (None, None)


def test_a_rollout_of_several_releases_starts_and_says_what_it_brings(operator, released):
    answer = operator("rollout", "start", *BOTH, "--to", "all")
    assert answer.code == 0, answer.err
    assert "Rollout 1: vision 2 to slot cam together with vision 2 to slot text of all devices" in " ".join(
        answer.out.split()
    )
    assert released.rollouts[1].together == PARTS
    assert "cam + text" in operator("rollout", "list").out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "the release is missing"),
        (("vision",), "the release is missing"),
        (("vision", "2", *BOTH), "stands beside MODEL or --slot"),
        ((*BOTH, "--slot", "main"), "stands beside MODEL or --slot"),
        (BOTH[:2], "names one slot, or one of them twice"),
        ((*BOTH, *BOTH[:2]), "names one slot, or one of them twice"),
        (("--together", "cam=vision"), "is not of the form SLOT=MODEL:VERSION"),
        (("--together", "CAM=vision:2", *BOTH), "is not a usable name"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_sent(operator, released, options, words):
    answer = operator("rollout", "start", *options, "--to", "all")
    assert answer.code == 1
    assert words in " ".join(answer.err.split())
    assert released.rollouts == {}


def test_each_slot_has_its_own_line_and_its_own_story(operator, released, make):
    problem = make.problem(code="deployment.gate", thing="vision 2", reason="golden gate", fix="Correct it")
    parts = [
        TargetPartView(slot="cam", state="rejected", deployment=make.deployment("edge-1", ["admitted", "rejected"])),
        TargetPartView(slot="text", state="rejected", problem=problem),
    ]
    whole = make.target("edge-1", "rejected", problem=problem).model_copy(update={"parts": parts})
    view = make.rollout(1, "vision", "2", "failed", targets=[whole], together=PARTS, counts={"rejected": 1})
    released.rollouts[1] = view
    shown = operator("rollout", "show", "1").out
    assert "edge-1 cam" in shown
    assert "edge-1 text" in shown
    assert "0 of 1 device committed, 1 rejected" in shown
    told = operator("rollout", "watch", "1").out
    assert "edge-1 text: rejected: vision 2: golden gate" in told
    lines = operator("rollout", "watch", "1", "--json").lines
    assert [part["slot"] for part in lines[1]["parts"]] == ["cam", "text"]
    assert lines[-1]["ok"] is False


def test_a_rollout_of_many_devices_is_fetched_page_by_page(operator, released, make):
    first = make.rollout(1, "vision", "2", "completed", targets=[make.target("edge-1", "committed")])
    second = make.rollout(1, "vision", "2", "completed", targets=[make.target("edge-2", "committed")])
    released.rollouts[1], released.script = first, [first.model_copy(update={"next": "edge-1"}), second]
    answer = operator("rollout", "show", "1", "--json")
    assert [target["device"] for target in answer.json["targets"]] == ["edge-1", "edge-2"]
    assert answer.json["next"] is None
