"""Does what was committed still do well? Golden cases again, and the soak goes on; a no brings the release before back.

The golden cases come again after 10 s, after a minute, and now and then; crashes and traffic are looked at with every
tick (see `wherry_agent.long_soak`).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from wherry.errors import GateFailed, WherryError
from wherry.messages import GateResult
from wherry.release import GoldenGate
from wherry_agent.assignment import TrustedImage
from wherry_agent.endings import after_commit
from wherry_agent.entry import Entry, SlotEntry, container_name, same
from wherry_agent.events import Event, GoldenRechecked, Looked
from wherry_agent.intake import Background
from wherry_agent.long_soak import LongSoak, on_probation
from wherry_agent.observed import Container, Observed
from wherry_agent.steps import FallBack, Step
from wherry_agent.together import falling_back
from wherry_agent.world import Recheck

_FIRST_SECONDS = (10.0, 60.0)
Look = Callable[[str, Container, TrustedImage, bool], Looked]
"""How a container has fared (see `long_soak.look`)."""


class LaterChecks:
    """Judges known-goods after their commit. Only the control loop's thread calls it.

    What it knows is not kept: a restarted agent begins anew, with the checks of the first minute.

    Args:
        recheck: asks a container's golden cases.
        look: asks how a container has fared.
        aide: asks off the loop.
        put: gets a GoldenRechecked or Looked for every answer.
        every: seconds between later golden cases.
    """

    def __init__(
        self, recheck: Recheck, look: Look, aide: Background, put: Callable[[Event], None], every: float
    ) -> None:  # fmt: skip
        self._recheck = recheck
        self._look = look
        self._aide = aide
        self._put = put
        self._every = every
        self._soak = LongSoak()
        self._next: dict[str, tuple[int, datetime]] = {}
        self._failing: dict[str, dict[str, GateResult]] = {}
        self._stuck: dict[str, tuple[str, str]] = {}

    def ask(self, entry: Entry, observed: Observed, now: datetime) -> None:
        """Ask every known-good whose turn it is, while nothing is being tried in its slot."""
        current = {name: (slot, image) for slot in entry.slots.values() for name, image in _settled(entry, slot)}
        self._next = {name: due for name, due in self._next.items() if name in current}
        self._failing = {name: results for name, results in self._failing.items() if name in current}
        self._soak.keep(frozenset(current))
        looks = []
        for name, (slot, image) in current.items():
            container = observed.containers.get(name)
            if container is None or not container.running:
                continue
            count = on_probation(slot, now)
            if self._soak.wants(container, count):
                looks.append((slot.slot, container, image, count))
            golden = any(isinstance(gate, GoldenGate) for gate in image.image.gates)
            if golden and container.state == "running" and self._due(name, now):
                self._submit(slot.slot, name, image)
        if looks:
            self._submit_looks(looks)

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

    def _submit_looks(self, looks: list[tuple[str, Container, TrustedImage, bool]]) -> None:
        look, put = self._look, self._put

        def job() -> None:
            for one in looks:
                try:
                    put(look(*one))
                except WherryError:  # the engine's trouble is reported where it is observed
                    continue

        self._aide.submit("soak", job)

    def take(self, event: GoldenRechecked | Looked, entry: Entry, now: datetime) -> bool:
        """Note an answer; whether it was a verdict."""
        slot = entry.slots.get(event.slot)
        image = slot.known_good if slot else None
        if slot is None or image is None or container_name(entry.device, slot.slot, image) != event.container:
            return False
        result = event.result if isinstance(event, GoldenRechecked) else self._soak.take(event, slot, image, now)
        if result is None:
            return False
        failing = self._failing.setdefault(event.container, {})
        failing.pop(result.kind, None)
        if not result.ok:
            failing[result.kind] = result
        return True

    def stuck(self, step: FallBack, error: WherryError) -> None:
        """The release before cannot take its place, either."""
        self._stuck[step.slot] = (step.rejected.digest, f"{error.thing}: {error.reason}")

    def problem(self, slot: SlotEntry, entry: Entry) -> WherryError | None:
        """What is wrong with a slot's known-good, in words, or None."""
        why = self._why(entry, slot)
        if why is None or slot.known_good is None:
            return None
        digest, words = self._stuck.get(slot.slot, ("", ""))
        if digest == slot.known_good.digest:
            then = f"the release before cannot take its place and is tried again: {words}"
        elif slot.previous:
            then = "the release before takes its place"
        else:
            then = "there is no release before it to go back to"
        return GateFailed(f"release {slot.known_good.image.label()}", f"{after_commit(why)}; {then}")

    def fallbacks(self, entry: Entry, observed: Observed) -> list[Step]:
        """Known-goods that do not do well give way to the release before, unless an application holds off swaps."""
        found: list[Step] = []
        for slot in entry.slots.values() if observed.lock is None else ():
            for _, image in _settled(entry, slot):
                why = self._why(entry, slot)
                if why and slot.previous is not None:
                    step = FallBack(slot.slot, slot.previous, slot.port, image, why)
                    found.append(falling_back(step, entry))
        return found

    def _why(self, entry: Entry, slot: SlotEntry) -> GateResult | None:
        name = container_name(entry.device, slot.slot, slot.known_good) if slot.known_good else ""
        return next(iter(self._failing.get(name, {}).values()), None)


def _settled(entry: Entry, slot: SlotEntry) -> list[tuple[str, TrustedImage]]:
    """The known-good of a slot in which nothing is on trial beyond a download."""
    image, trial = slot.known_good, slot.trial
    if image is None or (trial and (trial.phase not in ("admitted", "fetching") or same(trial.image, slot.previous))):
        return []
    return [(container_name(entry.device, slot.slot, image), image)]
