"""Limits of the device: disk, inodes and memory are looked at first, and room is made before anything is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from agent_fakes import make_image

from wherry_agent.admission import admit
from wherry_agent.assignment import Marks
from wherry_agent.observed import Room
from wherry_agent.room import frees

MB = 1_000_000


def admitted(image, room):
    return admit(image, None, None, room, {}, Marks(), 0)


def test_inodes_are_counted_and_not_where_they_are_made_as_needed():
    image = make_image(1, unpacked_bytes=16_384 * 500)
    assert admitted(image, Room(10**9, 4000, image_present=False, inodes_free=1500)) is None
    assert admitted(image, Room(10**9, 4000, image_present=False, inodes_free=None)) is None
    found = admitted(image, Room(10**9, 4000, image_present=False, inodes_free=1499))
    assert (found.code, found.reason) == (
        "admission", "needs about 500 inodes (files) and 1000 must stay free, but 1499 are free",
    )  # fmt: skip
    assert admitted(image, Room(10**9, 4000, image_present=True, inodes_free=0)) is None


def test_only_the_models_own_layer_comes_free_with_an_image():
    assert frees(make_image(1)) == 2 * MB
    layers = {"base": 30, "runtime": 40, "serving": 10, "model": 20}
    assert frees(make_image(1, layers=layers)) == 400_000
    assert frees(make_image(1, layers={"base": 0, "model": 0})) == 2 * MB


@pytest.fixture
def narrow(device):
    """Serves version 2, keeps version 1 for rollback; another version needs 3 MB and 2 MB come free with one."""
    device.world.disk_free, device.world.disk_fills = 6 * MB, True
    device.assign(1, main="1")
    device.assign(2, main="2")
    assert device.world.disk_free == 2 * MB
    return device


def images(device):
    return sorted(image.image.version for image in device.world.images.values())


def test_the_release_kept_for_rollback_makes_room_before_a_new_one_is_refused(narrow):
    narrow.assign(3, main="3")
    assert narrow.serves() == "3"
    assert images(narrow) == ["2", "3"]
    assert narrow.phases()[0] == "admitted"
    assert narrow.world.violations == []


def test_nothing_is_given_up_for_a_release_that_has_no_room_all_the_same(narrow):
    narrow.world.disk_free = MB // 2
    narrow.assign(3, main="3")
    narrow.tick(700, times=3)
    last = narrow.state.slots[0].deployment
    assert last.phase == "refused"
    assert "needs 3.0 MB of disk (1.0 MB download, 2.0 MB unpacked)" in last.problem.reason
    assert "0.5 MB are free" in last.problem.reason
    assert images(narrow) == ["1", "2"]


def test_nothing_is_given_up_for_a_release_that_is_refused_for_another_reason(narrow):
    narrow.release("4", memory_mb=9000)
    narrow.assign(3, main="4")
    assert narrow.state.slots[0].deployment.phase == "refused"
    assert images(narrow) == ["1", "2"]


def test_a_fallback_that_serves_is_not_given_up(narrow):
    """The known-good does not answer; callers are with the release before."""
    good = narrow.name(narrow.catalogue["2"])
    narrow.world.hold_allowed = True
    narrow.world.behaviours[good] = "hung"
    narrow.tick(31, times=20)
    assert narrow.serves() == "1"
    narrow.assign(3, main="3")
    assert narrow.state.slots[0].deployment.phase == "refused"
    assert images(narrow) == ["1", "2"]
    assert narrow.serves() == "1"


def test_what_another_slot_needs_is_not_given_up(narrow):
    narrow.world.disk_free = 10 * MB
    narrow.assign(3, main="2", other="1")
    assert narrow.serves("other") == "1"
    narrow.world.disk_free = 2 * MB
    narrow.assign(4, main="3", other="1")
    assert narrow.state.slots[0].deployment.phase == "refused"
    assert images(narrow) == ["1", "2"]


def test_a_rollback_kept_in_another_slot_makes_room_too(narrow):
    narrow.world.disk_free = 3 * MB
    narrow.assign(3, main="2", other="3")
    assert narrow.serves("other") == "3"
    narrow.release("4")
    narrow.world.disk_free = 2 * MB
    narrow.assign(4, main="2", other="4")
    assert narrow.serves("other") == "4"
    assert images(narrow) == ["2", "3", "4"]
    assert narrow.journal.entry.slots["main"].previous is None


def test_images_that_nothing_needs_go_before_anything_is_given_up(narrow):
    """A rejected release's image, whose removal failed at first, is enough."""
    slot = narrow.journal.entry.slots["main"]
    narrow.release("4")
    litter = narrow.catalogue["4"]
    narrow.world.images[litter.digest] = litter
    narrow.journal.keep(replace(narrow.journal.entry, slots={"main": replace(slot, litter=(litter,))}))
    narrow.assign(3, main="3")
    assert narrow.serves() == "3"
    history = narrow.world.history
    assert history.index("remove image 4") < history.index("fetch 3")


def test_images_and_containers_of_others_are_never_touched(narrow):
    """Whatever room is needed: only what the journal names as ours goes."""
    theirs = make_image(90)
    narrow.world.images[theirs.digest] = theirs
    narrow.world.disk_free = MB // 2
    narrow.assign(3, main="3")
    narrow.tick(700, times=3)
    narrow.assign(4)
    narrow.tick(700, times=3)
    assert images(narrow) == ["90"]


def test_a_device_without_inodes_says_so_and_goes_on_when_there_are_some(device):
    device.world.inodes_free = 10
    device.assign(1, main="1")
    assert "inodes (files)" in device.state.slots[0].deployment.problem.reason
    device.world.inodes_free = 10_000
    device.tick(700)
    assert device.serves() == "1"
