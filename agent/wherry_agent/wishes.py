"""What the server wants beside what goes on: releases to admit, deployments that must give way. Pure."""

from __future__ import annotations

from datetime import datetime

from wherry.errors import AdmissionError, WherryError
from wherry_agent.assignment import Assignment, mark_above
from wherry_agent.endings import problem_of
from wherry_agent.entry import Entry, Limits, SlotEntry, same, withdrawn
from wherry_agent.progress import Admitted, Refused, Together
from wherry_agent.states import allows
from wherry_agent.together import Wish, is_whole, members


def wishes_of(desired: Assignment, entry: Entry, name: str) -> list[Wish]:
    """The slot and those that go together with it, as far as they do not have what is wanted already."""
    group = next((group for group in desired.together if name in group), frozenset({name}))
    known = ((entry.slots[slot], desired.slots[slot]) for slot in sorted(group) if slot in entry.slots)
    return [(slot, image) for slot, image in known if not same(slot.known_good, image)]


def to_admit(desired: Assignment | None, entry: Entry, now: datetime, limits: Limits) -> list[list[Wish]]:
    """Releases that should be given to admission now; those of one list go together or not at all."""
    if desired is None:
        return []
    found: list[list[Wish]] = []
    seen: set[str] = set()
    for name in sorted(desired.slots):
        wishes = [] if name in seen else wishes_of(desired, entry, name)
        seen |= {slot.slot for slot, _ in wishes}
        # Beside one that waits, a new wish is asked about at once: it must not wait without saying why.
        waits = any(_waits(wish, now, limits) for wish in wishes) and not any(_is_new(wish) for wish in wishes)
        held = waits or any(slot.trial for slot, _ in wishes)
        if not held and not all(_stands(wish, wishes, entry) for wish in wishes):
            found.append(wishes)
    return found


def _is_new(wish: Wish) -> bool:
    slot, image = wish
    return slot.deployment is None or not same(slot.deployment.image, image)


def _waits(wish: Wish, now: datetime, limits: Limits) -> bool:
    slot, image = wish
    last = slot.deployment
    return (
        last is not None and same(last.image, image) and last.phase == "refused" and not limits.due(last.retry_at, now)
    )


def _stands(wish: Wish, wishes: list[Wish], entry: Entry) -> bool:
    """Whether the last attempt has the last word: it was rejected, or went back with a partner that was."""
    slot, image = wish
    last = slot.deployment
    if last is None or not same(last.image, image) or last.phase != "rejected":
        return False
    culprits = {other.slot for other, wanted in wishes if wanted.digest in entry.rejected}
    return image.digest in entry.rejected or last.culprit in culprits


def admitted(wishes: list[Wish]) -> Together:
    """An attempt at all of them begins, in one write."""
    group = tuple(slot.slot for slot, _ in wishes) if len(wishes) > 1 else ()
    return Together(tuple(Admitted(slot.slot, image, group) for slot, image in wishes))


def refused(wishes: list[Wish], entry: Entry, culprit: str, error: WherryError) -> Together:
    """None of them is tried; each says why, and the others name the culprit. What was rejected keeps its verdict."""
    facts = []
    for slot, image in wishes:
        if _stands((slot, image), wishes, entry):
            continue
        mine = slot.slot == culprit
        problem = problem_of(error if mine else _kept_back(image.image.label(), culprit, error))
        facts.append(Refused(slot.slot, image, problem, "" if mine else culprit))
    return Together(tuple(facts))


def _kept_back(label: str, culprit: str, error: WherryError) -> WherryError:
    reason = f"goes together with slot {culprit}, which is refused: {error.thing} {error.reason}"
    return AdmissionError(f"release {label}", reason, error.fix)


def to_supersede(desired: Assignment | None, entry: Entry) -> list[tuple[SlotEntry, str]]:
    """Slots whose deployment must give way, with what takes its place; all of a group when one of it must.

    A first deployment that already answers callers is let finish: nothing else would serve. One that the owner
    withdrew, or whose image was rejected in another slot, gives way whether or not it is known what is wanted instead.
    """
    found: dict[str, tuple[SlotEntry, str]] = {}
    for name, slot in sorted(entry.slots.items()):
        by = _gives_way(slot, desired, entry) if slot.trial and name not in found else ""
        if by:
            found |= {
                member.slot: (member, by)
                for member in members(entry, slot)
                if member.trial and allows(member.trial.phase, "supersede")
            }
    return list(found.values())


def _gives_way(slot: SlotEntry, desired: Assignment | None, entry: Entry) -> str:
    """What a deployment must give way to, in words; empty when it goes on."""
    trial = slot.trial
    if trial is None or not allows(trial.phase, "supersede"):
        return ""
    if withdrawn(trial.image, entry.marks):
        return "the owner, who withdrew it"
    if not is_whole(entry, slot):
        return "another attempt, since a slot that goes together with it did"
    if not all(_replaceable(member) for member in members(entry, slot)):
        return ""
    if trial.image.digest in entry.rejected:
        return f"the verdict on it in slot {entry.rejected[trial.image.digest].slot}"
    if desired is None:
        return ""
    wanted = desired.slots.get(slot.slot)
    older = wanted is not None and mark_above(slot.slot, wanted, entry.marks.counters)
    if older and not same(wanted, slot.known_good):
        return ""  # what would take its place will be refused
    if not same(trial.image, wanted):
        return f"release {wanted.image.label()}" if wanted else "an empty slot"
    others = {other.slot for other, _ in wishes_of(desired, entry, slot.slot)} - {slot.slot}
    return "an attempt together with other slots" if not others <= set(trial.group) else ""


def _replaceable(slot: SlotEntry) -> bool:
    """Whether something else serves, or nobody is served yet."""
    trial = slot.trial
    return slot.known_good is not None or trial is None or not (trial.holds_route or trial.phase == "switching")
