"""Plans as sentences: the state of a device in, steps out."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from agent_fakes import DEVICE, START, make_image

from wherry.messages import Problem, UpdateLock
from wherry_agent.assignment import Assignment, Marks
from wherry_agent.entry import Deployment, Entry, Limits, Rejection, SlotEntry, container_name
from wherry_agent.observed import Container, Observed
from wherry_agent.planner import assign_ports, plan
from wherry_agent.reporter import active_slots
from wherry_agent.wishes import to_admit, to_supersede

V1, V2, V3 = make_image(1), make_image(2), make_image(3)
PROBLEM = Problem(code="deployment.gate", thing="release vision 2", reason="wrong", fix="correct it")


def contain(image, state="running", port=None, slot="main"):
    name = container_name(DEVICE, slot, image)
    return Container(name, slot, image.digest, state, port or 18500 + image.image.counter, 8500)


def observed(*containers, routes=None, memory=1000):
    return Observed({c.name: c for c in containers}, routes or {}, memory)


def desired(*, sequence=2, **slots):
    return Assignment(DEVICE, sequence, START + timedelta(days=7), slots)


def trial(image, phase, **changes):
    return replace(Deployment("d-1", image, 2, phase, START, START), **changes)


def entry(slot=None, **changes):
    slots = {"main": slot} if slot else {}
    return Entry(device=DEVICE, slots=slots, **changes)


def sentence(wanted, seen, known, now=START, **options):
    return [step.kind for step in plan(wanted, seen, known, now, **options)]


SERVING_1 = {8500: 18501}


def test_a_device_that_is_as_it_should_be_has_nothing_to_do():
    known = entry(SlotEntry("main", 8500, known_good=V1))
    assert sentence(desired(main=V1), observed(contain(V1), routes=SERVING_1), known) == []


def test_a_device_that_does_not_know_what_is_wanted_goes_on_serving():
    known = entry(SlotEntry("main", 8500, known_good=V1))
    assert sentence(None, observed(contain(V1), routes=SERVING_1), known) == []
    assert sentence(None, observed(contain(V1, "exited")), known) == ["EnsureServing"]
    assert sentence(None, observed(contain(V1)), known) == ["EnsureRoute"]


def test_an_admitted_release_has_the_whole_way_before_it():
    known = entry(SlotEntry("main", 8500, known_good=V1, deployment=trial(V2, "admitted")))
    steps = sentence(desired(main=V2), observed(contain(V1), routes=SERVING_1), known)
    assert steps == ["Fetch", "Stage", "Start", "Probe", "Switch", "Soak", "Commit"]


@pytest.mark.parametrize(
    ("phase", "finished", "first"),
    [
        ("fetching", None, "Fetch"), ("fetching", "Fetch", "Stage"), ("staging", None, "Stage"),
        ("staging", "Stage", "Start"), ("starting", None, "Start"), ("starting", "Start", "Probe"),
        ("probing", None, "Probe"), ("probing", "Probe", "Switch"), ("switching", None, "Switch"),
        ("switching", "Switch", "Soak"), ("soaking", None, "Soak"), ("soaking", "Soak", "Commit"),
        ("committing", None, "Commit"),
    ],
)  # fmt: skip
def test_a_step_that_is_not_known_to_have_ended_is_done_again(phase, finished, first):
    known = entry(
        SlotEntry("main", 8500, known_good=V1, deployment=trial(V2, phase, finished=finished, mode="overlap"))
    )
    routes = {8500: 18502} if known.slots["main"].deployment.holds_route else SERVING_1
    seen = observed(contain(V1), contain(V2), routes=routes)
    assert sentence(desired(main=V2), seen, known)[0] == first


def test_memory_for_two_means_overlap_and_else_the_old_one_gives_way():
    known = entry(SlotEntry("main", 8500, known_good=V1, deployment=trial(V2, "staging", finished="Stage")))
    wanted = desired(main=V2)
    seen = observed(contain(V1), contain(V2, "created"), routes=SERVING_1, memory=164)
    assert plan(wanted, seen, known, START)[0].mode == "overlap"
    steps = plan(wanted, replace(seen, memory_available_mb=163), known, START)
    assert [step.kind for step in steps[:2]] == ["Retire", "Start"]
    assert (steps[0].image, steps[1].mode) == (V1, "replace")


def test_a_known_good_that_gave_way_is_not_brought_back_while_its_successor_is_on_trial():
    for phase in ("starting", "probing", "switching", "soaking", "committing"):
        known = entry(SlotEntry("main", 8500, known_good=V1, deployment=trial(V2, phase, mode="replace")))
        steps = sentence(desired(main=V2), observed(contain(V1, "exited"), contain(V2)), known)
        assert "EnsureServing" not in steps


def test_a_rollback_first_brings_the_known_good_back_to_its_port():
    known = entry(
        SlotEntry("main", 8500, known_good=V1, deployment=trial(V2, "rolling_back", mode="replace", verdict="reject"))
    )  # fmt: skip
    wanted = desired(main=V2)
    assert sentence(wanted, observed(contain(V1, "exited"), contain(V2)), known) == ["EnsureServing", "Rollback"]
    seen = observed(contain(V1), contain(V2), routes={8500: 18502})
    assert sentence(wanted, seen, known) == ["EnsureRoute", "Rollback"]
    seen = observed(contain(V1), contain(V2), routes=SERVING_1)
    assert sentence(wanted, seen, known) == ["Rollback"]


def test_a_candidate_that_answers_callers_keeps_the_port():
    known = entry(SlotEntry("main", 8500, known_good=V1, deployment=trial(V2, "soaking")))
    seen = observed(contain(V1), contain(V2), routes=SERVING_1)
    assert plan(desired(main=V2), seen, known, START)[0].port == 18502


def test_a_deployment_waits_for_its_time_but_service_does_not():
    waiting = trial(V2, "fetching", retry_at=START + timedelta(seconds=60))
    known = entry(SlotEntry("main", 8500, known_good=V1, deployment=waiting))
    wanted, seen = desired(main=V2), observed(contain(V1), routes=SERVING_1)
    assert sentence(wanted, seen, known) == []
    assert sentence(wanted, observed(contain(V1, "exited")), known) == ["EnsureServing"]
    assert sentence(wanted, seen, known, START + timedelta(seconds=60))[0] == "Fetch"


def test_a_wait_made_by_a_clock_of_the_future_is_over():
    waiting = trial(V2, "fetching", retry_at=START + timedelta(days=3650))
    known = entry(SlotEntry("main", 8500, known_good=V1, deployment=waiting))
    assert sentence(desired(main=V2), observed(contain(V1), routes=SERVING_1), known)[0] == "Fetch"


def test_after_a_commit_the_old_one_is_retired_and_what_is_older_goes():
    slot = SlotEntry("main", 8500, known_good=V3, previous=V2, litter=(V1,))
    seen = observed(contain(V1, "exited"), contain(V2), contain(V3), routes={8500: 18503})
    down, prune = plan(desired(main=V3), seen, entry(slot), START)
    assert (down.kind, down.image) == ("StandDown", V2)
    assert (prune.kind, prune.images) == ("Prune", (V1,))
    assert prune.containers == (container_name(DEVICE, "main", V1),)


def test_known_good_and_previous_are_never_pruned_and_strays_are():
    slot = SlotEntry("main", 8500, known_good=V2, previous=V1, litter=(V1, V2, V3))
    seen = observed(contain(V1, "exited"), contain(V2), contain(V3), routes={8500: 18502})
    (step,) = plan(desired(main=V2), seen, entry(slot), START)
    assert (step.kind, step.images) == ("Prune", (V3,))
    assert step.containers == (container_name(DEVICE, "main", V3),)


def test_an_image_that_another_slot_needs_stays():
    slots = {
        "main": SlotEntry("main", 8500, known_good=V2, litter=(V1,)),
        "other": SlotEntry("other", 8501, known_good=V1),
    }
    known = Entry(device=DEVICE, slots=slots)
    seen = observed(
        contain(V2), contain(V1, slot="other", port=18511), routes={8500: 18502, 8501: 18511}
    )  # fmt: skip
    assert sentence(desired(main=V2, other=V1), seen, known) == []


def test_a_release_kept_for_rollback_does_not_run():
    known = entry(SlotEntry("main", 8500, known_good=V2, previous=V1))
    seen = observed(contain(V1), contain(V2), routes={8500: 18502})
    assert sentence(desired(main=V2), seen, known) == ["StandDown"]


def test_a_slot_that_is_not_wanted_is_emptied_and_then_left_alone():
    known = entry(SlotEntry("main", 8500, known_good=V1))
    (step,) = plan(desired(), observed(contain(V1), routes=SERVING_1), known, START)
    assert (step.kind, step.slot_port) == ("Remove", 8500)
    assert sentence(desired(), observed(), entry(SlotEntry("main", 8500))) == []


def test_service_in_every_slot_comes_before_any_deployment():
    slots = {
        "a": SlotEntry("a", 8500, deployment=trial(V2, "admitted")),
        "b": SlotEntry("b", 8501, known_good=V1),
    }
    steps = plan(desired(a=V2, b=V1), observed(), Entry(device=DEVICE, slots=slots), START)
    assert [(step.slot, step.kind) for step in steps[:2]] == [("b", "EnsureServing"), ("a", "Fetch")]


def test_containers_of_slots_nobody_knows_are_swept():
    assert sentence(desired(), observed(contain(V1, slot="ghost")), entry()) == ["Prune"]


def wants(known, wanted, now=START):
    return [image.image.version for wishes in to_admit(wanted, known, now, Limits()) for _, image in wishes]


def test_admission_is_asked_once_for_a_new_wish():
    empty = SlotEntry("main", 8500)
    assert wants(entry(empty), desired(main=V1)) == ["1"]
    assert wants(entry(empty), None) == []
    assert wants(entry(replace(empty, known_good=V1)), desired(main=V1)) == []
    assert wants(entry(replace(empty, deployment=trial(V1, "probing"))), desired(main=V1)) == []
    later = replace(empty, deployment=trial(V1, "refused", retry_at=START + timedelta(seconds=9)))
    assert wants(entry(later), desired(main=V1)) == []
    assert wants(entry(later), desired(main=V1), START + timedelta(seconds=9)) == ["1"]
    failed = replace(empty, deployment=trial(V1, "rejected"))
    rejected = {V1.digest: Rejection(V1.digest, "main", PROBLEM, START)}
    assert wants(entry(failed, rejected=rejected), desired(main=V1)) == []
    assert wants(entry(failed), desired(main=V1)) == ["1"]
    assert wants(entry(failed, rejected=rejected), desired(main=V2)) == ["2"]


def gives_way(known, wanted):
    return [by for _, by in to_supersede(wanted, known)]


def test_a_newer_wish_makes_a_deployment_give_way_unless_nothing_else_would_serve():
    slot = SlotEntry("main", 8500, known_good=V1, deployment=trial(V2, "probing"))
    assert gives_way(entry(slot), desired(main=V3)) == ["release vision 3"]
    assert gives_way(entry(slot), desired()) == ["an empty slot"]
    assert gives_way(entry(slot), desired(main=V2)) == []
    assert gives_way(entry(replace(slot, deployment=trial(V2, "committing"))), desired(main=V3)) == []
    assert gives_way(entry(replace(slot, deployment=trial(V2, "soaking"))), desired(main=V3)) == ["release vision 3"]
    first = replace(slot, known_good=None, deployment=trial(V2, "soaking"))
    assert gives_way(entry(first), desired(main=V3)) == []
    withdrawn = entry(slot, marks=Marks(revoked=frozenset({V2.digest})))
    assert gives_way(withdrawn, desired(main=V2)) == ["the owner, who withdrew it"]
    below = entry(slot, marks=Marks(min_counters={"vision/generic-amd64": 3}))
    assert gives_way(below, desired(main=V2)) == ["the owner, who withdrew it"]


def test_a_withdrawn_deployment_gives_way_even_when_nothing_is_known_of_what_is_wanted():
    slot = SlotEntry("main", 8500, known_good=V1, deployment=trial(V2, "probing"))
    assert gives_way(entry(slot), None) == []
    assert gives_way(entry(slot, marks=Marks(revoked=frozenset({V2.digest}))), None) == ["the owner, who withdrew it"]


def test_what_was_withdrawn_ends_before_a_deployment_goes_on():
    waiting = trial(V2, "fetching", retry_at=START + timedelta(seconds=60))
    slot = SlotEntry("main", 8500, deployment=waiting, litter=(V1,))
    seen = observed(contain(V1), routes=SERVING_1)
    (step,) = plan(desired(main=V2), seen, entry(slot, marks=Marks(revoked=frozenset({V1.digest}))), START)
    assert (step.kind, step.containers) == ("Withdraw", (container_name(DEVICE, "main", V1),))
    assert sentence(desired(main=V2), seen, entry(slot)) == []


def test_stable_ports_are_given_once_and_for_ever():
    known = entry(SlotEntry("main", 8500))
    assert assign_ports(known, {"zoo": V1, "cam": V2}, {}, 8500) == {"main": 8500, "cam": 8501, "zoo": 8502}
    assert assign_ports(known, {"zoo": V1, "cam": V2}, {"zoo": 8501, "main": 9000}, 8500) == {
        "main": 8500, "cam": 8502, "zoo": 8501,
    }  # fmt: skip


def test_telemetry_reads_the_release_before_until_it_has_stood_down():
    known = entry(SlotEntry("main", 8500, known_good=V2, previous=V1))
    draining = observed(contain(V1), contain(V2), routes={8500: 18502})
    assert [slot.release.version for slot in active_slots(known, draining)] == ["1", "2"]
    stopped = observed(contain(V1, "exited"), contain(V2), routes={8500: 18502})
    assert [slot.release.version for slot in active_slots(known, stopped)] == ["2"]


def test_telemetry_leaves_a_candidate_alone_until_callers_reach_it():
    probing = entry(SlotEntry("main", 8500, known_good=V1, deployment=trial(V2, "probing")))
    seen = observed(contain(V1), contain(V2), routes=SERVING_1)
    assert [slot.release.version for slot in active_slots(probing, seen)] == ["1"]
    soaking = entry(SlotEntry("main", 8500, known_good=V1, deployment=trial(V2, "soaking")))
    assert [slot.release.version for slot in active_slots(soaking, seen)] == ["1", "2"]


def test_the_release_before_stands_down_even_when_the_next_one_is_already_wanted():
    known = entry(SlotEntry("main", 8500, known_good=V2, previous=V1, deployment=trial(V3, "fetching")))
    seen = observed(contain(V1), contain(V2), routes={8500: 18502})
    assert sentence(desired(main=V3), seen, known)[:2] == ["StandDown", "Fetch"]
    probing = entry(SlotEntry("main", 8500, known_good=V2, previous=V1, deployment=trial(V3, "probing")))
    assert "StandDown" not in sentence(desired(main=V3), seen, probing)


def test_a_release_that_callers_still_reach_never_stands_down():
    known = entry(SlotEntry("main", 8500, known_good=V2, previous=V1))
    seen = observed(contain(V1), contain(V2), routes=SERVING_1)
    assert sentence(desired(main=V2), seen, known) == ["EnsureRoute"]


def test_a_fallback_goes_on_serving_while_its_successor_is_fetched():
    known = entry(SlotEntry("main", 8500, known_good=V2, previous=V1, deployment=trial(V3, "fetching")))
    seen = observed(contain(V1), contain(V2), routes=SERVING_1)
    steps = [step.kind for step in plan(desired(main=V3), seen, known, START, broken=frozenset({"main"}))]
    assert "EnsureRoute" not in steps
    assert "StandDown" not in steps


LOCK = UpdateLock(holder="inspection", reason="the belt runs", expires=START + timedelta(hours=1))


class TestUpdateLock:
    """An application holds off swaps of what serves it, and nothing else."""

    def held(self, *containers, routes=SERVING_1):
        return replace(observed(*containers, routes=routes), lock=LOCK)

    def test_a_new_release_is_fetched_ahead_and_waits(self):
        known = entry(SlotEntry("main", 8500, known_good=V1, deployment=trial(V2, "admitted")))
        assert sentence(desired(main=V2), self.held(contain(V1)), known) == ["Fetch"]
        fetched = trial(V2, "fetching", finished="Fetch")
        known = entry(SlotEntry("main", 8500, known_good=V1, deployment=fetched))
        assert sentence(desired(main=V2), self.held(contain(V1)), known) == []

    @pytest.mark.parametrize("phase", ["staging", "starting", "probing"])
    def test_a_candidate_that_stands_beside_what_serves_waits(self, phase):
        known = entry(SlotEntry("main", 8500, known_good=V1, deployment=trial(V2, phase, mode="overlap")))
        assert sentence(desired(main=V2), self.held(contain(V1), contain(V2)), known) == []

    @pytest.mark.parametrize(
        ("phase", "rest"), [("switching", ["Switch", "Soak", "Commit"]), ("soaking", ["Soak", "Commit"])]
    )
    def test_a_swap_that_has_begun_ends(self, phase, rest):
        known = entry(SlotEntry("main", 8500, known_good=V1, deployment=trial(V2, phase, mode="overlap")))
        routes = {8500: 18502 if phase == "soaking" else 18501}
        assert sentence(desired(main=V2), self.held(contain(V1), contain(V2), routes=routes), known) == rest

    def test_a_slot_that_serves_nothing_is_not_held_off(self):
        known = entry(SlotEntry("main", 8500, deployment=trial(V2, "fetching", finished="Fetch")))
        assert sentence(desired(main=V2), self.held(), known)[0] == "Stage"
        replaced = trial(V2, "starting", mode="replace")
        known = entry(SlotEntry("main", 8500, known_good=V1, deployment=replaced))
        steps = sentence(desired(main=V2), self.held(contain(V1, "exited"), contain(V2, "created")), known)
        assert steps[0] == "Start"

    def test_a_rollback_and_the_care_for_the_known_good_are_never_held_off(self):
        back = trial(V2, "rolling_back", verdict="reject", mode="overlap")
        known = entry(SlotEntry("main", 8500, known_good=V1, deployment=back))
        assert sentence(desired(main=V2), self.held(contain(V1), contain(V2)), known) == ["Rollback"]
        known = entry(SlotEntry("main", 8500, known_good=V1))
        assert sentence(desired(main=V1), self.held(contain(V1, "exited")), known) == ["EnsureServing"]
        assert sentence(desired(main=V1), self.held(contain(V1), routes={}), known) == ["EnsureRoute"]

    def test_a_slot_that_is_to_be_emptied_serves_on_until_the_lock_ends(self):
        known = entry(SlotEntry("main", 8500, known_good=V1))
        assert sentence(desired(), self.held(contain(V1)), known) == []
        assert sentence(desired(), observed(contain(V1), routes=SERVING_1), known) == ["Remove"]
