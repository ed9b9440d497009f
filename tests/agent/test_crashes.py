"""The agent is killed -9 before and after every call of a port and every journal write, and started again.

Each life is a forked child with the real journal on disk; containers, images and routes outlive it.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from agent_fakes import Device, World, make_image
from lives import live

CATALOGUE = {
    "1": make_image(1),
    "2": make_image(2),
    "3": make_image(3, "wrong"),
    "4": make_image(4, "crash"),
}


def prepared(folder: Path, memory_mb: int) -> World:
    """A device that serves version 1."""
    folder.mkdir()
    world = World(path=folder / "world", available_mb=memory_mb)
    device = Device(folder, world, CATALOGUE)
    device.assign(1, main="1")
    assert device.serves() == "1"
    device.journal.close()
    world.hold_allowed = memory_mb < 100
    world.changed("prepared")
    return world


def again(folder: Path, origin: Path) -> None:
    """A copy of a prepared device."""
    shutil.copytree(origin, folder)
    replace(World.load(folder / "world"), path=folder / "world").changed("copied")


def converge(device: Device) -> None:
    device.tick(700, times=4)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("wanted", "expected", "memory_mb"),
    [("2", "2", 1000), ("3", "1", 1000), ("4", "1", 1000), ("2", "2", 10), ("3", "1", 10)],
    ids=[
        "good release",
        "wrong answers",
        "crash at start",
        "good release, no memory for two",
        "wrong, no memory for two",
    ],
)
def test_killed_anywhere_in_a_swap_the_agent_converges_and_the_slot_never_falls_silent(
    tmp_path, wanted, expected, memory_mb
):
    points = 0
    prepared(tmp_path / "origin", memory_mb)
    while True:
        points += 1
        folder = tmp_path / str(points)
        again(folder, tmp_path / "origin")
        survived = live(folder, CATALOGUE, lambda device: device.assign(2, main=wanted), points)
        if not survived and points % 3 == 0:
            live(
                folder, CATALOGUE, lambda device: device.assign(2, main=wanted), 1 + points // 2
            )  # again, during recovery

        def finish(device: Device) -> None:
            device.assign(2, main=wanted)
            converge(device)
            entry = device.journal.entry
            assert device.serves() == expected, device.world.history
            assert entry.slots["main"].known_good.image.version == expected
            assert entry.marks.sequence == 2
            assert device.world.violations == []
            rejected = {CATALOGUE[wanted].digest} if expected != wanted else set()
            assert set(entry.rejected) == rejected
            running = [c.name for c in device.world.containers.values() if c.running]
            assert running == [device.name(CATALOGUE[expected])]
            assert device.state.problem is None or device.state.problem.code == "trust.replayed"

        live(folder, CATALOGUE, finish, None)
        if survived:
            break
        shutil.rmtree(folder)
    assert points > 30, "the sweep must have met real kill points"


def test_killed_while_emptying_a_slot_the_agent_empties_it(tmp_path):
    points, survived = 0, False
    while not survived:
        points += 1
        folder = tmp_path / str(points)
        world = prepared(folder, 1000)
        world.hold_allowed = True
        world.changed("an empty slot is wanted")
        survived = live(folder, CATALOGUE, lambda device: device.assign(2), points)

        def finish(device: Device) -> None:
            device.assign(2)
            converge(device)
            assert device.world.containers == {}
            assert device.world.images == {}
            assert device.world.routes == {}

        live(folder, CATALOGUE, finish, None)
    assert points > 8


def test_fifty_crashes_in_a_row_leave_the_slot_serving(tmp_path):
    folder = tmp_path / "loop"
    prepared(folder, 1000)
    for life in range(50):
        live(folder, CATALOGUE, lambda device: device.assign(2, main="2"), 1 + life % 7)

    def finish(device: Device) -> None:
        device.assign(2, main="2")
        converge(device)
        assert device.serves() == "2"
        assert device.world.violations == []

    live(folder, CATALOGUE, finish, None)
