"""Which ONNX models cost the same whatever is in a request's tensors."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from wherry_cli.packaging.model import read_model
from wherry_cli.packaging.steady import is_steady

FLOAT, WHOLE = TensorProto.FLOAT, TensorProto.INT64


def written(tmp_path, *nodes, functions=()):
    """A model of x (numbers) and n (a size) with the constant `two`."""
    graph = helper.make_graph(
        list(nodes),
        "m",
        [helper.make_tensor_value_info("x", FLOAT, [1, 4]), helper.make_tensor_value_info("n", WHOLE, [2])],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        [numpy_helper.from_array(np.array([2, 2], np.int64), "two")],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    path = tmp_path / "m.onnx"
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=list(functions))
    onnx.save(model, str(path))
    return path


def node(kind, *names, **more):
    """An operator: its inputs, then its output."""
    return helper.make_node(kind, list(names[:-1]), [names[-1]], **more)


def loop(times):
    """A Loop that runs as often as a tensor says."""
    body = helper.make_graph(
        [node("Identity", "c", "co"), node("Sin", "s", "so")],
        "body",
        [
            helper.make_tensor_value_info("i", WHOLE, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("s", FLOAT, [1, 4]),
        ],
        [helper.make_tensor_value_info("co", TensorProto.BOOL, []), helper.make_tensor_value_info("so", FLOAT, [1, 4])],
    )
    return node("Loop", times, "", "x", "y", body=body)


@pytest.mark.parametrize(
    ("steady", "nodes"),
    [
        (True, [node("Sin", "x", "y")]),
        (True, [node("Reshape", "x", "two", "y")]),
        (True, [node("Shape", "x", "s"), node("Mul", "s", "two", "t"), node("Tile", "x", "t", "y")]),
        (False, [node("Reshape", "x", "n", "y")]),
        (False, [node("Mul", "n", "two", "t"), node("Tile", "x", "t", "y")]),
        (False, [node("Tile", "x", "t", "y"), node("Mul", "n", "two", "t")]),
        (False, [node("ConstantOfShape", "n", "y")]),
        (False, [node("NonZero", "x", "y")]),
        (False, [loop("two")]),
        (False, [node("Sin", "x", "y", domain="own")]),
    ],
    ids=["plain", "size in the file", "size of a shape", "size in a value", "size computed from a value",
         "nodes out of order", "tensor as large as a value says", "unknown", "loop", "another domain"],
)  # fmt: skip
def test_sizes_that_come_from_values_are_seen(tmp_path, steady, nodes):
    assert is_steady(written(tmp_path, *nodes)) is steady


def test_functions_of_the_file_are_not_followed(tmp_path):
    own = helper.make_function("own", "Sin", ["a"], ["b"], [node("Cos", "a", "b")], [helper.make_opsetid("", 17)])
    assert not is_steady(written(tmp_path, node("Sin", "x", "y"), functions=[own]))


def test_packaging_writes_it_into_model_json(conv_model):
    found = read_model(conv_model, "m", "1")
    assert found.steady
    assert found.model_file("CPUExecutionProvider").steady
