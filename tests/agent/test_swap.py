"""The whole agent on a pretended device: what operators would see."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from agent_fakes import FakeProber

from wherry.errors import RolledBack
from wherry.messages import Retry
from wherry.release import HttpGate
from wherry_agent.events import AssignmentReceived, AssignmentRefused, CommandReceived


def test_a_first_release_is_fetched_tried_and_served(device):
    device.assign(1, main="1")
    assert device.serves() == "1"
    slot = device.state.slots[0]
    assert (slot.port, slot.serving.version, slot.known_good.version) == (8500, "1", "1")
    assert device.phases() == [
        "admitted", "fetching", "staging", "starting", "probing", "switching", "soaking", "committing",
        "committed",
    ]  # fmt: skip
    assert [gate.kind for gate in slot.deployment.gates] == ["ready", "signature", "golden", "soak"]


def test_a_swap_overlaps_and_keeps_the_old_release_for_rollback(device):
    device.assign(1, main="1")
    device.assign(2, main="2")
    assert device.serves() == "2"
    assert device.world.violations == []
    old = device.world.containers[device.name(device.catalogue["1"])]
    assert (old.state, old.restart) == ("exited", "no")
    assert device.state.slots[0].deployment.mode == "overlap"
    device.assign(3, main="3")
    assert device.name(device.catalogue["1"]) not in device.world.containers
    assert device.catalogue["1"].digest not in device.world.images
    assert device.catalogue["2"].digest in device.world.images


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ("wrong", "golden gate: 1 of 1 golden cases answered wrongly"),
        ("never_ready", "ready gate: not ready after"),
        ("crash", "exited with code 1: these are my last words"),
        ("other_signature", "input 'x' is FP32[-1, 3], released as FP32[-1, 2]"),
        ("forged", "is not the one that the owner signed"),
        ("refuses", "status 500: oops"),
    ],
)
def test_a_bad_release_is_rejected_with_its_reason_and_the_old_one_never_stops(device, behaviour, words):
    device.assign(1, main="1")
    bad = device.release("4", behaviour)
    device.assign(2, main="4")
    device.tick(times=30)
    slot = device.state.slots[0]
    assert slot.deployment.phase == "rejected"
    assert words in slot.deployment.problem.reason
    assert slot.serving.version == slot.known_good.version == "1"
    assert device.state.rejected == [bad.digest]
    assert device.world.violations == []
    assert device.name(bad) not in device.world.containers
    assert bad.digest not in device.world.images
    assert device.phases()[-2:] == ["rolling_back", "rejected"]


def test_a_rejected_digest_is_tried_again_only_when_the_operator_says_so(device):
    device.assign(1, main="1")
    bad = device.release("4", "wrong")
    device.assign(2, main="4")
    attempts = len(device.server.records)
    device.assign(3, main="4")
    device.tick(600, times=5)
    assert len(device.server.records) == attempts
    assert device.state.slots[0].deployment.sequence == 3
    device.put(CommandReceived(Retry(slot="main", digest=bad.digest)))
    assert len(device.server.records) > attempts
    assert device.state.slots[0].deployment.phase == "rejected"


def test_without_memory_for_two_the_old_one_gives_way_and_comes_back_on_failure(device):
    device.assign(1, main="1")
    device.world.available_mb, device.world.hold_allowed = 50, True
    device.assign(2, main="2")
    assert device.serves() == "2"
    assert device.state.slots[0].deployment.mode == "replace"
    device.release("4", "wrong")
    device.assign(3, main="4")
    assert device.serves() == "2"
    assert device.state.slots[0].deployment.phase == "rejected"
    assert device.state.slots[0].deployment.mode == "replace"


def test_a_dead_registry_is_tried_for_ever_with_growing_waits(device):
    device.assign(1, main="1")
    device.world.registry = "down"
    device.assign(2, main="2")
    device.tick(5, times=200)
    deployment = device.state.slots[0].deployment
    assert deployment.phase == "fetching"
    assert "connection refused" in deployment.problem.reason
    assert device.state.problem.code == "adapter.registry"
    assert device.journal.entry.slots["main"].deployment.attempts < 12
    device.world.registry = "good"
    device.tick(700)
    assert device.serves() == "2"
    assert device.state.problem is None


def test_bytes_that_were_not_signed_are_refused_and_tried_again_later(device):
    device.assign(1, main="1")
    device.world.registry = "tampered"
    device.assign(2, main="2")
    device.tick(5, times=10)
    deployment = device.state.slots[0].deployment
    assert (deployment.phase, deployment.problem.code) == ("refused", "trust.tampered")
    assert device.serves() == "1"
    device.world.registry = "good"
    device.tick(700)
    assert device.serves() == "2"


def test_a_refused_assignment_is_named_in_the_report_until_another_is_accepted(device):
    device.assign(1, main="1")
    refusal = RolledBack("release vision 1", "is older")
    device.put(AssignmentRefused(b"{}", refusal, sequence=2))
    assert (device.state.refused, device.state.problem.code) == (2, "trust.rolled_back")
    device.assign(3, main="2")
    assert (device.state.refused, device.state.problem) == (0, None)


def test_a_full_disk_refuses_with_numbers_and_goes_on_when_there_is_room(device):
    device.world.disk_free = 1_000_000
    device.assign(1, main="1")
    deployment = device.state.slots[0].deployment
    assert deployment.phase == "refused"
    assert "needs 3.0 MB of disk (1.0 MB download, 2.0 MB unpacked)" in deployment.problem.reason
    device.world.disk_free = 10**9
    device.tick(700)
    assert device.serves() == "1"
    assert device.phases()[:2] == ["refused", "admitted"]


def test_a_newer_wish_cancels_the_running_step_and_wins(device):
    device.assign(1, main="1")
    device.worker.held = True
    device.assign(2, main="2")
    assert device.worker.step.kind == "Fetch"
    device.assign(3, main="3")
    assert device.worker.cancel_asked
    device.worker.held = False
    device.worker.finish()
    device.pump()
    assert device.serves() == "3"
    gone = [r.deployment for r in device.server.records if r.deployment.phase == "removed"]
    assert "gave way to release vision 3" in gone[0].problem.reason
    assert device.state.rejected == []


def test_a_dead_known_good_comes_back_while_a_download_runs(device):
    device.assign(1, main="1")
    device.worker.held = True
    device.assign(2, main="2")
    name = device.name(device.catalogue["1"])
    device.world.containers[name] = replace(device.world.containers[name], state="exited")
    device.tick()
    assert device.worker.cancel_asked
    device.worker.held = False
    device.worker.finish()
    device.pump()
    order = [what for what in device.world.history if "running" in what or "fetch" in what]
    assert name in order[-3]
    assert device.serves() == "2"


def test_a_slot_that_is_no_longer_named_is_emptied(device):
    device.assign(1, main="1", second="2")
    assert device.serves("second") == "2"
    assert device.journal.entry.slots["second"].port == 8501
    device.world.hold_allowed = True
    device.assign(2, main="1")
    assert device.serves("main") == "1"
    assert device.world.routes.keys() == {8500}
    assert not [c for c in device.world.containers.values() if c.slot == "second"]
    assert device.catalogue["2"].digest not in device.world.images
    device.assign(3, main="1", second="3")
    assert device.journal.entry.slots["second"].port == 8501


def test_a_power_cut_brings_the_known_good_back_before_anything_else(device):
    device.assign(1, main="1")
    device.worker.held = True
    device.assign(2, main="2")
    port = device.world.containers[device.name(device.catalogue["1"])].port
    device.world.power_cut()
    history = len(device.world.history)
    device.boot()
    assert device.world.history[history] == f"routes {{8500: {port}}}"
    assert device.serves() == "2"  # it went on with the deployment afterwards


def test_offline_at_boot_it_serves_what_it_served(device):
    device.assign(1, main="1")
    device.world.power_cut()
    name = device.name(device.catalogue["1"])
    device.world.containers[name] = replace(device.world.containers[name], state="exited")
    device.world.registry = "down"
    device.boot()
    assert device.serves() == "1"


def damage_journal(device):
    (device.folder / "journal.db").write_bytes(b"\0" * 8192)
    for suffix in ("-wal", "-shm"):
        (device.folder / f"journal.db{suffix}").unlink(missing_ok=True)


@pytest.mark.parametrize(("version", "serves"), [("1", "2"), ("2", "1")])
def test_a_rebuilt_journal_does_not_take_over_what_stored_metadata_says_is_withdrawn(device, version, serves):
    device.assign(1, main="1")
    device.assign(2, main="2")
    damage_journal(device)
    device.world.hold_allowed = version == "2"
    device.stored_withdrawn = frozenset({device.catalogue[version].digest})
    device.boot()
    assert device.name(device.catalogue[version]) not in device.world.containers
    assert device.serves() == serves
    assert device.journal.entry.slots["main"].previous is None
    assert device.world.violations == []


def test_a_rebuilt_slot_whose_only_release_is_withdrawn_is_empty_and_takes_the_next(device):
    device.assign(1, main="1")
    damage_journal(device)
    device.world.hold_allowed = True
    device.stored_withdrawn = frozenset({device.catalogue["1"].digest})
    device.boot()
    assert (device.world.containers, device.world.routes) == ({}, {})
    device.assign(2, main="2")
    assert (device.serves(), device.journal.entry.slots["main"].port) == ("2", 8500)


def test_a_journal_lost_together_with_the_metadata_costs_no_service(device):
    device.assign(1, main="1")
    damage_journal(device)
    device.stored_withdrawn = None
    device.boot()
    assert device.serves() == "1"
    assert device.world.violations == []


def test_a_lost_journal_is_rebuilt_from_labels_without_losing_service(device):
    device.assign(1, main="1")
    device.assign(2, main="2")
    damage_journal(device)
    history = len(device.world.history)
    device.boot()
    entry = device.journal.entry.slots["main"]
    assert (entry.known_good.image.version, entry.previous.image.version) == ("2", "1")
    assert device.world.history[history:] == []
    assert "rebuilt from running containers" in device.state.problem.reason
    device.assign(3, main="3")
    assert device.serves() == "3"
    assert device.world.violations == []


def test_an_engine_that_is_down_is_reported_and_waited_for(device):
    device.assign(1, main="1")
    device.world.engine_down = True
    device.assign(2, main="2")
    device.tick(times=3)
    assert device.state.problem.code == "adapter.engine"
    device.world.engine_down = False
    device.tick()
    assert device.serves() == "2"
    assert device.state.problem is None


def test_a_foreign_container_with_our_name_is_never_touched(device):
    image = device.catalogue["1"]
    name = device.name(image)
    device.world.foreign.add(name)
    device.assign(1, main="1")
    device.tick(times=5)
    assert device.world.containers == {}
    assert device.state.slots[0].deployment.phase in ("admitted", "rolling_back", "staging")
    assert "was not made by this agent" in device.state.problem.reason


def test_a_route_someone_removed_is_put_back(device):
    device.assign(1, main="1")
    device.world.routes.clear()
    device.tick(31)
    assert device.serves() == "1"


def test_a_known_good_that_runs_but_does_not_answer_is_started_anew(device):
    device.assign(1, main="1")
    name = device.name(device.catalogue["1"])
    device.world.behaviours[name] = "hung"
    device.tick(times=8)
    assert f"{{'state': 'exited', 'exit_code': 0}} {name}" in device.world.history
    assert device.state.slots[0].healthy is False
    device.world.behaviours[name] = "good"
    device.tick(times=2)
    assert device.state.slots[0].healthy


@pytest.mark.parametrize("gates", [[], [HttpGate(path="/up", deadline_seconds=1)]], ids=["no gates", "http gate"])
def test_an_image_that_speaks_no_model_protocol_is_tried_and_stays_healthy(device, gates):
    device.release("5", "custom", runtime="custom", gates=gates)
    device.assign(1, main="5")
    device.tick(times=20)
    slot = device.state.slots[0]
    assert (slot.deployment.phase, slot.healthy) == ("committed", True)
    assert slot.deployment.gates[0].kind == ("http" if gates else "alive")
    assert not [what for what in device.world.history if "exited" in what]


def test_an_image_that_ends_at_once_is_rejected_even_without_gates(device):
    device.release("5", "crash", runtime="custom", gates=[])
    device.assign(1, main="5")
    assert device.state.slots[0].deployment.phase == "rejected"


def test_a_replayed_assignment_changes_nothing_and_is_reported(device):
    device.assign(2, main="2")
    device.assign(1, main="1")
    assert device.serves() == "2"
    assert device.state.problem.code == "trust.replayed"
    device.put(AssignmentReceived(json.dumps({"sequence": 2, "slots": {"main": "2"}}).encode(), "https"))
    assert device.state.problem is None


def test_a_withdrawn_release_does_not_run_and_is_no_rollback_target(device):
    device.assign(1, main="1")
    device.world.hold_allowed = True
    device.release("4", revoked=[device.catalogue["1"].digest])
    device.assign(2, main="4")
    assert device.serves() == "4"
    assert device.name(device.catalogue["1"]) not in device.world.containers
    assert device.journal.entry.slots["main"].previous is None


def test_a_release_that_reboots_the_device_every_time_is_given_up(device):
    device.assign(1, main="1")
    device.hold_at = "Probe"
    device.assign(2, main="2")
    reboots = 0
    while device.worker.step is not None:
        assert reboots < 5
        device.world.power_cut()
        device.boot()
        reboots += 1
    assert reboots == 3
    deployment = device.state.slots[0].deployment
    assert deployment.phase == "rejected"
    assert deployment.problem.reason == "the device rebooted 3 times during it"
    assert device.serves() == "1"


def test_reports_are_numbered_upwards_over_restarts(device):
    device.assign(1, main="1")
    before = device.state.number
    device.boot()
    assert device.state.number > before
    assert device.state.stream == device.statuses[-1].stream


def test_an_unchanged_state_is_not_reported_again_and_again(device):
    device.assign(1, main="1")
    device.tick(5)
    count = len(device.server.reports)
    device.tick(5, times=10)
    assert len(device.server.reports) == count
    device.tick(301)
    assert len(device.server.reports) == count + 1


def test_a_known_good_that_cannot_be_revived_gives_way_to_the_release_before(device):
    device.assign(1, main="1")
    device.assign(2, main="2")
    good = device.name(device.catalogue["2"])
    del device.world.containers[good]
    del device.world.images[device.catalogue["2"].digest]
    device.world.registry, device.world.hold_allowed = "down", True
    device.tick(31, times=10)
    assert device.serves() == "1"
    slot = device.state.slots[0]
    assert (slot.serving.version, slot.known_good.version) == ("1", "2")
    assert device.state.problem.code == "adapter.registry"
    device.world.registry = "good"
    device.tick(700, times=3)
    assert device.serves() == "2"
    assert device.world.containers[device.name(device.catalogue["1"])].state == "exited"
    assert device.state.problem is None


def test_a_known_good_that_never_answers_again_gives_way_to_the_release_before(device):
    device.assign(1, main="1")
    device.assign(2, main="2")
    device.world.behaviours[device.name(device.catalogue["2"])] = "hung"
    device.world.hold_allowed = True
    device.tick(31, times=20)
    assert device.serves() == "1"
    device.world.behaviours[device.name(device.catalogue["2"])] = "good"
    device.tick(31, times=3)
    assert device.serves() == "2"


def test_a_withdrawn_release_in_one_slot_does_not_keep_another_from_its_update(device):
    device.assign(1, main="1", other="1")
    device.release("4", revoked=[device.catalogue["2"].digest])
    device.assign(2, main="2", other="4")
    refused, updated = device.state.slots
    assert (refused.slot, refused.deployment.phase, refused.deployment.problem.code) == (
        "main", "refused", "trust.revoked",
    )  # fmt: skip
    assert (updated.slot, updated.serving.version) == ("other", "4")
    assert (device.serves("main"), device.serves("other")) == ("1", "4")
    device.tick(700, times=3)
    assert device.serves("main") == "1"
    assert not [what for what in device.world.history if what == "fetch 2"], "it is not even fetched"
    assert device.world.violations == []


def test_an_agent_that_starts_again_leaves_callers_with_the_release_that_answers_them(device):
    device.assign(1, main="1")
    device.assign(2, main="2")
    broken = device.name(device.catalogue["2"])
    device.world.behaviours[broken] = "hung"
    device.world.hold_allowed = True
    device.tick(31, times=20)
    assert device.serves() == "1"
    device.world.hold_allowed = False
    device.boot()
    device.tick(5, times=3)
    assert device.serves() == "1"
    assert device.world.violations == [], "not for a moment are they turned to one that does not answer"
    device.world.behaviours[broken] = "good"
    device.tick(31, times=3)
    assert device.serves() == "2"
    assert device.world.violations == []


def test_a_release_withdrawn_while_it_serves_is_taken_away(device):
    device.assign(1, main="1")
    device.world.hold_allowed = True
    device.trust.withdrawn = frozenset({device.catalogue["1"].digest})
    device.put(AssignmentReceived(json.dumps({"sequence": 1, "slots": {"main": "1"}}).encode(), "https"))
    assert device.world.containers == {}
    assert device.world.routes == {}
    assert device.state.slots[0].deployment.problem.code == "trust.revoked"


def withdraw(device, version, sequence):
    """The owner withdraws a release, which the next poll tells."""
    device.trust.withdrawn = frozenset({device.catalogue[version].digest})
    body = {"sequence": sequence, "slots": {"main": "2"}}
    device.put(AssignmentReceived(json.dumps(body).encode(), "https"))


def test_a_release_withdrawn_while_it_is_committed_does_not_become_known_good(device):
    device.assign(1, main="1")
    device.hold_at = "Commit"
    device.assign(2, main="2")
    withdraw(device, "2", 2)
    device.hold_at = None
    device.worker.finish()
    device.pump()
    assert device.journal.entry.slots["main"].known_good.image.version == "1"
    assert device.serves() == "1"
    assert device.name(device.catalogue["2"]) not in device.world.containers
    assert device.state.slots[0].deployment.problem.code == "trust.revoked"
    assert device.world.violations == []


def test_a_withdrawn_known_good_is_taken_away_while_its_successor_waits_for_the_registry(device):
    device.assign(1, main="1")
    device.world.hold_allowed = True
    device.world.registry = "down"
    device.assign(2, main="2")
    withdraw(device, "1", 2)
    assert device.world.containers == {}
    assert device.world.routes == {}


def test_a_withdrawn_known_good_is_not_kept_by_a_download_that_takes_for_ever(device):
    device.assign(1, main="1")
    device.world.hold_allowed = True
    device.hold_at = "Fetch"
    device.assign(2, main="2")
    withdraw(device, "1", 2)
    assert device.worker.cancel_asked
    device.worker.finish()
    device.pump()
    assert device.world.containers == {}
    assert device.world.routes == {}


def test_polling_an_unchanged_assignment_writes_nothing(device):
    device.assign(1, main="1")
    device.tick()
    writes = device.journal._database.total_changes
    for _ in range(5):
        device.put(AssignmentReceived(json.dumps({"sequence": 1, "slots": {"main": "1"}}).encode(), "https"))
        device.tick()
    assert device.journal._database.total_changes == writes


def test_flash_writes_of_one_deployment_are_bounded(device):
    before = device.journal._database.total_changes
    device.assign(1, main="1")
    assert device.journal._database.total_changes - before < 25


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_routes_that_cannot_be_read_back_after_the_switch_cost_no_caller_anything(device, failing):
    device.assign(1, main="1")
    device.world.unread_next = failing
    device.assign(2, main="2")
    assert device.world.violations == []
    device.tick(30, times=3)
    assert device.serves() == "2"
    assert device.world.violations == []
    assert device.state.problem is None


def share(device, version):
    return device.world.containers[device.name(device.catalogue[version])].share


def test_a_candidate_loads_with_a_small_share_of_the_processor_and_is_asked_and_serves_with_a_full_one(device):
    asked = []
    infer = FakeProber.infer
    device.assign(1, main="1")
    device.hold_at = "Probe"
    device.assign(2, main="2")
    assert (share(device, "1"), share(device, "2")) == ("full", "small")
    device.hold_at = device.worker.hold_at = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            FakeProber, "infer", lambda self, *what: (asked.append(share(device, "2")), infer(self, *what))[1]
        )
        device.worker.finish()
        device.pump()
    assert set(asked) == {"full"}, "what is timed beside another has as much as the other"
    assert (device.serves(), share(device, "2")) == ("2", "full")


def test_a_candidate_that_takes_long_gets_a_full_share_before_its_time_is_up(device):
    device.assign(1, main="1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeProber, "ready", lambda self, *what: share(device, "2") == "full")
        device.assign(2, main="2")
    assert device.serves() == "2"


def test_where_callers_wait_for_it_a_candidate_loads_with_all_it_can_get(device):
    device.assign(1, main="1")
    device.world.available_mb, device.world.hold_allowed = 10, True
    device.hold_at = "Probe"
    device.assign(2, main="2")
    assert share(device, "2") == "full"


def test_what_comes_to_serve_by_other_ways_has_a_full_share_too(device):
    device.assign(1, main="1")
    device.assign(2, main="2")
    for version in ("1", "2"):
        name = device.name(device.catalogue[version])
        device.world.containers[name] = replace(device.world.containers[name], share="small")
    device.world.hold_allowed = True
    device.world.routes.clear()
    device.tick(60)
    assert (device.serves(), share(device, "2")) == ("2", "full")
    device.world.behaviours[device.name(device.catalogue["2"])] = "wrong"
    device.tick(5, times=20)
    assert (device.serves(), share(device, "1")) == ("1", "full")
