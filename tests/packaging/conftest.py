"""Fixtures of the packaging tests: small models, real registries, a store of their own."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from wherry.profile import load_profiles
from wherry_cli.packaging.registry import RegistryClient
from wherry_cli.packaging.store import Store

PASSWORD_FILE = "operator:$2b$04$uXwVT0iZPRANnCKMnChw8ONcAk0VJ1GCA8M5bQgZddU/x/wBvTQiy\n"


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


@pytest.fixture(scope="session")
def locked_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """HOST:PORT of a real registry that asks for operator:secret."""
    folder = tmp_path_factory.mktemp("locked-registry")
    (folder / "htpasswd").write_text(PASSWORD_FILE)
    spec = importlib.util.spec_from_file_location("shared_fixtures", Path(__file__).parent.parent / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    shared = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(shared)
    more = f"auth: {{htpasswd: {{realm: wherry, path: {folder / 'htpasswd'}}}}}\n"
    process, address = shared.serve_registry(folder, more)
    try:
        yield address
    finally:
        process.terminate()
        process.wait(10)


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
