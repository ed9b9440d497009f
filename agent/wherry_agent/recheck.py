"""Does what was committed still answer rightly? Its golden cases again after 10 s, after a minute, and now and then."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from wherry.errors import GateFailed, WherryError
from wherry.messages import GateResult
from wherry.release import GoldenGate
from wherry_agent.assignment import TrustedImage
from wherry_agent.entry import Entry, SlotEntry, container_name
from wherry_agent.events import Event, GoldenRechecked
from wherry_agent.intake import Background
from wherry_agent.ports import Observed
from wherry_agent.steps import FallBack, Step
from wherry_agent.world import Recheck

_FIRST_SECONDS = (10.0, 60.0)


class LaterChecks:
    """Golden cases of known-goods after their commit. Only the control loop's thread calls it.

    What it knows is not kept: a restarted agent begins anew, with the checks of the first minute.

    Args:
        recheck: asks a container's golden cases.
        aide: asks off the loop.
        put: gets a GoldenRechecked for every verdict.
        every: seconds between later checks.
    """

    def __init__(self, recheck: Recheck, aide: Background, put: Callable[[Event], None], every: float) -> None:
        self._recheck = recheck
        self._aide = aide
        self._put = put
        self._every = every
        self._next: dict[str, tuple[int, datetime]] = {}
        self._failing: dict[str, GateResult] = {}

    def ask(self, entry: Entry, observed: Observed, now: datetime) -> None:
        """Ask every known-good whose turn it is, while nothing is being tried in its slot."""
        current = {name: (slot, image) for slot in entry.slots.values() for name, image in _settled(entry, slot)}
        self._next = {name: due for name, due in self._next.items() if name in current}
        self._failing = {name: result for name, result in self._failing.items() if name in current}
        for name, (slot, image) in current.items():
            container = observed.containers.get(name)
            if container is not None and container.state == "running" and self._due(name, now):
                self._submit(slot.slot, name, image)

    def _due(self, name: str, now: datetime) -> bool:
        done, at = self._next.get(name, (0, now))
        if name in self._next and at - timedelta(seconds=2 * self._every) < now < at:
            return False
        waits = (_FIRST_SECONDS[0], _FIRST_SECONDS[1] - _FIRST_SECONDS[0])
        wait = waits[done] if done < len(waits) else self._every
        self._next[name] = (done + 1, now + timedelta(seconds=wait))
        return done > 0

    def _submit(self, slot: str, name: str, image: TrustedImage) -> None:
        recheck, put = self._recheck, self._put

        def job() -> None:
            try:
                result = recheck(name, image)
            except WherryError:
                return
            if result is not None:
                put(GoldenRechecked(slot, name, result))

        self._aide.submit(f"golden {name}", job)

    def take(self, event: GoldenRechecked, entry: Entry) -> WherryError | None:
        """Note a verdict; what is wrong, in words, or None."""
        slot = entry.slots.get(event.slot)
        image = slot.known_good if slot else None
        if slot is None or image is None or container_name(entry.device, slot.slot, image) != event.container:
            return None
        if event.result.ok:
            self._failing.pop(event.container, None)
            return None
        self._failing[event.container] = event.result
        then = "the release before takes its place" if slot.previous else "there is no release before it to go back to"
        reason = f"golden gate, after it was committed: {event.result.detail}; {then}"
        return GateFailed(f"release {image.image.label()}", reason)

    def fallbacks(self, entry: Entry, observed: Observed) -> list[Step]:
        """Known-goods that answer wrongly give way to the release before, unless an application holds off swaps."""
        found: list[Step] = []
        for slot in entry.slots.values() if observed.lock is None else ():
            for name, image in _settled(entry, slot):
                if name in self._failing and slot.previous is not None:
                    found.append(FallBack(slot.slot, slot.previous, slot.port, image, self._failing[name]))
        return found


def _settled(entry: Entry, slot: SlotEntry) -> list[tuple[str, TrustedImage]]:
    """The known-good of a slot with golden cases in which nothing is on trial."""
    image = slot.known_good
    if image is None or slot.trial or not any(isinstance(gate, GoldenGate) for gate in image.image.gates):
        return []
    return [(container_name(entry.device, slot.slot, image), image)]
