"""Slots that a release needs beside its own: served first, waited for, not emptied, and never in a circle."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from agent_fakes import Device, make_image
from hypothesis import given
from hypothesis import strategies as st

from wherry.release import Needs
from wherry.slot_needs import circle, in_order, needed_by

FEATURES, CALLER = make_image(1), make_image(2, needs=Needs(slots=["features"]))
CATALOGUE = {
    "1": FEATURES,
    "2": CALLER,
    "3": make_image(3, needs=Needs(slots=["text"])),
    "4": make_image(4, "wrong"),
    "5": make_image(5),
    "6": make_image(6, needs=Needs(slots=["features"])),
}


@pytest.fixture
def device(tmp_path) -> Device:
    return Device(tmp_path, catalogue=dict(CATALOGUE))


def problem(device: Device, slot: str):
    return device.journal.entry.slots[slot].deployment.problem


def test_what_needs_a_slot_is_not_started_before_that_slot_serves(device):
    device.hold_at = "Soak"
    device.assign(1, features="1", text="2")
    device.tick()
    history = device.world.history
    assert device.journal.entry.slots["features"].trial.phase == "soaking"
    assert not any("running" in line and "text" in line for line in history)
    device.hold_at = None
    device.worker.finish()
    device.pump()
    device.tick(times=3)
    assert device.serves("features") == "1"
    assert device.serves("text") == "2"
    began = [line for line in device.world.history if line.startswith("{'state': 'running'}")]
    assert ["features" in line for line in began] == [True, False]


def test_waiting_says_for_what_in_words_and_passes(device):
    device.world.behaviours_of["1"] = "never_ready"
    device.assign(1, features="5")
    device.tick(times=2)
    name = next(iter(device.world.containers))
    device.world.behaviours[name] = "never_ready"
    device.tick(times=3)
    device.assign(2, features="5", text="2")
    device.tick(times=2)
    assert device.journal.entry.slots["text"].trial.phase == "staging"
    assert device.state.problem.reason == "waits for slot features, which does not serve"
    device.world.behaviours[name] = "good"
    device.tick(times=3)
    assert device.serves("text") == "2"
    assert device.state.problem is None


def test_a_slot_that_is_empty_and_not_wanted_cannot_be_needed(device):
    device.assign(1, text="2")
    assert problem(device, "text").reason == "needs slot features, which is empty on this device"
    assert problem(device, "text").fix == "Roll a release out to slot features first"
    assert device.world.containers == {}


def test_slots_that_need_each_other_are_refused_both(device):
    device.assign(1, features="3", text="2")
    assert problem(device, "features").reason == "slots need each other: features needs text needs features"
    assert problem(device, "text").reason == "slots need each other: text needs features needs text"


def test_a_new_slot_cannot_be_needed_by_what_goes_together_with_it(device):
    device.assign(1, [("features", "text")], features="1", text="2")
    assert "so they cannot begin together" in problem(device, "text").reason
    assert "goes together with slot text" in problem(device, "features").reason
    device.assign(2, features="1", text="2")
    device.tick(700, times=3)
    device.assign(3, [("features", "text")], features="5", text="6")
    device.tick(times=3)
    assert [device.serves(slot) for slot in ("features", "text")] == ["5", "6"]


def test_what_goes_together_with_the_mend_of_the_slot_that_it_needs_does_not_wait_for_that_slot(device):
    device.assign(1, features="1", text="2")
    device.tick(times=3)
    device.world.behaviours[device.name(FEATURES, "features")] = "dead"
    device.world.hold_allowed = True
    device.tick(times=3)
    device.assign(2, [("features", "text")], features="5", text="6")
    device.tick(times=5)
    assert [device.serves(slot) for slot in ("features", "text")] == ["5", "6"]


def test_a_slot_that_is_needed_is_not_emptied_and_says_by_whom(device):
    device.assign(1, features="1", text="2")
    device.tick(times=3)
    device.assign(2, text="2")
    device.tick(times=2)
    assert device.serves("features") == "1"
    assert device.state.problem.reason == "is not emptied: slot text needs it"
    device.world.hold_allowed = True
    device.assign(3)
    device.tick(times=2)
    assert device.world.containers == {}
    assert device.state.problem is None


def test_after_a_boot_what_is_needed_comes_first(device):
    device.assign(1, zebra="1")
    device.release("7", needs=Needs(slots=["zebra"]))
    device.assign(2, zebra="1", apple="7")
    device.tick(times=3)
    for name, container in device.world.containers.items():
        device.world.containers[name] = replace(container, restart="no")
    device.world.power_cut()
    before = len(device.world.history)
    device.journal.close()
    device.boot()
    started = [line for line in device.world.history[before:] if line.startswith("{'state': 'running'}")]
    assert ["zebra" in line for line in started] == [True, False]


SLOTS = st.sampled_from("abcdef")


@given(st.dictionaries(SLOTS, st.sets(SLOTS, max_size=3)))
def test_every_slot_comes_once_and_after_what_it_needs_unless_there_is_a_circle(needs):
    order = in_order(needs)
    assert sorted(order) == sorted(needs)
    for slot, others in needs.items():
        for other in others & needs.keys():
            if order.index(other) > order.index(slot):
                assert circle(needs, slot)
    for slot in needs:
        way = circle(needs, slot)
        assert not way or (way[0] == way[-1] == slot and all(b in needs[a] for a, b in itertools.pairwise(way)))
        assert needed_by(needs, slot) == sorted(s for s in needs if s != slot and slot in needs[s])
