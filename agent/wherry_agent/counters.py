"""A model's counters and what happened between two readings of them. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from wherry.errors import MalformedMessage
from wherry.messages import LATENCY_EDGES_US, SlotSample
from wherry_agent.observed import ActiveSlot

_BINS = len(LATENCY_EDGES_US) + 1


@dataclass(frozen=True, slots=True)
class Counters:
    """A model's counters since its process began, or their change.

    Attributes:
        instance: the process that counts; "" where its server does not say.
    """

    requests: int
    failures: int
    latency: tuple[int, ...] = ()
    latency_sum_us: int = 0
    memory_bytes: int | None = None
    instance: str = ""

    @property
    def idle(self) -> bool:
        """Whether nothing was asked."""
        return self.requests == 0 and self.failures == 0


NOTHING = Counters(0, 0, (0,) * _BINS)


def read_counters(document: Any, model: str) -> Counters:
    """The counters of one model in a statistics document.

    Raises:
        MalformedMessage: the document does not hold them.
    """
    try:
        entry = next(entry for entry in document["model_stats"] if entry["name"] == model)
        done, ours = entry["inference_stats"], entry.get("wherry", {})
        latency = tuple(int(count) for count in ours.get("latency", ()))
        numbers = (int(done["success"]["count"]), int(done["fail"]["count"]), int(ours.get("latency_sum_us", 0)))
        memory = int(ours["memory_bytes"]) if "memory_bytes" in ours else None
        instance = str(ours.get("instance", ""))[:64]
    except (StopIteration, KeyError, TypeError, ValueError, AttributeError) as error:
        raise MalformedMessage(f"statistics of model {model}", f"are not readable: {error!r}") from error
    if latency and len(latency) != _BINS:
        raise MalformedMessage(f"statistics of model {model}", f"hold {len(latency)} latency bins, known are {_BINS}")
    if min(*numbers, *latency, memory or 0) < 0:
        raise MalformedMessage(f"statistics of model {model}", "hold a negative count")
    return Counters(numbers[0], numbers[1], latency or NOTHING.latency, numbers[2], memory, instance)


def change(before: Counters, after: Counters) -> Counters:
    """What happened between two readings. Another instance, or a counter that fell, is a process that began at zero."""
    restarted = (
        (before.instance and before.instance != after.instance)
        or after.requests < before.requests
        or after.failures < before.failures
        or any(new < old for old, new in zip(before.latency, after.latency, strict=True))
    )
    base = NOTHING if restarted else before
    return Counters(
        after.requests - base.requests,
        after.failures - base.failures,
        tuple(new - old for old, new in zip(base.latency, after.latency, strict=True)),
        max(0, after.latency_sum_us - base.latency_sum_us),
        after.memory_bytes,
        after.instance,
    )


def slot_sample(slot: ActiveSlot, seconds: float, changed: Counters) -> SlotSample:
    """A change as the record that is sent. An idle window carries no histogram."""
    return SlotSample(
        slot=slot.slot,
        model=slot.release.model,
        version=slot.release.version,
        counter=slot.release.counter,
        seconds=round(seconds, 3),
        requests=changed.requests,
        failures=changed.failures,
        latency=list(changed.latency) if changed.requests else [],
        latency_sum_us=changed.latency_sum_us,
        memory_bytes=changed.memory_bytes,
    )
