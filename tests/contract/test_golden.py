"""Golden comparison: rounding passes, wrong answers do not, and the reason names tensor and numbers."""

from __future__ import annotations

import math
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.golden import compare
from wherry.release import TOLERANCES, fraction
from wherry.tensors import tensor_from_values

PRECISIONS = ("fp32", "fp16", "int8")
FP32, FP16, INT8 = ((fraction(error), fraction(cosine)) for error, cosine in map(TOLERANCES.__getitem__, PRECISIONS))


def tensor(values, datatype="FP32", shape=None, name="y"):
    return tensor_from_values(name, datatype, shape or [1, len(values)], values)


def check(expected, observed, bounds=FP32, argmax=True):
    tolerance, cosine = bounds
    return compare([expected], [observed], tolerance, cosine, argmax)


def test_rounding_between_machines_passes():
    found = check(tensor([1.0, -2.0, 0.5]), tensor([1.00002, -2.00001, 0.50002]))
    assert found.ok
    assert found.worst_error == pytest.approx(1e-5, rel=0.01)
    assert found.margin == pytest.approx(0.01, rel=0.02)
    assert found.worst_cosine > 0.99999
    assert "'y'" in found.detail


def test_the_error_is_relative_to_the_largest_expected_value():
    assert check(tensor([1000.0, 0.0]), tensor([1000.0, 0.9])).ok
    found = check(tensor([1000.0, 0.0]), tensor([1000.0, 1.1]))
    assert not found.ok
    assert found.margin == pytest.approx(1.1)
    assert "'y' is off by 0.0011" in found.detail


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_inf_are_refused(value):
    assert "NaN or Inf" in check(tensor([1.0, 2.0]), tensor([1.0, value])).detail
    assert not check(tensor([1.0, value]), tensor([1.0, value])).ok


def test_a_small_angle_is_refused_although_each_value_is_near():
    expected, observed = tensor([1.0] + [0.02] * 999), tensor([1.0] + [0.04, 0.0] * 499 + [0.02])
    found = check(expected, observed, FP16)
    assert not found.ok
    assert "cosine" in found.detail


def test_another_top_class_is_named():
    found = check(tensor([0.1, 0.7, 0.2]), tensor([0.7, 0.1, 0.2]))
    assert not found.ok
    assert "row 0 names class 0 instead of 1" in found.detail


def test_an_undecided_golden_does_not_fix_the_top_class():
    assert check(tensor([0.5, 0.5001, 0.0]), tensor([0.5001, 0.5, 0.0])).ok


def test_argmax_looks_at_each_row():
    found = check(tensor([1, 0, 0, 1], shape=[2, 2]), tensor([1, 0, 1, 0], shape=[2, 2]))
    assert "row 1 names class 0 instead of 1" in found.detail
    assert "row" not in check(tensor([1, 0]), tensor([0, 1]), argmax=False).detail


def test_all_zero_is_compared_absolutely():
    assert check(tensor([0.0, 0.0]), tensor([0.0, 1e-5])).ok
    assert not check(tensor([0.0, 0.0]), tensor([0.0, 0.5])).ok
    assert not check(tensor([1.0, 0.0]), tensor([0.0, 0.0])).ok


@pytest.mark.parametrize("datatype", ["INT32", "INT64", "UINT16", "BOOL", "UINT8", "INT8"])
def test_whole_numbers_are_equal_or_wrong(datatype):
    assert check(tensor([1, 0], datatype), tensor([1, 0], datatype)).ok
    found = check(tensor([1, 0], datatype), tensor([1, 1], datatype))
    assert not found.ok
    assert "at 1, expected exactly" in found.detail


def test_bytes_are_equal_or_wrong():
    assert check(tensor([b"cat"], "BYTES"), tensor([b"cat"], "BYTES")).ok
    assert "b'dog' at 0, expected exactly b'cat'" in check(tensor([b"cat"], "BYTES"), tensor([b"dog"], "BYTES")).detail


def test_quantized_outputs_may_move_by_a_step():
    for datatype in ("UINT8", "INT8"):
        assert check(tensor([3, 0], datatype), tensor([2, 1], datatype), INT8).ok
        assert check(tensor([100, 0], datatype), tensor([104, 0], datatype), INT8).ok
        assert not check(tensor([3, 0], datatype), tensor([5, 0], datatype), INT8).ok
        assert not check(tensor([100, 0], datatype), tensor([110, 0], datatype), INT8).ok
    assert not check(tensor([100, 0], "INT32"), tensor([101, 0], "INT32"), INT8).ok


def test_missing_outputs_and_other_forms_are_named():
    expected = tensor([1.0, 2.0])
    assert "'y' is missing" in compare([expected], [], FP32[0], FP32[1], True).detail
    assert "FP32[2, 1], expected FP32[1, 2]" in check(expected, tensor([1.0, 2.0], shape=[2, 1])).detail
    assert "FP64[1, 2], expected FP32" in check(expected, tensor([1.0, 2.0], "FP64")).detail
    assert not compare([], [expected], FP32[0], FP32[1], True).ok


def test_the_worst_of_several_outputs_decides():
    good, bad = tensor([1.0, 0.0], name="good"), tensor([1.0, 0.5], name="bad")
    found = compare([good, bad], [tensor([1.0, 0.9], name="bad"), good], FP32[0], FP32[1], True)
    assert "'bad'" in found.detail
    assert found.worst_error == pytest.approx(0.4)


def test_empty_and_scalar_tensors():
    assert check(tensor([], shape=[0, 4]), tensor([], shape=[0, 4])).ok
    assert compare(
        [tensor_from_values("y", "FP32", [], [1.0])],
        [tensor_from_values("y", "FP32", [], [1.0])],
        FP32[0],
        FP32[1],
        True,
    ).ok


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_a_model_agrees_with_itself(values):
    found = check(tensor(values), tensor(values))
    assert found.ok
    assert found.margin == 0


@given(
    st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=20).filter(
        lambda v: max(map(abs, v)) > 1e-3
    ),
    st.sampled_from([1, -1]),
    st.data(),
)
def test_one_value_far_off_is_always_found(values, sign, data):
    index = data.draw(st.integers(0, len(values) - 1))
    wrong = list(values)
    wrong[index] += sign * 0.01 * max(map(abs, values))
    assert not check(tensor(values), tensor(wrong)).ok


def test_the_comparison_needs_no_numpy():
    import subprocess

    code = "import sys, wherry.golden, wherry.tensors; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
