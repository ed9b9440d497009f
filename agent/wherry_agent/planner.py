"""What to do next: a pure function of desired, observed and journaled state. An empty plan means converged."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from wherry.agent_release import AGENT_SLOT
from wherry.messages import Phase
from wherry_agent.agent_slot import plan_agent, proving
from wherry_agent.assignment import Assignment, TrustedImage
from wherry_agent.dependencies import serving_order
from wherry_agent.entry import Deployment, Entry, Limits, SlotEntry, container_name, same, withdrawn
from wherry_agent.observed import Container, Observed
from wherry_agent.steps import (
    Commit,
    EnsureRoute,
    EnsureServing,
    Fetch,
    Mode,
    Probe,
    Prune,
    Remove,
    Retire,
    Rollback,
    Soak,
    Stage,
    StandDown,
    Start,
    Step,
    Switch,
    Withdraw,
)
from wherry_agent.together import joint_mode, turn_back_together


@dataclass(frozen=True, slots=True)
class _View:
    """One slot with all that its plan depends on."""

    slot: SlotEntry
    desired: Assignment | None
    observed: Observed
    entry: Entry
    now: datetime
    limits: Limits
    broken: bool
    waits: bool
    kept: bool
    mode: Mode | None = None

    def name(self, image: TrustedImage) -> str:
        return container_name(self.entry.device, self.slot.slot, image)

    def container(self, image: TrustedImage) -> Container | None:
        return self.observed.containers.get(self.name(image))

    def runs(self, image: TrustedImage | None) -> bool:
        found = self.container(image) if image else None
        return found is not None and found.running


def plan(
    desired: Assignment | None,
    observed: Observed,
    entry: Entry,
    now: datetime,
    limits: Limits | None = None,
    broken: Collection[str] = (),
    waiting: Collection[str] = (),
    kept: Collection[str] = (),
) -> list[Step]:
    """The steps that bring the device from what it is to what it should be.

    First what the owner withdrew ends, then comes whatever restores service, then deployments, removals and tidying,
    slot by slot, the agent itself last.

    Args:
        desired: the verified assignment; None when it is not known (yet): what serves goes on serving.
        observed: the world as it is now; a lock in it holds off swaps of what serves, nothing else.
        entry: the journal.
        now: the time.
        limits: how patient to be.
        broken: slots whose known-good could not be brought back to life again and again.
        waiting: slots whose candidate is not started before another slot serves.
        kept: slots that are not emptied, since another slot needs them.
    """
    limits = limits or Limits()
    views = [
        _View(entry.slots[name], desired, observed, entry, now, limits, name in broken, name in waiting, name in kept)
        for name in serving_order(entry)
        if name != AGENT_SLOT
    ]
    steps: list[Step] = [step for view in views for step in _withdrawing(view)]
    steps += turn_back_together((step for view in views for step in _serving(view)), entry)
    steps += [step for view in views for step in _standing_down(view)]
    own = plan_agent(desired, observed, entry, now, limits)
    if proving(entry):
        return steps + own
    groups: dict[tuple[str, ...], list[_View]] = {}
    for view in views:
        trial = view.slot.trial
        if trial and trial.group:
            groups.setdefault(trial.group, []).append(view)
        else:
            steps += _deploying(view, trial) if trial else _settled(view)
    for group, members in groups.items():
        steps += _abreast(members, whole=len(members) == len(group))
    return steps + own + _strangers(observed, entry)


def _serving(view: _View) -> Iterator[Step]:
    """The known-good runs, and the slot's port is turned to what should answer."""
    slot, trial = view.slot, view.slot.trial
    yielding = trial is not None and trial.mode == "replace" and trial.phase != "rolling_back" and _past_staging(trial)
    fallback = slot.previous if view.broken and not yielding and not (trial and trial.holds_route) else None
    for image in (fallback, slot.known_good):
        if image and not yielding and not view.runs(image):
            yield EnsureServing(slot.slot, image, slot.port)
    if trial and trial.holds_route:
        answering: TrustedImage | None = trial.image
    elif yielding:
        return
    else:
        answering = fallback if view.runs(fallback) else slot.known_good
    container = view.container(answering) if answering else None
    if answering is None or container is None or not container.running or (trial and trial.phase == "switching"):
        return
    if view.observed.routes.get(slot.port) != container.port:
        yield EnsureRoute(slot.slot, answering, slot.port, container.port)


def _standing_down(view: _View) -> Iterator[Step]:
    """The release before stops once the known-good has taken over; never while callers still reach it."""
    slot, trial = view.slot, view.slot.trial
    good = view.container(slot.known_good) if slot.known_good else None
    if slot.previous is None or not view.runs(slot.previous) or view.broken or good is None or not good.running:
        return
    if trial and (trial.phase not in ("admitted", "fetching") or same(trial.image, slot.previous)):
        return
    if view.observed.routes.get(slot.port) == good.port:
        yield StandDown(slot.slot, slot.previous)


def _withdrawing(view: _View) -> Iterator[Step]:
    """What the owner withdrew ends at once, whatever else goes on in its slot or waits for the network."""
    names = {view.name(image) for image in view.slot.litter if withdrawn(image, view.entry.marks)}
    found = tuple(sorted(names & view.observed.containers.keys()))
    if found:
        yield Withdraw(view.slot.slot, found)


def _held_off(view: _View) -> bool:
    """An application holds off swaps of what serves it. What does not serve may be mended at any time."""
    slot = view.slot
    return view.observed.lock is not None and (view.runs(slot.known_good) or (view.broken and view.runs(slot.previous)))


def _past_staging(trial: Deployment) -> bool:
    return trial.phase in ("starting", "probing", "switching", "soaking", "committing")


def _fetch(view: _View, image: TrustedImage) -> list[Step]:
    return [Fetch(view.slot.slot, image)]


def _stage(view: _View, image: TrustedImage) -> list[Step]:
    return [Stage(view.slot.slot, image, view.slot.port)]


def _start(view: _View, image: TrustedImage) -> list[Step]:
    mode = view.mode or choose_mode(view.slot, view.observed, image, view.limits, view.runs(view.slot.known_good))
    start = Start(view.slot.slot, image, mode)
    if mode == "replace" and view.slot.known_good and view.runs(view.slot.known_good):
        return [Retire(view.slot.slot, view.slot.known_good, view.slot.port), start]
    return [start]


def choose_mode(
    slot: SlotEntry, observed: Observed, image: TrustedImage, limits: Limits, known_good_runs: bool
) -> Mode:  # fmt: skip
    """Overlap when memory holds both releases, else replace; decided once for a deployment."""
    if slot.trial and slot.trial.mode:
        return slot.trial.mode
    room = observed.memory_available_mb - limits.reserve_mb
    return "overlap" if not known_good_runs or room >= image.image.run.memory_mb else "replace"


def _beside(view: _View) -> TrustedImage | None:
    """What the candidate can be compared with on this device."""
    return view.slot.known_good if view.runs(view.slot.known_good) else None


def _probe(view: _View, image: TrustedImage) -> list[Step]:
    return [Probe(view.slot.slot, image, _beside(view))]


def _switch(view: _View, image: TrustedImage) -> list[Step]:
    return [Switch(view.slot.slot, image, view.slot.port)]


def _soak(view: _View, image: TrustedImage) -> list[Step]:
    return [Soak(view.slot.slot, image, _beside(view))]


def _commit(view: _View, image: TrustedImage) -> list[Step]:
    return [Commit(view.slot.slot, image)]


_WAY: tuple[tuple[Phase, str, Callable[[_View, TrustedImage], list[Step]]], ...] = (
    ("fetching", "Fetch", _fetch),
    ("staging", "Stage", _stage),
    ("starting", "Start", _start),
    ("probing", "Probe", _probe),
    ("switching", "Switch", _switch),
    ("soaking", "Soak", _soak),
    ("committing", "Commit", _commit),
)
_PAST_SWITCH = ("switching", "soaking", "committing")
_POSITION: Mapping[str, int] = {"admitted": 0, **{phase: index for index, (phase, _, _) in enumerate(_WAY)}}


def _position(trial: Deployment) -> int:
    """Which part of the way comes next."""
    position = _POSITION[trial.phase]
    return position + (trial.phase != "admitted" and trial.finished == _WAY[position][1])


def _abreast(views: list[_View], whole: bool) -> list[Step]:
    """The rest of the way of slots that go together: none begins a part of it before all have ended the one before."""
    trials = [(view, view.slot.trial) for view in views if view.slot.trial]
    due = {view.slot.slot for view, trial in trials if view.limits.due(trial.retry_at, view.now)}
    back: list[Step] = [
        _roll_back(view, trial) for view, trial in trials if trial.phase == "rolling_back" and view.slot.slot in due
    ]
    if back or not whole or any(trial.phase == "rolling_back" for _, trial in trials):
        return back
    held = any(_held_off(view) for view in views) and trials[0][1].phase not in _PAST_SWITCH
    slots, available = [view.slot for view in views], views[0].observed.memory_available_mb
    mode = joint_mode(slots, available, views[0].limits, any(view.runs(view.slot.known_good) for view in views))
    steps: list[Step] = []
    end = 1 if held else _POSITION["starting"] if any(view.waits for view in views) else len(_WAY)
    for index in range(min(_position(trial) for _, trial in trials), end):
        turn = [(replace(view, mode=mode), trial) for view, trial in trials if _position(trial) <= index]
        steps += _joined(
            step for view, trial in turn if view.slot.slot in due for step in _WAY[index][2](view, trial.image)
        )
        if any(view.slot.slot not in due for view, _ in turn):
            break
    return steps


def _joined(steps: Iterable[Step]) -> list[Step]:
    """The same steps, switches as one."""
    found = list(steps)
    switches = [step for step in found if isinstance(step, Switch)]
    if not switches:
        return found
    first, *others = switches
    return [replace(first, partners=tuple(others))]


def _roll_back(view: _View, trial: Deployment) -> Rollback:
    """What was observed of the routes may be old; whatever they show, callers go to what should answer."""
    slot = view.slot
    stands_in = slot.previous if view.broken and view.runs(slot.previous) else None
    return Rollback(slot.slot, trial.image, slot.port, stands_in or slot.known_good)


def _deploying(view: _View, trial: Deployment) -> list[Step]:
    """The rest of the way of a deployment that is under way."""
    if not view.limits.due(trial.retry_at, view.now):
        return []
    if trial.phase == "rolling_back":
        return [_roll_back(view, trial)]
    way = [step for _, _, make in _WAY[_position(trial) :] for step in make(view, trial.image)]
    if _held_off(view) and trial.phase not in _PAST_SWITCH:
        return [step for step in way if isinstance(step, Fetch)]
    if view.waits:
        return [step for step in way if isinstance(step, Fetch | Stage)]
    return way


def _settled(view: _View) -> list[Step]:
    """No deployment is under way: empty a slot that is to be empty, then tidy up."""
    slot = view.slot
    if view.desired is not None and slot.slot not in view.desired.slots:
        mine = tuple(sorted(c.name for c in view.observed.containers.values() if c.slot == slot.slot))
        if mine or slot.known_good or slot.previous or slot.port in view.observed.routes:
            if _held_off(view) or view.kept:
                return []
            drain = slot.known_good.image.run.drain_seconds if slot.known_good else 0
            return [Remove(slot.slot, slot.port, mine, drain)]
    containers, images = _strays(view, (slot.known_good, slot.previous)), _unneeded(view)
    return [Prune(slot.slot, containers, images)] if containers or images else []


def _strays(view: _View, kept: tuple[TrustedImage | None, ...]) -> tuple[str, ...]:
    """Our containers in the slot that no release of it needs."""
    names = {view.name(image) for image in kept if image}
    return tuple(
        sorted(c.name for c in view.observed.containers.values() if c.slot == view.slot.slot and c.name not in names)
    )


def _unneeded(view: _View) -> tuple[TrustedImage, ...]:
    """Images of the slot that may go: not known-good, previous, on trial or desired in any slot."""
    needed = view.entry.needed_digests() | {image.digest for image in _desired_images(view)}
    return tuple(image for image in view.slot.litter if image.digest not in needed)


def _desired_images(view: _View) -> list[TrustedImage]:
    if view.desired is None:
        return []
    rejected, marks = view.entry.rejected, view.entry.marks
    return [i for i in view.desired.slots.values() if i.digest not in rejected and not withdrawn(i, marks)]


def _strangers(observed: Observed, entry: Entry) -> list[Step]:
    """Containers with our label in slots that the journal does not know."""
    lost: dict[str, list[str]] = {}
    for container in observed.containers.values():
        if container.slot not in entry.slots:
            lost.setdefault(container.slot, []).append(container.name)
    return [Prune(slot, tuple(sorted(names)), ()) for slot, names in sorted(lost.items())]


def assign_ports(
    entry: Entry, slots: Mapping[str, TrustedImage], fixed: Mapping[str, int], base: int
) -> dict[str, int]:
    """Stable ports of slots: explicit ones first, then from `base` upwards in order of appearance, for ever.

    The agent's own slot has none.
    """
    ports = {name: slot.port for name, slot in entry.slots.items()}
    for name in sorted(slots):
        if name in ports:
            continue
        if name == AGENT_SLOT:
            ports[name] = 0
            continue
        taken = {*ports.values(), *(port for other, port in fixed.items() if other != name)}
        port = fixed.get(name, base)
        while name not in fixed and port in taken:
            port += 1
        ports[name] = port
    return ports
