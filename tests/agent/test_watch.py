"""When a known-good that does not answer is started anew."""

from __future__ import annotations

from dataclasses import replace

import pytest
from agent_fakes import make_image

from wherry.release import RunSpec
from wherry_agent.entry import Entry, SlotEntry, container_name
from wherry_agent.events import HealthChecked
from wherry_agent.observed import Container, Observed
from wherry_agent.steps import EnsureServing
from wherry_agent.watch import Watch

PATIENCE, TICK_SECONDS = 6, 5.0


class Slot:
    """A known-good that takes a minute to start, and the watch that looks at it."""

    def __init__(self, start_seconds: int = 60) -> None:
        image = make_image(1, run=RunSpec(memory_mb=100, start_seconds=start_seconds))
        self.entry = Entry("d", "stream", slots={"main": SlotEntry("main", 8500, image)})
        name = container_name("d", "main", image)
        self.container = Container(name, "main", image.digest, "running", 18500, 8500, image)
        self.watch = Watch(None, self, lambda _: None, PATIENCE, TICK_SECONDS)  # type: ignore[arg-type]

    def submit(self, _name: str, _job: object) -> None:
        """As the aide: nothing is asked here."""

    def observed(self, state: str = "running") -> Observed:
        return Observed({self.container.name: replace(self.container, state=state)}, {8500: 18500})

    def checked(self, ok: bool, times: int = 1) -> None:
        for _ in range(times):
            self.watch.ask(self.entry, self.observed())
            self.watch.take(HealthChecked("main", self.container.name, ok), self.entry, self.observed())

    @property
    def due(self) -> bool:
        """Whether it is to be started anew."""
        found = self.watch.revivals(self.entry)
        assert all(isinstance(step, EnsureServing) and step.restart for step in found)
        return bool(found)


@pytest.fixture
def slot() -> Slot:
    return Slot()


def test_what_has_answered_and_answers_no_more_is_started_anew_after_the_usual_patience(slot):
    slot.checked(ok=True)
    slot.checked(ok=False, times=PATIENCE - 1)
    assert not slot.due
    slot.checked(ok=False)
    assert slot.due


def test_what_has_not_answered_yet_gets_the_time_to_start_that_its_owner_gave_it(slot):
    slot.checked(ok=False, times=11)
    assert not slot.due, "after 55 of 60 seconds"
    slot.checked(ok=False)
    assert slot.due


def test_what_was_started_anew_gets_its_time_again_and_is_not_started_over_and_over(slot):
    slot.checked(ok=True)
    slot.checked(ok=False, times=PATIENCE)
    assert slot.due
    slot.watch.revived(slot.container.name)
    slot.checked(ok=False, times=11)
    assert not slot.due
    slot.checked(ok=True)
    slot.checked(ok=False, times=PATIENCE)
    assert slot.due


def test_what_ended_and_was_started_again_gets_its_time(slot):
    slot.checked(ok=True)
    slot.watch.ask(slot.entry, slot.observed("exited"))
    slot.checked(ok=False, times=11)
    assert not slot.due


def test_a_quick_release_still_gets_the_usual_patience():
    slot = Slot(start_seconds=1)
    slot.checked(ok=False, times=PATIENCE - 1)
    assert not slot.due
    slot.checked(ok=False)
    assert slot.due
