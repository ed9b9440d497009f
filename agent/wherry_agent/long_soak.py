"""The soak goes on after the commit: crashes for as long as a release serves, its traffic for the first hour. Pure.

Only the first hour of traffic is judged: what grows worse later is more likely the callers, or the load, and going
back would not help. What is known of crashes is not kept: a restarted agent counts anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from wherry.errors import MalformedMessage, WherryError
from wherry.messages import GateResult
from wherry_agent import gates
from wherry_agent.assignment import TrustedImage
from wherry_agent.counters import Counters, change, read_counters
from wherry_agent.entry import SlotEntry, same
from wherry_agent.events import Looked
from wherry_agent.gates import Traffic, soak_gate
from wherry_agent.observed import Container
from wherry_agent.ports import Engine, Prober, Route

CRASHES = 5
"""So many within the window are too many. The engine brings a container back after a minute at the latest."""
WINDOW = timedelta(minutes=10)
PROBATION = timedelta(hours=1)
_BLIND = timedelta(minutes=2)
"""After so long without a look nobody knows when a container died: it counts as one crash."""
_STATS_SECONDS = 2.0


def look(
    engine: Engine, prober: Prober, route: Route, slot: str, container: Container, image: TrustedImage, count: bool
) -> Looked:
    """How often the engine brought a container back, why, and what its model server counted. Asks the network.

    Args:
        engine: asked about the container.
        prober: asks its model server.
        route: asked instead where the server does not count.
        slot: where it serves.
        container: as last observed.
        image: what it runs.
        count: whether its model server is asked, too.

    Raises:
        EngineError: the engine does not answer.
    """
    found = engine.inspect(container.name) if container.young else None
    words = engine.last_words(container.name) if found and found.restarts else ""
    statistics = _statistics(prober, route, container.port, image) if count and container.state == "running" else None
    return Looked(slot, container.name, found.restarts if found else None, words, statistics)


def _statistics(prober: Prober, route: Route, port: int, image: TrustedImage) -> Any:
    if image.image.runtime == "custom":
        return route.statistics(port, image.image.model)
    try:
        return prober.stats(f"http://127.0.0.1:{port}", image.image.model, _STATS_SECONDS)
    except WherryError:
        return None


def on_probation(slot: SlotEntry, now: datetime) -> bool:
    """Whether the traffic of a slot's known-good is still judged."""
    return slot.since is not None and timedelta(0) <= now - slot.since <= PROBATION


def crash_loop(crashes: Sequence[datetime], now: datetime, words: str) -> GateResult | None:
    """Too many crashes within the window; None when there were fewer."""
    recent = [at for at in crashes if timedelta(0) <= now - at <= WINDOW]
    if len(recent) < CRASHES:
        return None
    seconds = (now - min(recent)).total_seconds()
    detail = f"the container crashed {len(recent)} times in {seconds:.0f} s{': ' + words if words else ''}"
    numbers = {"crashes": float(len(recent)), "seconds": round(seconds, 1), "most_crashes": float(CRASHES - 1)}
    return GateResult(kind="soak", ok=False, detail=detail, seconds=seconds, numbers=numbers)


def usual_traffic(slot: SlotEntry) -> Traffic | None:
    """What is usual here: the known-good's own traffic in its soak, else that of the version before, if measured."""
    last = slot.deployment
    if last is None or slot.known_good is None or not same(last.image, slot.known_good):
        return None
    numbers = next((gate.numbers for gate in last.gates if gate.kind == "soak"), {})
    for prefix in ("", "before_"):
        requests, failures = (int(numbers.get(prefix + name, 0)) for name in ("requests", "failures"))
        if f"{prefix}mean_ms" in numbers and requests + failures >= soak_gate(slot.known_good).least:
            return Traffic(requests, failures, numbers[f"{prefix}mean_ms"])
    return None


@dataclass(slots=True)
class _Seen:
    """One container so far.

    Attributes:
        at: when it was last looked at.
        usual: what its traffic is held against; its own first requests where nothing is known.
        ok: the last verdict; None before the first.
    """

    at: datetime
    restarts: int | None = None
    crashes: list[datetime] = field(default_factory=list)
    words: str = ""
    start: Counters | None = None
    began: datetime | None = None
    usual: Traffic | None = None
    traffic: Traffic | None = None
    ok: bool | None = None


class LongSoak:
    """Remembers what was seen of known-goods and says when a verdict changes."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}

    def keep(self, names: frozenset[str]) -> None:
        """Forget every container but these."""
        self._seen = {name: seen for name, seen in self._seen.items() if name in names}

    def wants(self, container: Container, count: bool) -> bool:
        """Whether there is something to ask: the engine's list says by itself what has run for long."""
        return container.young or count or container.name not in self._seen or not self._seen[container.name].ok

    def take(self, event: Looked, slot: SlotEntry, image: TrustedImage, now: datetime) -> GateResult | None:
        """Note what was found. The verdict where it is another than the last one, else None."""
        seen = self._seen.setdefault(event.container, _Seen(now, usual=usual_traffic(slot)))
        _count_crashes(seen, event, now)
        _count_traffic(seen, event, image, now)
        if not on_probation(slot, now):
            seen.traffic = None
        result = crash_loop(seen.crashes, now, seen.words) or _by_traffic(seen, image, now)
        changed, seen.ok, seen.at = result.ok != seen.ok, result.ok, now
        return result if changed else None


def _count_crashes(seen: _Seen, event: Looked, now: datetime) -> None:
    seen.crashes = [at for at in seen.crashes if timedelta(0) <= now - at <= WINDOW]
    if event.restarts is None:
        return
    if seen.restarts is not None:
        # The engine counts from zero again when somebody started it.
        more = event.restarts - seen.restarts if event.restarts >= seen.restarts else event.restarts
        more = min(more, 1 if abs(now - seen.at) > _BLIND else CRASHES)
        seen.crashes += [now] * more
        seen.words = event.words if more and event.words else seen.words
    seen.restarts = event.restarts


def _count_traffic(seen: _Seen, event: Looked, image: TrustedImage, now: datetime) -> None:
    if event.statistics is None:
        return
    try:
        counters = read_counters(event.statistics, image.image.model)
    except MalformedMessage:
        return
    if seen.start is None:
        seen.start, seen.began = counters, now
    changed = change(seen.start, counters)
    seen.traffic = Traffic.of(changed.requests, changed.failures, changed.latency_sum_us)
    if seen.usual is None and changed.requests + changed.failures >= soak_gate(image).least:
        seen.usual, seen.start, seen.began = seen.traffic, counters, now


def _by_traffic(seen: _Seen, image: TrustedImage, now: datetime) -> GateResult:
    seconds = (now - (seen.began or now)).total_seconds()
    return gates.soak(soak_gate(image), seen.usual, seen.traffic, 0, seconds)
