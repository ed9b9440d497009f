"""Prometheus text. Triton's names, so that dashboards made for it work, plus one histogram in seconds.

Eight families of plain counters are less code than a client library's registry, and need none of its memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from wherry.messages import LATENCY_EDGES_US
from wherry_serving.stats import Counters

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
_HISTOGRAM = "wherry_inference_request_duration_seconds"
_COUNTERS: tuple[tuple[str, str, Callable[[Counters], int]], ...] = (
    ("nv_inference_request_success", "Successful inference requests", lambda c: c.successes),
    ("nv_inference_request_failure", "Failed inference requests", lambda c: c.failures),
    ("nv_inference_count", "Inferences performed", lambda c: c.successes),
    ("nv_inference_exec_count", "Model executions performed", lambda c: c.successes),
    ("nv_inference_request_duration_us", "Cumulative request duration, microseconds", lambda c: c.success_ns // 1000),
    ("nv_inference_queue_duration_us", "Cumulative time in the queue, microseconds", lambda c: c.queue_ns // 1000),
    (
        "nv_inference_compute_infer_duration_us",
        "Cumulative time of model executions, microseconds",
        lambda c: c.infer_ns // 1000,
    ),
)


@dataclass(frozen=True, slots=True)
class ModelCounters:
    """A model's labels and counters."""

    model: str
    version: str
    counters: Counters

    @property
    def labels(self) -> str:
        """Names and versions hold no character that would need escaping (see `wherry.identity`)."""
        return f'model="{self.model}",version="{self.version}"'


def render(models: Sequence[ModelCounters], pending: int, memory_bytes: int) -> bytes:
    """The exposition text.

    Args:
        models: each model's counters.
        pending: requests waiting or running.
        memory_bytes: resident memory of the process.
    """
    lines: list[str] = []
    for name, text, value in _COUNTERS:
        lines += [f"# HELP {name} {text}", f"# TYPE {name} counter"]
        lines += [f"{name}{{{item.labels}}} {value(item.counters)}" for item in models]
    lines += [f"# HELP {_HISTOGRAM} Latency of successful requests", f"# TYPE {_HISTOGRAM} histogram"]
    for item in models:
        lines += _histogram(item)
    for name, text, number in (
        ("nv_inference_pending_request_count", "Requests waiting or running", pending),
        ("process_resident_memory_bytes", "Resident memory", memory_bytes),
    ):
        lines += [f"# HELP {name} {text}", f"# TYPE {name} gauge", f"{name} {number}"]
    return ("\n".join(lines) + "\n").encode()


def _histogram(item: ModelCounters) -> list[str]:
    lines, total = [], 0
    for edge, count in zip(LATENCY_EDGES_US, item.counters.latency, strict=False):
        total += count
        lines.append(f'{_HISTOGRAM}_bucket{{{item.labels},le="{edge / 1e6:g}"}} {total}')
    total += item.counters.latency[-1]
    return [
        *lines,
        f'{_HISTOGRAM}_bucket{{{item.labels},le="+Inf"}} {total}',
        f"{_HISTOGRAM}_sum{{{item.labels}}} {item.counters.latency_sum_us / 1e6:g}",
        f"{_HISTOGRAM}_count{{{item.labels}}} {total}",
    ]
