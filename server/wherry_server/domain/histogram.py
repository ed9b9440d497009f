"""Latency histograms with the contract's fixed edges: they merge by addition, and percentiles are read from them."""

from __future__ import annotations

from collections.abc import Sequence

from wherry.messages import LATENCY_EDGES_US

BINS = len(LATENCY_EDGES_US) + 1
_EMPTY = (0,) * BINS


def merge(one: Sequence[int], other: Sequence[int]) -> list[int]:
    """Two histograms as one; an empty or wrong-sized one counts as zeros."""
    if len(one) != BINS or len(other) != BINS:
        return list(next((counts for counts in (one, other) if len(counts) == BINS), _EMPTY))
    return [a + b for a, b in zip(one, other, strict=True)]


def percentile(counts: Sequence[int], fraction: float) -> int | None:
    """The latency below which a fraction of requests stayed, microseconds; None without requests.

    Within a bin it is interpolated; in the last, unbounded bin it is the bin's lower edge.
    """
    total = sum(counts)
    if total == 0 or len(counts) != BINS:
        return None
    rank, seen = fraction * total, 0
    for index, count in enumerate(counts):
        if count and seen + count >= rank:
            low = LATENCY_EDGES_US[index - 1] if index else 0
            high = LATENCY_EDGES_US[index] if index < len(LATENCY_EDGES_US) else low
            return round(low + (high - low) * max(0.0, rank - seen) / count)
        seen += count
    return LATENCY_EDGES_US[-1]
