"""What one model did since the process started. Counters only grow; readers take differences."""

from __future__ import annotations

import threading
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Any

from wherry.messages import LATENCY_EDGES_US


@dataclass(frozen=True, slots=True)
class Timing:
    """Nanoseconds that one successful request spent in each part."""

    queue: int
    compute_input: int
    compute_infer: int
    compute_output: int

    @property
    def total(self) -> int:
        """From submission to the encoded answer."""
        return self.queue + self.compute_input + self.compute_infer + self.compute_output


@dataclass(frozen=True, slots=True)
class Counters:
    """A consistent copy of a model's counters."""

    successes: int = 0
    failures: int = 0
    failure_ns: int = 0
    queue_ns: int = 0
    input_ns: int = 0
    infer_ns: int = 0
    output_ns: int = 0
    last_inference_ms: int = 0
    latency: tuple[int, ...] = (0,) * (len(LATENCY_EDGES_US) + 1)
    latency_sum_us: int = 0

    @property
    def success_ns(self) -> int:
        """Nanoseconds of all successful requests."""
        return self.queue_ns + self.input_ns + self.infer_ns + self.output_ns


@dataclass(slots=True)
class ModelStats:
    """The counters of one model; the inference thread adds, the event loop reads."""

    _successes: int = 0
    _failures: int = 0
    _failure_ns: int = 0
    _queue_ns: int = 0
    _input_ns: int = 0
    _infer_ns: int = 0
    _output_ns: int = 0
    _last_ms: int = 0
    _latency: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_EDGES_US) + 1))
    _latency_sum_us: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def succeeded(self, timing: Timing, at_ms: int) -> None:
        """Count a success that ended at `at_ms` (Unix milliseconds)."""
        micros = timing.total // 1000
        with self._lock:
            self._successes += 1
            self._queue_ns += timing.queue
            self._input_ns += timing.compute_input
            self._infer_ns += timing.compute_infer
            self._output_ns += timing.compute_output
            self._last_ms = at_ms
            self._latency[bisect_left(LATENCY_EDGES_US, micros)] += 1
            self._latency_sum_us += micros

    def failed(self, nanoseconds: int = 0) -> None:
        """Count a failure and how long it took."""
        with self._lock:
            self._failures += 1
            self._failure_ns += nanoseconds

    def read(self) -> Counters:
        """The counters now."""
        with self._lock:
            return Counters(
                self._successes,
                self._failures,
                self._failure_ns,
                self._queue_ns,
                self._input_ns,
                self._infer_ns,
                self._output_ns,
                self._last_ms,
                tuple(self._latency),
                self._latency_sum_us,
            )


def _duration(count: int, nanoseconds: int) -> dict[str, int]:
    return {"count": count, "ns": nanoseconds}


def statistics_json(
    name: str, version: str, counters: Counters, memory_bytes: int, instance: str = ""
) -> dict[str, Any]:
    """One entry of the statistics extension's `model_stats`, with our part under "wherry".

    `instance` names the process that counts: counters of another instance began at zero, whatever their values.
    """
    count = counters.successes
    return {
        "name": name,
        "version": version,
        "last_inference": counters.last_inference_ms,
        "inference_count": count,
        "execution_count": count,
        "inference_stats": {
            "success": _duration(count, counters.success_ns),
            "fail": _duration(counters.failures, counters.failure_ns),
            "queue": _duration(count, counters.queue_ns),
            "compute_input": _duration(count, counters.input_ns),
            "compute_infer": _duration(count, counters.infer_ns),
            "compute_output": _duration(count, counters.output_ns),
        },
        "wherry": {
            "latency": list(counters.latency),
            "latency_sum_us": counters.latency_sum_us,
            "memory_bytes": memory_bytes,
            "instance": instance,
        },
    }
