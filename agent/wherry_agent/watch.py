"""Does what serves still answer? Counted here, asked by the aide, decided on by the planner."""

from __future__ import annotations

import math
from collections.abc import Callable

from wherry.release import HttpGate, ReadyGate, TcpGate
from wherry_agent.assignment import TrustedImage
from wherry_agent.entry import Entry, SlotEntry, container_name, same
from wherry_agent.events import Event, HealthChecked
from wherry_agent.intake import Background
from wherry_agent.observed import Observed
from wherry_agent.ports import Prober
from wherry_agent.reporter import serving
from wherry_agent.steps import EnsureServing, Step

_SECONDS = 2.0


class Watch:
    """Health of the slots' containers. Only the control loop's thread calls it.

    Args:
        prober: asks the model servers.
        aide: asks off the loop.
        put: gets a HealthChecked for every answer, or none.
        patience: unanswered checks in a row before a running known-good is started anew.
        tick_seconds: from check to check.

    Attributes:
        healthy: slot to whether what serves it answered when last asked.
    """

    def __init__(
        self, prober: Prober, aide: Background, put: Callable[[Event], None], patience: int, tick_seconds: float
    ) -> None:  # fmt: skip
        self._prober = prober
        self._aide = aide
        self._put = put
        self._patience = patience
        self._tick_seconds = tick_seconds
        self._unready: dict[str, int] = {}
        self._up: set[str] = set()  # answered since it started, as far as is known
        self._revived: dict[str, int] = {}
        self._answered: set[str] = set()
        self.healthy: dict[str, bool] = {}

    def ask(self, entry: Entry, observed: Observed) -> None:
        """Ask everything that serves, and known-goods that do not but should."""
        targets: dict[str, tuple[str, int, TrustedImage]] = {}
        for name, slot in entry.slots.items():
            active = serving(entry, observed, slot)
            if active is None:
                self.healthy.pop(name, None)
            for image in (active[0] if active else None, slot.known_good):
                container = observed.containers.get(container_name(entry.device, name, image)) if image else None
                if container and container.state != "running":
                    self._up.discard(container.name)
                if image and container and container.state == "running":
                    targets[container.name] = (name, container.port, image)
        if not targets:
            return
        prober, put = self._prober, self._put

        def job() -> None:
            for container, (slot, port, image) in targets.items():
                put(HealthChecked(slot, container, _answers(prober, port, image)))

        self._aide.submit("health", job)

    def take(self, event: HealthChecked, entry: Entry, observed: Observed) -> None:
        """Count an answer, or its absence."""
        slot = entry.slots.get(event.slot)
        if slot is None:
            return
        active = serving(entry, observed, slot)
        if active and active[1].name == event.container:
            self.healthy[event.slot] = event.ok
        if event.container == _known_good(entry, event.slot):
            self._unready[event.container] = 0 if event.ok else self._unready.get(event.container, 0) + 1
            if event.ok:
                self._answered.add(event.container)
                self._up.add(event.container)
                self._revived.pop(event.container, None)

    def revivals(self, entry: Entry) -> list[Step]:
        """Known-goods that run but have not answered for a while are started anew."""
        found: list[Step] = []
        for name, slot in sorted(entry.slots.items()):
            good, unready = slot.known_good, self._unready.get(_known_good(entry, name), 0)
            if good and not slot.trial and unready >= self._patience_with(_known_good(entry, name), good):
                found.append(EnsureServing(name, good, slot.port, restart=True))
        return found

    def _patience_with(self, container: str, image: TrustedImage) -> int:
        """What has not answered since it started gets the time to start that its owner gave it."""
        if container in self._up:
            return self._patience
        return max(self._patience, math.ceil(image.image.run.start_seconds / self._tick_seconds))

    def revived(self, container: str) -> None:
        """A known-good was started anew: it gets its time to answer again."""
        self._unready[container] = 0
        self._up.discard(container)
        self._revived[container] = self._revived.get(container, 0) + 1

    def settled(self, entry: Entry) -> frozenset[str]:
        """Slots whose known-good has answered to this agent, or was started anew in vain, and those without one."""
        names = {name: _known_good(entry, name) for name in entry.slots}
        return frozenset(
            slot for slot, name in names.items() if not name or name in self._answered | set(self._revived)
        )

    def unknown(self, container: str) -> None:
        """A known-good may have been made anew: it must answer before callers are turned to it again."""
        self._answered.discard(container)

    def broken(self, entry: Entry, observed: Observed) -> frozenset[str]:
        """Slots whose known-good does not answer although it was started anew twice.

        And those where the release before it serves callers, as it did for an agent that ran here earlier: the
        known-good must have answered once before they are turned back to it.
        """
        return frozenset(
            name
            for name, slot in entry.slots.items()
            if self._revived.get(_known_good(entry, name), 0) >= 2 or self._fell_back(entry, slot, observed)
        )

    def _fell_back(self, entry: Entry, slot: SlotEntry, observed: Observed) -> bool:
        if slot.known_good is None or slot.trial or _known_good(entry, slot.slot) in self._answered:
            return False
        active = serving(entry, observed, slot)
        return active is not None and same(active[0], slot.previous)


def _known_good(entry: Entry, slot: str) -> str:
    """Name of the container of a slot's known-good: what is counted of one release says nothing about the next."""
    image = entry.slots[slot].known_good
    return container_name(entry.device, slot, image) if image else ""


def _answers(prober: Prober, port: int, image: TrustedImage) -> bool:
    """Asked as the release's own gates ask; an image that cannot be asked is well as long as it runs."""
    base_url = f"http://127.0.0.1:{port}"
    for gate in image.image.gates:
        if isinstance(gate, HttpGate):
            return prober.status(base_url, gate.path, _SECONDS) == gate.status
        if isinstance(gate, TcpGate):
            return prober.keeps_connection(port, _SECONDS)
    if image.image.runtime == "custom" and not any(isinstance(gate, ReadyGate) for gate in image.image.gates):
        return True
    return prober.ready(base_url, image.image.model, _SECONDS)
