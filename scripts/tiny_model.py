"""The smallest model that tells its versions apart, for labs and tests."""

from __future__ import annotations

from pathlib import Path


def write_tiny(path: Path, weight: float = 2.0) -> Path:
    """Write a model that multiplies four numbers by a weight, so that each version answers differently; its path."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["y"])],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(np.array([weight], np.float32), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path
