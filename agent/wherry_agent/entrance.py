"""Admission with what the device has now: measures, and lets the rules decide for all that go together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from wherry.errors import RolledBack, WherryError
from wherry_agent.admission import admit
from wherry_agent.agent_slot import refusal
from wherry_agent.assignment import TrustedImage, mark_above
from wherry_agent.entry import Entry, SlotEntry, same
from wherry_agent.observed import Observed, Room
from wherry_agent.room import GaveUp, frees, to_give_up
from wherry_agent.together import Wish, joint_room
from wherry_agent.world import Policy, World


class Entrance:
    """Only the control loop's thread asks it."""

    def __init__(self, world: World, policy: Policy) -> None:
        self._world = world
        self._policy = policy

    def ask(self, wishes: Sequence[Wish], entry: Entry, freed: int = 0) -> tuple[str, WherryError] | None:
        """The slot that is to blame and why, when releases that go together may not be tried; else None.

        Args:
            wishes: the releases and their slots.
            entry: the journal.
            freed: bytes of disk that are about to come free.
        """
        rooms = []
        for slot, image in wishes:
            try:
                room = self._room(image, freed)
            except WherryError as error:
                return slot.slot, error
            problem = refusal(slot.slot, image, self._world.own_version()) or self._alone(slot, image, room, entry)
            if problem is not None:
                return slot.slot, problem
            rooms.append(room)
        joint = joint_room(wishes, rooms, self._policy.watermark_bytes) if len(wishes) > 1 else None
        return (wishes[0][0].slot, joint) if joint else None

    def make_room(
        self, wishes: Sequence[Wish], entry: Entry, observed: Observed, idle: Iterable[TrustedImage]
    ) -> GaveUp | None:
        """What to give up so that releases which were refused may be tried when it has gone; None when nothing helps.

        Args:
            wishes: the releases and their slots.
            entry: the journal.
            observed: the world as it is now.
            idle: images that are about to go anyway; they may be enough.
        """
        freed, slots = sum(map(frees, idle)), []
        if freed and self.ask(wishes, entry, freed) is None:
            return GaveUp(())
        for slot in to_give_up(entry, observed, [image for _, image in wishes]):
            slots.append(slot.slot)
            freed += frees(slot.previous) if slot.previous else 0
            if self.ask(wishes, entry, freed) is None:
                return GaveUp(tuple(slots))
        return None

    def _room(self, image: TrustedImage, freed: int) -> Room:
        host, present = self._world.host, self._world.engine.has_image(image)
        return Room(host.disk_free_bytes() + freed, host.memory_total_mb(), present, host.inodes_free())

    def _alone(self, slot: SlotEntry, image: TrustedImage, room: Room, entry: Entry) -> WherryError | None:
        policy = self._policy
        # The release before served these callers already.
        running = None if same(image, slot.previous) else slot.known_good
        problem = admit(
            image, policy.profile, policy.facts, room, entry.rejected, entry.marks, policy.watermark_bytes, running
        )  # fmt: skip
        return problem or _steps_back(slot, image, entry)


def _steps_back(slot: SlotEntry, image: TrustedImage, entry: Entry) -> WherryError | None:
    """A slot's counters never fall; what the other slots are told does not suffer from it."""
    mark = mark_above(slot.slot, image, entry.marks.counters)
    if not mark:
        return None
    return RolledBack(
        f"release {image.image.label()}", f"has counter {image.image.counter}, slot {slot.slot} has had {mark}"
    )
