"""How far a quantized model is from its original, over samples: error, direction, and whether the answers agree."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wherry.release import TOLERANCES, Precision, fraction
from wherry_cli.packaging.samples import Sample
from wherry_serving.runtimes import Array, Runtime

_NOISE = 1e-6
_TIMED_SECONDS = 0.5
_TIMED_RUNS = (5, 200)


@dataclass(frozen=True, slots=True)
class Agreement:
    """What comparing two models gave.

    Attributes:
        error: largest |quantized - original| relative to the output's largest value, of all samples.
        cosine: smallest cosine similarity of any sample's output.
        agreement: share of answers that stay. An answer is one row along an output's last axis; it stays when it is
            within the precision's tolerance, or names the same class and points the same way.
    """

    error: float
    cosine: float
    agreement: float


def compare_models(original: Runtime, quantized: Runtime, samples: Sequence[Sample], precision: Precision) -> Agreement:
    """Run both on every sample.

    Raises:
        MalformedMessage, InferenceError: one of them refuses a sample.
    """
    names = [spec.name for spec in original.signature.outputs]
    tolerance, cosine = (fraction(text) for text in TOLERANCES[precision])
    errors, cosines, shares = [0.0], [1.0], []
    for sample in samples:
        wanted = [np.array(item) for item in original.run(sample, names)]
        found = quantized.run(sample, names)
        kept = [_compare(*pair, tolerance, cosine) for pair in zip(wanted, found, strict=True)]
        errors.append(max(item.error for item in kept))
        cosines.append(min(item.cosine for item in kept))
        shares.append(min(item.agreement for item in kept))
    return Agreement(max(errors), min(cosines), float(np.mean(shares)) if shares else 0.0)


def _compare(wanted: Array, found: Array, tolerance: float, cosine: float) -> Agreement:
    if wanted.dtype.kind not in "fiu" or wanted.shape != found.shape or not wanted.size:
        same = wanted.shape == found.shape and bool((wanted == found).all())
        return Agreement(0.0 if same else float("inf"), 1.0, float(same))
    expected, observed = wanted.astype(np.float64), found.astype(np.float64)
    if not np.isfinite(observed).all():
        return Agreement(float("inf"), 0.0, 0.0)
    peak = float(np.abs(expected).max())
    scale = peak if peak >= _NOISE else 1.0
    rows, others = _rows(expected), _rows(observed)
    off = np.abs(rows - others).max(axis=1) / scale
    aligned = _cosines(rows, others)
    same_class = rows.argmax(axis=1) == others.argmax(axis=1)
    stays = (off <= tolerance) | (same_class & (aligned >= cosine) & (rows.shape[1] > 1))
    overall = float(_cosines(expected.reshape(1, -1), observed.reshape(1, -1))[0]) if peak >= _NOISE else 1.0
    return Agreement(float(off.max()), overall, float(stays.mean()))


def _rows(array: Array) -> Array:
    return array.reshape(-1, array.shape[-1]) if array.ndim else array.reshape(1, 1)


def _cosines(left: Array, right: Array) -> Array:
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    dots: Array = (left * right).sum(axis=1)
    return np.divide(dots, lengths, out=np.zeros_like(dots), where=lengths > 0)


def latencies(models: Sequence[Runtime], sample: Sample) -> list[float]:
    """Median milliseconds of one run of each model, measured in turns, so that a busy moment hits all alike."""
    names = [spec.name for spec in models[0].signature.outputs]
    taken: list[list[float]] = [[] for _ in models]
    for model in models:
        model.run(sample, names)
    deadline = time.perf_counter() + _TIMED_SECONDS * len(models)
    few, many = _TIMED_RUNS
    while len(taken[0]) < few or (time.perf_counter() < deadline and len(taken[0]) < many):
        for model, times in zip(models, taken, strict=True):
            began = time.perf_counter()
            model.run(sample, names)
            times.append((time.perf_counter() - began) * 1000)
    return [float(np.median(times)) for times in taken]
