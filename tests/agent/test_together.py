"""Slots that go together: all of them take their releases or none does, whatever fails, whenever the plug is pulled."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from agent_fakes import DEVICE, START, Device, World, make_image
from hypothesis import given, settings
from hypothesis import strategies as st
from lives import live

from wherry.messages import Retry
from wherry_agent.assignment import Assignment, Marks
from wherry_agent.entry import Deployment, Entry, SlotEntry, container_name
from wherry_agent.events import AssignmentReceived, CommandReceived
from wherry_agent.observed import Container, Observed
from wherry_agent.planner import plan
from wherry_agent.together import left_behind

GROUP = ("cam", "text")
BOTH = [GROUP]
V1, V2 = make_image(1), make_image(2)
CATALOGUE = {
    "1": V1,
    "2": V2,
    "3": make_image(3, "wrong"),
    "4": make_image(4, "crash"),
    "5": make_image(5),
}


@pytest.fixture
def pair(tmp_path: Path) -> Device:
    """A device that serves version 1 in two slots."""
    device = Device(tmp_path, catalogue=dict(CATALOGUE))
    device.assign(1, cam="1", text="1")
    assert served(device) == ["1", "1"]
    return device


def served(device: Device) -> list[str | None]:
    return [device.serves(slot) for slot in GROUP]


def deployment(device: Device, slot: str) -> Deployment:
    found = device.journal.entry.slots[slot].deployment
    assert found is not None
    return found


# -- plans as sentences


def contain(image, slot, state="running"):
    name = container_name(DEVICE, slot, image)
    port = 18500 + 10 * GROUP.index(slot) + image.image.counter
    return Container(name, slot, image.digest, state, port, 8500 + GROUP.index(slot))


def moving(slot, phase, finished=None, **changes):
    trial = Deployment("d-1", V2, 2, phase, START, START, group=GROUP, finished=finished)
    return SlotEntry(slot, 8500 + GROUP.index(slot), known_good=V1, deployment=replace(trial, **changes))


def planned(cam, text, memory=1000, seen=None, now=START):
    known = Entry(device=DEVICE, slots={"cam": cam, "text": text})
    found = [contain(V1, "cam"), contain(V1, "text"), contain(V2, "cam"), contain(V2, "text")] if seen is None else seen
    routes = {8500: 18501, 8501: 18511}
    world = Observed({container.name: container for container in found}, routes, memory)
    wanted = Assignment(DEVICE, 2, START + timedelta(days=7), {"cam": V2, "text": V2}, (frozenset(GROUP),))
    return plan(wanted, world, known, now)


def sentence(steps):
    return [f"{step.kind} {step.slot}" for step in steps]


def test_two_slots_go_side_by_side_and_turn_in_one_step():
    steps = planned(moving("cam", "admitted"), moving("text", "admitted"))
    assert sentence(steps) == [
        "Fetch cam", "Fetch text", "Stage cam", "Stage text", "Start cam", "Start text", "Probe cam", "Probe text",
        "Switch cam", "Soak cam", "Soak text", "Commit cam", "Commit text",
    ]  # fmt: skip
    switch = next(step for step in steps if step.kind == "Switch")
    assert [(turn.slot, turn.slot_port) for turn in (switch, *switch.partners)] == [("cam", 8500), ("text", 8501)]


@pytest.mark.parametrize(
    ("cam", "text", "first"),
    [
        (("fetching", "Fetch"), ("admitted", None), "Fetch text"),
        (("staging", "Stage"), ("fetching", "Fetch"), "Stage text"),
        (("probing", "Probe"), ("starting", "Start"), "Probe text"),
        (("probing", "Probe"), ("probing", "Probe"), "Switch cam"),
        (("switching", "Switch"), ("switching", "Switch"), "Soak cam"),
        (("soaking", "Soak"), ("soaking", None), "Soak text"),
        (("soaking", "Soak"), ("soaking", "Soak"), "Commit cam"),
        (("committing", "Commit"), ("committing", None), "Commit text"),
    ],
)
def test_none_begins_a_part_of_the_way_before_all_have_ended_the_one_before(cam, text, first):
    steps = planned(moving("cam", *cam, mode="overlap"), moving("text", *text, mode="overlap"))
    assert next(name for name in sentence(steps) if not name.startswith("EnsureRoute")) == first


def test_one_that_waits_for_the_network_holds_the_others_back_from_everything_that_costs():
    later = START + timedelta(minutes=5)
    assert sentence(planned(moving("cam", "fetching", "Fetch"), moving("text", "fetching", retry_at=later))) == []
    first = sentence(planned(moving("cam", "admitted"), moving("text", "fetching", retry_at=later)))
    assert first == ["Fetch cam"]


def test_it_is_overlap_for_all_or_replace_for_all():
    cam, text = moving("cam", "staging", "Stage"), moving("text", "staging", "Stage")
    assert {step.mode for step in planned(cam, text, memory=264) if step.kind == "Start"} == {"overlap"}
    steps = planned(cam, text, memory=263)
    assert sentence(steps)[:4] == ["Retire cam", "Start cam", "Retire text", "Start text"]
    assert {step.mode for step in steps if step.kind == "Start"} == {"replace"}


def test_ports_that_turned_together_go_back_together_once_all_is_alive():
    cam = moving("cam", "rolling_back", verdict="reject")
    text = moving("text", "rolling_back", verdict="reject", culprit="cam")
    known = Entry(device=DEVICE, slots={"cam": cam, "text": text})

    def back(*dead):
        found = [contain(V1, "cam"), contain(V1, "text"), contain(V2, "cam"), contain(V2, "text")]
        found = [replace(c, state="exited") if (c.slot, c.digest) in dead else c for c in found]
        routes = {8500: 18502, 8501: 18512}
        return plan(None, Observed({c.name: c for c in found}, routes, 1000), known, START)

    steps = back()
    assert sentence(steps) == ["EnsureRoute cam", "Rollback cam", "Rollback text"]
    assert [(turn.slot_port, turn.port) for turn in (steps[0], *steps[0].partners)] == [(8500, 18501), (8501, 18511)]
    assert sentence(back(("text", V1.digest)))[:2] == ["EnsureServing text", "EnsureRoute cam"]


# -- the whole agent on a pretended device


def test_both_slots_take_their_releases_in_one_attempt(pair):
    pair.world.together = (8500, 8501)
    pair.assign(2, BOTH, cam="2", text="2")
    assert served(pair) == ["2", "2"]
    assert pair.world.violations == []
    for slot in GROUP:
        assert pair.phases(slot) == [
            "admitted", "fetching", "staging", "starting", "probing", "switching", "soaking", "committing",
            "committed",
        ]  # fmt: skip
        assert pair.journal.entry.slots[slot].known_good == V2


@pytest.mark.parametrize("bad", ["3", "4"])
@pytest.mark.parametrize("culprit", GROUP)
def test_one_bad_partner_keeps_both_where_they_are_and_is_the_only_one_rejected(pair, bad, culprit):
    other = next(slot for slot in GROUP if slot != culprit)
    pair.assign(2, BOTH, **{culprit: bad, other: "2"})
    pair.tick(700, times=6)
    assert served(pair) == ["1", "1"]
    assert pair.world.violations == []
    assert set(pair.journal.entry.rejected) == {CATALOGUE[bad].digest}
    assert deployment(pair, culprit).phase == deployment(pair, other).phase == "rejected"
    words = deployment(pair, other).problem.reason
    assert f"went back with slot {culprit}, since they go together" in words
    assert f"release vision {bad}" in words
    running = {c.name for c in pair.world.containers.values() if c.running}
    assert running == {pair.name(V1, slot) for slot in GROUP}


def test_the_blameless_one_may_go_with_another_partner(pair):
    pair.assign(2, BOTH, cam="3", text="2")
    assert served(pair) == ["1", "1"]
    pair.assign(3, BOTH, cam="5", text="2")
    assert served(pair) == ["5", "2"]


def test_the_blameless_one_may_go_alone(pair):
    pair.assign(2, BOTH, cam="3", text="2")
    pair.assign(3, cam="1", text="2")
    assert served(pair) == ["1", "2"]


def test_an_operators_retry_tries_both_again(pair):
    pair.assign(2, BOTH, cam="3", text="2")
    pair.world.behaviours_of["3"] = "good"
    pair.put(CommandReceived(Retry(slot="cam", digest=CATALOGUE["3"].digest)))
    assert served(pair) == ["3", "2"]


def test_what_was_rejected_before_keeps_its_partner_back_and_says_so(pair):
    pair.assign(2, cam="3", text="1")
    assert deployment(pair, "cam").phase == "rejected"
    pair.assign(3, BOTH, cam="3", text="2")
    assert served(pair) == ["1", "1"]
    assert deployment(pair, "text").phase == "refused"
    assert "goes together with slot cam, which is refused" in deployment(pair, "text").problem.reason
    assert deployment(pair, "cam").phase == "rejected"


def test_a_group_that_is_partly_there_moves_the_rest(pair):
    pair.assign(2, cam="2", text="1")
    pair.assign(3, BOTH, cam="2", text="5")
    assert served(pair) == ["2", "5"]
    assert deployment(pair, "text").group == ()


def test_one_without_room_refuses_both(pair):
    pair.world.disk_free = 5_000_000
    pair.assign(2, BOTH, cam="2", text="5")
    assert served(pair) == ["1", "1"]
    found = {slot: deployment(pair, slot) for slot in GROUP}
    assert {one.phase for one in found.values()} == {"refused"}
    assert "vision 2 in slot cam and vision 5 in slot text need 6 MB of disk together" in found["cam"].problem.reason
    assert "goes together with slot cam" in found["text"].problem.reason
    pair.world.disk_free = 10**9
    pair.tick(700)
    assert served(pair) == ["2", "5"]


def test_another_wish_for_one_of_them_takes_both_out_of_the_attempt(pair):
    pair.hold_at = "Probe"
    pair.assign(2, BOTH, cam="2", text="2")
    assert deployment(pair, "cam").phase == "probing"
    pair.hold_at = None
    pair.assign(3, BOTH, cam="5", text="2")
    assert pair.worker.cancel_asked
    pair.worker.finish()
    pair.pump()
    assert served(pair) == ["5", "2"]


def test_the_registry_gone_for_one_leaves_both_where_they_are(pair):
    pair.world.images[V2.digest] = V2
    pair.world.registry = "down"
    pair.assign(2, BOTH, cam="2", text="5")
    pair.tick(5, times=20)
    assert served(pair) == ["1", "1"]
    assert not [c for c in pair.world.containers.values() if c.digest == V2.digest]
    pair.world.registry = "tampered"
    pair.tick(700, times=4)
    assert deployment(pair, "text").phase == "refused"
    assert deployment(pair, "cam").phase == "rejected"
    pair.world.registry = "good"
    pair.tick(700, times=4)
    assert served(pair) == ["2", "5"]


def test_a_committed_release_that_is_withdrawn_takes_its_partner_back(pair):
    pair.assign(2, BOTH, cam="2", text="5")
    assert served(pair) == ["2", "5"]
    pair.world.hold_allowed = True
    pair.trust.withdrawn = frozenset({CATALOGUE["2"].digest})
    pair.put(AssignmentReceived(pair.journal.entry.payload, "https"))
    pair.tick(times=3)
    assert served(pair) == ["1", "1"]
    assert deployment(pair, "text").culprit == "cam"
    assert left_behind(pair.journal.entry) == {}


def test_who_has_nothing_to_go_back_to_stays_and_says_who_no_longer_fits(pair):
    pair.assign(2, BOTH, cam="2", text="5")
    slots = dict(pair.journal.entry.slots)
    slots["text"] = replace(slots["text"], previous=None)
    pair.journal.keep(replace(pair.journal.entry, slots=slots))
    pair.world.hold_allowed = True
    pair.trust.withdrawn = frozenset({CATALOGUE["2"].digest})
    pair.now += timedelta(minutes=1)
    pair.put(AssignmentReceived(pair.journal.entry.payload, "https"))
    pair.tick(times=3)
    assert served(pair) == ["1", "5"]
    left = left_behind(pair.journal.entry)
    words = "serves vision 5, which belongs to that of slot cam, which went back"
    assert {name: error.reason for name, error in left.items()} == {"text": words}


def test_a_release_that_is_withdrawn_takes_its_partner_out_of_the_attempt(pair):
    pair.hold_at = "Soak"
    pair.assign(2, BOTH, cam="2", text="5")
    pair.hold_at = None
    pair.trust.withdrawn = frozenset({CATALOGUE["5"].digest})
    pair.world.hold_allowed = True
    pair.server.assignment = pair.journal.entry.payload
    pair.put(AssignmentReceived(pair.journal.entry.payload, "https"))
    pair.worker.finish()
    pair.pump()
    pair.tick(700, times=3)
    assert served(pair) == ["1", "1"]


def test_a_step_back_in_one_slot_is_refused_there_alone(pair):
    marks = pair.journal.entry.marks
    assert marks.counters == {}
    entry = pair.journal.entry
    pair.journal.keep(replace(entry, marks=Marks(counters={"cam:vision/generic-amd64": 3}, sequence=1)))
    pair.assign(2, cam="2", text="2")
    assert served(pair) == ["1", "2"]
    assert deployment(pair, "cam").problem.code == "trust.rolled_back"
    pair.assign(3, BOTH, cam="2", text="5")
    pair.tick(700)
    assert served(pair) == ["1", "2"]
    assert "slot cam, which is refused: release vision 2 has counter 2, slot cam has had 3" in (
        deployment(pair, "text").problem.reason
    )


# -- killed anywhere


def prepare(folder: Path, memory_mb: int) -> None:
    folder.mkdir()
    world = World(path=folder / "world", available_mb=memory_mb)
    device = Device(folder, world, CATALOGUE)
    device.assign(1, cam="1", text="1")
    assert served(device) == ["1", "1"]
    device.journal.close()
    world.hold_allowed = memory_mb < 100
    world.together = (8500, 8501)
    world.changed("prepared")


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("text", "expected", "memory_mb", "power_cut"),
    [("2", "2", 1000, False), ("3", "1", 1000, False), ("2", "2", 10, True)],
    ids=["both good", "one answers wrongly", "no memory for two, and the power fails"],
)
def test_killed_anywhere_both_slots_end_at_the_old_releases_or_both_at_the_new(
    tmp_path, text, expected, memory_mb, power_cut
):
    points, survived = 0, False
    prepare(tmp_path / "origin", memory_mb)
    while not survived:
        points += 1 + 2 * power_cut  # there, every third point
        folder = tmp_path / str(points)
        shutil.copytree(tmp_path / "origin", folder)
        replace(World.load(folder / "world"), path=folder / "world").changed("copied")
        survived = live(folder, CATALOGUE, lambda device: device.assign(2, BOTH, cam="2", text=text), points)
        if power_cut:
            World.load(folder / "world").power_cut()

        def finish(device: Device) -> None:
            device.assign(2, BOTH, cam="2", text=text)
            device.tick(700, times=4)
            assert served(device) == [expected, expected], device.world.history
            assert device.world.violations == []
            known = {device.journal.entry.slots[slot].known_good.image.version for slot in GROUP}
            assert known == {expected}
            assert set(device.journal.entry.rejected) == ({CATALOGUE[text].digest} if expected != text else set())

        live(folder, CATALOGUE, finish, None)
        shutil.rmtree(folder)
    assert points > 60, "the sweep must have met real kill points"


# -- any order of things


def reboot(device: Device) -> None:
    device.journal.close()
    device.boot()


def lose_power(device: Device) -> None:
    device.world.power_cut()
    reboot(device)


def let_go(device: Device, seconds: float) -> None:
    release(device)
    device.tick(seconds, times=2)


def toggle(name: str, one, other) -> Callable[[Device, int], None]:
    def change(device: Device, _sequence: int) -> None:
        setattr(device.world, name, one if getattr(device.world, name) == other else other)
        device.world.hold_allowed = True  # what serves may now be in trouble; this test asks only for all or nothing

    return change


def retry(device: Device) -> None:
    for digest in list(device.journal.entry.rejected):
        device.put(CommandReceived(Retry(slot="cam", digest=digest)))


HAPPENINGS: dict[str, Callable[[Device, int], None]] = {
    "assign good": lambda device, number: device.assign(number, BOTH, cam="2", text="2"),
    "assign bad": lambda device, number: device.assign(number, BOTH, cam="3", text="3"),
    "tick": lambda device, _: let_go(device, 5),
    "long tick": lambda device, _: let_go(device, 700),
    "restart": lambda device, _: reboot(device),
    "power cut": lambda device, _: lose_power(device),
    "engine": toggle("engine_down", True, False),
    "registry": toggle("registry", "down", "good"),
    "route": toggle("route_broken", True, False),
    "memory": toggle("available_mb", 10, 1000),
    "retry": lambda device, _: retry(device),
}


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from(sorted(HAPPENINGS)), min_size=3, max_size=14),
    st.sampled_from([None, "Fetch", "Stage", "Start", "Probe", "Switch", "Soak", "Commit", "Rollback"]),
)
def test_in_any_order_of_things_the_device_never_ends_mixed(tmp_path_factory, happenings, hold_at):
    world = World(together=(8500, 8501))
    device = Device(tmp_path_factory.mktemp("any"), world, dict(CATALOGUE))
    device.assign(1, cam="1", text="1")
    device.hold_at = hold_at
    for number, happening in enumerate(happenings, start=2):
        HAPPENINGS[happening](device, number)
    world.engine_down, world.registry, world.route_broken, world.available_mb = False, "good", False, 1000
    device.hold_at, world.hold_allowed = None, True
    release(device)
    device.tick(700, times=12)
    release(device)
    assert len(set(served(device))) == 1, world.history
    assert not [words for words in world.violations if "mixed" in words], world.violations


def release(device: Device) -> None:
    """Let a held worker do what it still has to do."""
    while device.worker.step is not None:
        device.worker.finish()
        device.pump()


# -- after the commit


def test_what_fails_after_the_commit_takes_its_partner_back_and_only_its_own_digest_is_rejected(pair):
    pair.assign(2, BOTH, cam="2", text="5")
    assert served(pair) == ["2", "5"]
    pair.world.together = (8500, 8501)
    pair.world.violations.clear()
    pair.world.hold_allowed = True  # the golden cases of one that serves go wrong
    pair.world.behaviours[pair.name(CATALOGUE["5"], "text")] = "wrong"
    pair.tick(15, times=8)
    assert served(pair) == ["1", "1"]
    assert set(pair.journal.entry.rejected) == {CATALOGUE["5"].digest}
    assert {deployment(pair, slot).phase for slot in GROUP} == {"rejected"}
    assert deployment(pair, "cam").culprit == "text"
    assert "went back with slot text, since they go together" in deployment(pair, "cam").problem.reason
    pair.tick(700, times=4)
    assert served(pair) == ["1", "1"]
    pair.assign(3, BOTH, cam="2", text="2")
    assert served(pair) == ["2", "2"]


def test_a_partner_that_moved_on_since_stays_when_the_other_one_goes_back(pair):
    pair.assign(2, BOTH, cam="2", text="5")
    pair.assign(3, cam="5", text="5")
    pair.world.hold_allowed = True
    pair.world.behaviours[pair.name(CATALOGUE["5"], "text")] = "wrong"
    pair.tick(15, times=8)
    assert served(pair)[1] == "1"
