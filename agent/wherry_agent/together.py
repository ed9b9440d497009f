"""Slots that go together or not at all: who belongs to whom, and what the device must hold for all of them. Pure.

The members of a group take each phase side by side; from the switch on they share one phase, which one
write of the journal gives to all of them. So whatever is read back after a crash is all-old or all-new.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from wherry.errors import AdmissionError, DeploymentError, WherryError
from wherry_agent.assignment import TrustedImage
from wherry_agent.entry import Entry, Limits, SlotEntry, same
from wherry_agent.observed import Room
from wherry_agent.steps import EnsureRoute, FallBack, Mode, Step

JOINT_MOVES = frozenset({"switch", "soak", "commit"})
"""Moves that all members of a group make in one write."""
Wish = tuple[SlotEntry, TrustedImage]
"""A slot and the release that it is to get."""


def partners(entry: Entry, slot: SlotEntry) -> list[SlotEntry]:
    """The other slots of a deployment's group whose attempts are under way."""
    own = slot.deployment.group if slot.deployment else ()
    found = (entry.slots[name] for name in own if name != slot.slot and name in entry.slots)
    return [other for other in found if other.trial and other.trial.group == own]


def members(entry: Entry, slot: SlotEntry) -> list[SlotEntry]:
    """A slot on trial and its partners, by name."""
    return sorted([slot, *partners(entry, slot)], key=lambda member: member.slot)


def is_whole(entry: Entry, slot: SlotEntry) -> bool:
    """Whether nobody is missing of the group that a slot's trial belongs to."""
    trial = slot.trial
    return trial is None or len(members(entry, slot)) == max(len(trial.group), 1)


def joint_mode(group: Sequence[SlotEntry], available_mb: int, limits: Limits, any_serves: bool) -> Mode:
    """Overlap for all or replace for all: by what the releases of the whole group may use."""
    for slot in group:
        if slot.trial and slot.trial.mode:
            return slot.trial.mode
    need = sum(slot.trial.image.image.run.memory_mb for slot in group if slot.trial)
    return "overlap" if not any_serves or available_mb - limits.reserve_mb >= need else "replace"


def turn_back_together(steps: Iterable[Step], entry: Entry) -> list[Step]:
    """Steps that restore service, with the ports of a group that goes back turned in one, after all is alive."""
    kept: list[Step] = []
    turns: dict[tuple[str, ...], list[EnsureRoute]] = {}
    for step in steps:
        slot = entry.slots[step.slot]
        trial = slot.trial
        if isinstance(step, EnsureRoute) and trial and trial.group and trial.phase == "rolling_back":
            turns.setdefault(trial.group, []).append(step)
        else:
            kept.append(step)
    for first, *others in turns.values():
        kept.append(EnsureRoute(first.slot, first.image, first.slot_port, first.port, tuple(others)))
    return kept


def falling_back(step: FallBack, entry: Entry) -> FallBack:
    """The same with the slots that were committed together with this one and still serve that; one attempt, one way."""
    own = entry.slots[step.slot].deployment
    if own is None or not own.group or not same(own.image, step.rejected):
        return step
    found = []
    for name in own.group:
        slot = entry.slots.get(name)
        last = slot.deployment if slot and name != step.slot else None
        if slot is None or last is None or (last.phase, last.group) != ("committed", own.group):
            continue
        if slot.previous is not None and slot.known_good is not None and same(slot.known_good, last.image):
            found.append(FallBack(name, slot.previous, slot.port, slot.known_good, step.why))
    return FallBack(step.slot, step.image, step.slot_port, step.rejected, step.why, tuple(found))


def left_behind(entry: Entry) -> dict[str, WherryError]:
    """Slots that serve what they were committed with while another of their group went back, with words."""
    found: dict[str, WherryError] = {}
    for name, slot in sorted(entry.slots.items()):
        last = slot.deployment
        if last is None or last.phase != "committed" or not same(slot.known_good, last.image):
            continue
        others = (entry.slots[other] for other in last.group if other != name and other in entry.slots)
        back = [other.slot for other in others if _went_back(other, slot.since)]
        if back:
            reason = f"serves {last.image.image.label()}, which belongs to that of slot {back[0]}, which went back"
            fix = f"Roll releases that fit each other out to slots {name} and {back[0]}"
            found[name] = DeploymentError(f"slot {name}", reason, fix)
    return found


def _went_back(slot: SlotEntry, since: datetime | None) -> bool:
    """Whether a slot's release before took its place again, after a moment: then there is none before it."""
    last = slot.deployment
    stays = last is not None and last.phase == "committed" and same(slot.known_good, last.image)
    used_up = slot.known_good is not None and slot.previous is None and not stays
    return used_up and slot.since is not None and (since is None or slot.since > since)


def joint_room(wishes: Sequence[Wish], rooms: Sequence[Room], watermark_bytes: int) -> WherryError | None:
    """Whether the device holds all releases of a group, each of which it could hold alone; None when it does."""
    names = " and ".join(f"{image.image.label()} in slot {slot.slot}" for slot, image in wishes)
    memory = sum(image.image.run.memory_mb for _, image in wishes)
    if memory > rooms[0].memory_total_mb:
        reason = f"the memory limits of {names} are {memory} MB together, this device has {rooms[0].memory_total_mb} MB"
        return AdmissionError("releases that go together", reason)
    fresh = {
        image.digest: image.image for (_, image), room in zip(wishes, rooms, strict=True) if not room.image_present
    }
    need = sum(image.unpacked_bytes + image.download_bytes for image in fresh.values())
    free = min(room.disk_free_bytes for room in rooms)
    if need + watermark_bytes <= free:
        return None
    reason = (
        f"{names} need {_mb(need)} of disk together and {_mb(watermark_bytes)} must stay free, but {_mb(free)} are free"
    )
    return AdmissionError("releases that go together", reason, "Free disk on the device; it tries again by itself")


def _mb(number: int) -> str:
    return f"{number / 1_000_000:.0f} MB"
