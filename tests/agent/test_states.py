"""The phase table."""

from __future__ import annotations

import pytest
from agent_fakes import DEVICE, START, make_image

from wherry.errors import PhaseError
from wherry.messages import FINAL_PHASES, PHASES
from wherry_agent import steps
from wherry_agent.entry import Deployment, Entry, Limits, SlotEntry
from wherry_agent.events import Failed, StepFinished
from wherry_agent.progress import Began, advance
from wherry_agent.states import PHASE_TABLE, allows, draw, next_phase

WAY = [
    ("admit", "admitted"), ("fetch", "fetching"), ("stage", "staging"), ("start", "starting"), ("probe", "probing"),
    ("switch", "switching"), ("soak", "soaking"), ("commit", "committing"), ("committed", "committed"),
]  # fmt: skip


def test_the_straight_way_leads_from_admission_to_commit():
    phase = None
    for move, expected in WAY:
        phase = next_phase(phase, move)
        assert phase == expected


def test_what_the_table_does_not_name_raises_and_changes_nothing():
    with pytest.raises(PhaseError, match="in phase committed it cannot probe"):
        next_phase("committed", "probe")
    known = Entry(
        device=DEVICE,
        slots={"main": SlotEntry("main", 8500, deployment=Deployment("d", make_image(1), 1, "fetching", START, START))},
    )
    with pytest.raises(PhaseError):
        advance(known, Began(steps.Switch("main", make_image(1), 8500)), START, Limits())
    assert known.slots["main"].deployment.phase == "fetching"


def test_every_phase_is_reached_and_left_or_final():
    reached = set(PHASE_TABLE.values())
    left = {phase for phase, _ in PHASE_TABLE if phase}
    assert reached == set(PHASES)
    assert set(PHASES) - FINAL_PHASES <= left
    for phase in FINAL_PHASES - {"refused"}:
        assert {move for start, move in PHASE_TABLE if start == phase} <= {"remove", "fall_back"}


def test_a_gate_can_fail_before_the_commit_and_never_after_it():
    assert [phase for phase in PHASES if allows(phase, "fail")] == [
        "admitted", "fetching", "staging", "starting", "probing", "switching", "soaking", "committing",
    ]  # fmt: skip
    assert not allows("committing", "supersede")


def test_a_failure_of_the_world_is_forgiven_and_one_without_a_culprit_three_times():
    image = make_image(1)
    step = steps.Start("main", image, "overlap")

    def fail(entry, blame):
        from wherry.errors import EngineError

        entry = advance(entry, StepFinished(step, Failed(EngineError("engine", "is down"), blame)), START, Limits())
        return entry, entry.slots["main"].deployment

    deployment = Deployment("d", image, 1, "starting", START, START)
    fresh = Entry(device=DEVICE, slots={"main": SlotEntry("main", 8500, deployment=deployment)})
    known = fresh
    verdicts = []
    for _ in range(3):
        known, deployment = fail(known, "unclear")
        verdicts.append(deployment.verdict)
        known = advance(known, StepFinished(steps.Rollback("main", image)), START, Limits())
        if known.slots["main"].trial:
            for again in (steps.Fetch("main", image), steps.Stage("main", image, 8500), step):
                known = advance(known, Began(again), START, Limits())
    assert verdicts == ["retry", "retry", "reject"]
    assert set(known.rejected) == {image.digest}
    assert fail(fresh, "world")[1].verdict == "retry"
    assert fail(fresh, "release")[1].verdict == "reject"


def test_the_diagram_names_every_phase_and_every_move():
    drawn = draw()
    assert drawn.startswith("stateDiagram-v2\n    [*] --> admitted: admit\n")
    for phase in PHASES:
        assert phase in drawn
    for _, move in PHASE_TABLE:
        assert move in drawn
    assert drawn.count("--> [*]") == len(FINAL_PHASES)
