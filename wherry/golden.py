"""Golden cases: is what a model answers what it answered when it was packaged?

Rules (measured over x86, aarch64, fp32, fp16 and int8 models):

- Floats: the largest |observed - expected| relative to max |expected| stays within the tolerance, the cosine similarity
  reaches its bound, and the top class of each row stays unless the golden itself was nearly undecided. NaN and Inf are
  refused.
- 8-bit integers under the int8 class's tolerance are quantized numbers: the same rule, one step always allowed.
- Everything else (BYTES, BOOL, other integers) is equal or wrong.

Plain Python: the agent has no numpy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import mul, sub
from typing import cast

from wherry.elements import FLOATS, Tensor
from wherry.release import TOLERANCES, fraction

_NOISE = 1e-6
"""Expected values all smaller than this are compared absolutely: relative to them there is only rounding."""
_QUANTIZED_FROM = fraction(TOLERANCES["int8"][0])


@dataclass(frozen=True, slots=True)
class Comparison:
    """What comparing a golden case's outputs gave.

    Attributes:
        ok: every output is within its bounds.
        worst_error: largest |observed - expected| / max |expected| of all outputs; inf when not comparable.
        worst_cosine: smallest cosine similarity of all outputs; 1.0 where it has no meaning.
        margin: worst_error / tolerance; more than 1 is a failure. Telemetry shows how it creeps.
        detail: one sentence with the deciding tensor and numbers.
    """

    ok: bool
    worst_error: float
    worst_cosine: float
    margin: float
    detail: str


@dataclass(frozen=True, slots=True)
class _Finding:
    """One output compared; `problem` is empty when it is within bounds."""

    name: str
    error: float
    cosine: float
    problem: str = ""


@dataclass(frozen=True, slots=True)
class _Bounds:
    tolerance: float
    cosine: float
    argmax: bool


def compare(
    expected: Sequence[Tensor], observed: Sequence[Tensor], tolerance: float, cosine: float, argmax: bool
) -> Comparison:
    """Compare the outputs of one golden case.

    Args:
        expected: the outputs recorded at packaging time.
        observed: the outputs now; ones that the golden case does not name are ignored.
        tolerance: largest allowed |observed - expected| / max |expected|.
        cosine: smallest allowed cosine similarity.
        argmax: also compare the top class along the last axis.
    """
    if not expected:
        return Comparison(False, math.inf, 0.0, math.inf, "The golden case has no outputs to compare")
    bounds = _Bounds(tolerance, cosine, argmax)
    by_name = {tensor.name: tensor for tensor in observed}
    findings = [_check(tensor, by_name.get(tensor.name), bounds) for tensor in expected]
    worst = max(findings, key=lambda finding: finding.error)
    failed = [finding for finding in findings if finding.problem]
    least = min(finding.cosine for finding in findings)
    if failed:
        detail = f"Output {failed[0].name!r} {failed[0].problem}"
    else:
        detail = (
            f"{len(findings)} output(s) within {tolerance:g}: largest relative error {worst.error:.3g} "
            f"in {worst.name!r}, cosine {least:.6f}"
        )
    return Comparison(not failed, worst.error, least, _margin(worst.error, tolerance), detail)


def same_classes(before: Sequence[Tensor], now: Sequence[Tensor], tolerance: float) -> Comparison:
    """Whether another version of a model names the same top class in every row, whatever the numbers.

    Rows that were undecided within 2 x tolerance of the largest value agree with anything; outputs without classes
    (whole numbers, one element a row) are not looked at, but must be there in the same form.
    """
    by_name = {tensor.name: tensor for tensor in now}
    for tensor in before:
        other = by_name.get(tensor.name)
        problem = _form_problem(tensor, other) or _class_problem(tensor, cast(Tensor, other), tolerance)
        if problem:
            return Comparison(False, math.inf, 0.0, math.inf, f"Output {tensor.name!r} {problem}")
    return Comparison(True, 0.0, 1.0, 0.0, "The same top classes")


def _class_problem(before: Tensor, now: Tensor, tolerance: float) -> str:
    if before.datatype not in FLOATS or not before.data:
        return ""
    wanted, found = cast(Sequence[float], before.values()), cast(Sequence[float], now.values())
    if not all(map(math.isfinite, found)):
        return "holds NaN or Inf, expected finite numbers"
    return _moved_class(before, wanted, found, 2 * tolerance * _scale(max(map(abs, wanted)), True, tolerance))


def _margin(error: float, tolerance: float) -> float:
    if error == 0:
        return 0.0
    return error / tolerance if tolerance > 0 else math.inf


def _check(expected: Tensor, observed: Tensor | None, bounds: _Bounds) -> _Finding:
    wrong = _form_problem(expected, observed)
    if wrong or observed is None:
        return _Finding(expected.name, math.inf, 0.0, wrong)
    if expected.datatype in FLOATS:
        return _check_numbers(expected, observed, bounds)
    if expected.datatype in ("INT8", "UINT8") and bounds.tolerance >= _QUANTIZED_FROM:
        return _check_numbers(expected, observed, bounds)
    return _check_equal(expected, observed)


def _form_problem(expected: Tensor, observed: Tensor | None) -> str:
    if observed is None:
        return "is missing from the answer"
    if (observed.datatype, observed.shape) != (expected.datatype, expected.shape):
        was = f"{observed.datatype}{list(observed.shape)}"
        return f"is {was}, expected {expected.datatype}{list(expected.shape)}"
    return ""


def _check_equal(expected: Tensor, observed: Tensor) -> _Finding:
    if expected.data == observed.data:
        return _Finding(expected.name, 0.0, 1.0)
    wanted, found = expected.values(), observed.values()
    index = next((i for i, (a, b) in enumerate(zip(wanted, found, strict=False)) if a != b), 0)
    problem = f"has {found[index]!r} at {index}, expected exactly {wanted[index]!r}"
    return _Finding(expected.name, math.inf, 0.0, problem)


def _check_numbers(expected: Tensor, observed: Tensor, bounds: _Bounds) -> _Finding:
    name, floats = expected.name, expected.datatype in FLOATS
    wanted, found = cast(Sequence[float], expected.values()), cast(Sequence[float], observed.values())
    if not len(wanted):
        return _Finding(name, 0.0, 1.0)
    if not all(map(math.isfinite, found)):
        return _Finding(name, math.inf, 0.0, "holds NaN or Inf, expected finite numbers")
    if not all(map(math.isfinite, wanted)):
        return _Finding(name, math.inf, 0.0, "of the golden case itself holds NaN or Inf, so nothing can match it")
    peak = max(map(abs, wanted))
    scale = _scale(peak, floats, bounds.tolerance)
    error = max(map(abs, map(sub, found, wanted))) / scale
    similarity = _cosine(wanted, found) if floats and peak >= _NOISE else 1.0
    moved = _moved_class(expected, wanted, found, 2 * bounds.tolerance * scale) if bounds.argmax else ""
    return _Finding(name, error, similarity, _problem(error, similarity, moved, bounds))


def _scale(peak: float, floats: bool, tolerance: float) -> float:
    """What an error is relative to. For quantized numbers one step is never more than the tolerance."""
    if floats:
        return peak if peak >= _NOISE else 1.0
    return max(peak, 1 / tolerance)


def _problem(error: float, similarity: float, moved: str, bounds: _Bounds) -> str:
    if error > bounds.tolerance:
        also = f", {moved}" if moved else ""
        return f"is off by {error:.3g} relative to its largest value, allowed {bounds.tolerance:g}{also}"
    if similarity < bounds.cosine:
        return f"has cosine similarity {similarity:.6f}, at least {bounds.cosine:g} is needed"
    return moved


def _cosine(wanted: Sequence[float], found: Sequence[float]) -> float:
    """Cosine similarity; 0.0 when `found` is all zero. Scaled first, so that squares cannot overflow."""
    top = max(map(abs, wanted))
    other = max(map(abs, found))
    if other == 0:
        return 0.0
    left = [value / top for value in wanted]
    right = [value / other for value in found]
    return _dot(left, right) / math.sqrt(_dot(left, left) * _dot(right, right))


def _dot(left: list[float], right: list[float]) -> float:
    return math.fsum(map(mul, left, right))


def _rows(shape: tuple[int, ...], count: int) -> Iterator[tuple[int, int]]:
    width = shape[-1] if shape else 1
    if width > 1:
        yield from ((start, start + width) for start in range(0, count, width))


def _moved_class(tensor: Tensor, wanted: Sequence[float], found: Sequence[float], undecided: float) -> str:
    """What to say when the top class of a row changed although the golden was decided about it."""
    for number, (start, stop) in enumerate(_rows(tensor.shape, len(wanted))):
        row, now = list(wanted[start:stop]), list(found[start:stop])
        top, top_now = row.index(max(row)), now.index(max(now))
        if top != top_now and row[top] - row[top_now] >= undecided:
            return f"row {number} names class {top_now} instead of {top}"
    return ""
