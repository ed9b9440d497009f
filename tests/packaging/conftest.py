"""Fixtures of the packaging tests: small models, real registries, a store of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from wherry.profile import load_profiles
from wherry_cli.packaging.base import Base
from wherry_cli.packaging.layers import Entry, make_layer
from wherry_cli.packaging.registry import RegistryClient
from wherry_cli.packaging.store import Layer, Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


@pytest.fixture(scope="session")
def profiles():
    return load_profiles()


@pytest.fixture
def client(registry: str) -> Iterator[RegistryClient]:
    with RegistryClient(registry) as opened:
        yield opened


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """Write a linear ONNX model, float[N,4] -> float[N,3], its weights times `scale`."""

    def make(name: str = "linear.onnx", scale: float = 1.0, kind: type = np.float32, seed: int = 1) -> Path:
        weights: NDArray[Any] = (np.random.default_rng(seed).random((4, 3)) * scale).astype(kind)
        element = TensorProto.FLOAT16 if kind is np.float16 else TensorProto.FLOAT
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])],
            "linear",
            [helper.make_tensor_value_info("x", element, ["N", 4])],
            [helper.make_tensor_value_info("y", element, ["N", 3])],
            [numpy_helper.from_array(weights, "w")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        path = tmp_path / name
        path.write_bytes(model.SerializeToString())
        return path

    return make


@pytest.fixture
def random_model(tmp_path: Path) -> Path:
    """A model that never answers the same twice."""
    graph = helper.make_graph(
        [
            helper.make_node("RandomNormalLike", ["x"], ["r"]),
            helper.make_node("Add", ["x", "r"], ["y"]),
        ],
        "random",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8])],
    )
    path = tmp_path / "random.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.fixture
def conv_model(tmp_path: Path) -> Path:
    """A small convolutional classifier of pictures, float[N,3,16,16] -> float[N,4]."""
    random = np.random.default_rng(3)
    weights = {
        "a": random.normal(0, 0.3, (32, 3, 3, 3)),
        "b": random.normal(0, 0.1, (64, 32, 3, 3)),
        "c": random.normal(0, 0.3, (64, 4)),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "a"], ["1"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["1"], ["2"]),
            helper.make_node("Conv", ["2", "b"], ["3"], pads=[1, 1, 1, 1], strides=[2, 2]),
            helper.make_node("Relu", ["3"], ["4"]),
            helper.make_node("GlobalAveragePool", ["4"], ["5"]),
            helper.make_node("Flatten", ["5"], ["6"]),
            helper.make_node("MatMul", ["6", "c"], ["y"]),
        ],
        "classifier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    path = tmp_path / "classifier.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.fixture
def wide_model(tmp_path: Path) -> Path:
    """A model of one matrix product large enough to be worth quantizing, float[N,128] -> float[N,64]."""
    weights = np.random.default_rng(4).normal(0, 0.1, (128, 64)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "wide",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 128])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 64])],
        [numpy_helper.from_array(weights, "w")],
    )
    path = tmp_path / "wide.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.fixture
def tflite_model(tmp_path: Path) -> Path:
    """A TFLite model of one fully connected layer in fp32, float[1,128] -> float[1,64]."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    def tensor(name: str, shape: list[int], buffer: int) -> Any:
        made = schema.TensorT()
        made.name, made.shape, made.buffer, made.type = name, shape, buffer, schema.TensorType.FLOAT32
        return made

    weights = np.random.default_rng(5).normal(0, 0.1, (64, 128)).astype(np.float32)
    empty, full = schema.BufferT(), schema.BufferT()
    full.data = np.frombuffer(weights.tobytes(), np.uint8)
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    code.version = 1
    step = schema.OperatorT()
    step.opcodeIndex, step.inputs, step.outputs = 0, [0, 1, -1], [2]
    step.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    step.builtinOptions = schema.FullyConnectedOptionsT()
    graph = schema.SubGraphT()
    graph.tensors = [tensor("x", [1, 128], 0), tensor("w", [64, 128], 1), tensor("y", [1, 64], 0)]
    graph.inputs, graph.outputs, graph.operators = [0], [2], [step]
    model = schema.ModelT()
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [graph], [empty, full]
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), b"TFL3")
    path = tmp_path / "dense.tflite"
    path.write_bytes(bytes(builder.Output()))
    return path


@pytest.fixture
def quick_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder, with small stand-ins for the base and the wheels, which take long to fetch."""

    def wheels(kind: Any) -> Callable[..., Layer]:
        return lambda *given: make_layer(kind, [Entry(f"opt/{kind}", data=b"wheels")], given[-2])

    def base(wanted: Any, platform: str, store: Store, *_: Any) -> Base:
        return Base((make_layer("base", [Entry("etc/base", data=b"base")], store),))

    monkeypatch.setattr("wherry_cli.packaging.command.base_for", base)
    monkeypatch.setattr("wherry_cli.packaging.command.runtime_layer", wheels("runtime"))
    monkeypatch.setattr("wherry_cli.packaging.command.picture_layer", wheels("picture"))
    return tmp_path / "cache"
