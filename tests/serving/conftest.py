"""Tiny models built on the spot, and servers for them: in a thread, or as the process that images start."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from wherry.elements import Tensor, tensor_to_golden
from wherry.release import GoldenCase, GoldenFile, ModelFile, Signature, TensorSpec
from wherry_serving.app import DrainingServer, Options, make_server
from wherry_serving.dataplane import DataPlane
from wherry_serving.models import Model, ModelSource, load_model, read_models

ELEMENTS = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}
DEADLINE = 20.0


def spec(name: str, datatype: Any, shape: list[int]) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape)


def wait_for(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"not in {DEADLINE:g} s: {what}"
        time.sleep(0.01)


@dataclass
class Shop:
    """Makes model folders."""

    folder: Path

    def save(
        self, name: str, nodes: list[Any], inputs: list[TensorSpec], outputs: list[TensorSpec], **more: Any
    ) -> Path:
        """A model folder with an ONNX graph; `more` changes model.json."""
        graph = helper.make_graph(nodes, name, [_value(item) for item in inputs], [_value(item) for item in outputs])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        folder = self.folder / name
        folder.mkdir(parents=True)
        onnx.save(model, str(folder / "model.onnx"))
        self.describe(name, "model.onnx", "onnx", inputs, outputs, **more)
        return folder

    def describe(
        self, name: str, file: str, runtime: Any, inputs: list[TensorSpec], outputs: list[TensorSpec], **more: Any
    ) -> None:
        values: dict[str, Any] = {
            "name": name,
            "version": "1",
            "file": file,
            "runtime": runtime,
            "provider": "CPUExecutionProvider",
            "precision": "fp32",
            "signature": Signature(inputs=inputs, outputs=outputs),
            **more,
        }
        text = ModelFile(**values).model_dump_json(by_alias=True)
        (self.folder / name / "model.json").write_text(text)

    def copy(self, name: str, source: Path, runtime: str, inputs: Any, outputs: Any, **more: Any) -> Path:
        """A model folder with a ready-made file."""
        folder = self.folder / name
        folder.mkdir(parents=True)
        shutil.copy(source, folder / source.name)
        self.describe(name, source.name, runtime, inputs, outputs, **more)
        return folder

    def golden(self, name: str, inputs: Sequence[Tensor]) -> None:
        """A golden.json with one case."""
        case = GoldenCase(name="first", inputs=[tensor_to_golden(tensor) for tensor in inputs], outputs=[])
        text = GoldenFile(model=name, cases=[case]).model_dump_json(by_alias=True)
        (self.folder / name / "golden.json").write_text(text)

    def identity(self, name: str, datatype: str = "FP32", shape: list[int] | None = None, **more: Any) -> Path:
        """y = x."""
        shape = [-1, 4] if shape is None else shape
        nodes = [helper.make_node("Identity", ["x"], ["y"])]
        return self.save(name, nodes, [spec("x", datatype, shape)], [spec("y", datatype, shape)], **more)

    def arithmetic(self, name: str = "sums", **more: Any) -> Path:
        """total = a + b, difference = a - b."""
        nodes = [helper.make_node("Add", ["a", "b"], ["total"]), helper.make_node("Sub", ["a", "b"], ["difference"])]
        inputs = [spec("a", "FP32", [-1, 3]), spec("b", "FP32", [-1, 3])]
        outputs = [spec("total", "FP32", [-1, 3]), spec("difference", "FP32", [-1, 3])]
        return self.save(name, nodes, inputs, outputs, **more)


def _value(item: TensorSpec) -> Any:
    shape = [f"n{index}" if size < 0 else size for index, size in enumerate(item.shape)]
    return helper.make_tensor_value_info(item.name, ELEMENTS[item.datatype], shape)


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path / "models")


@dataclass
class SlowRuntime:
    """y = x, but only when the test lets it."""

    file: ModelFile
    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    problem: Exception | None = None
    platform: str = "slow"
    keeps_state: bool = False
    provider: str = "CPUExecutionProvider"

    @property
    def signature(self) -> Signature:
        return self.file.signature

    def run(self, inputs: Any, outputs: Sequence[str]) -> list[Any]:
        self.entered.release()
        assert self.go.acquire(timeout=DEADLINE)
        if self.problem is not None:
            raise self.problem
        return [inputs["x"] for _ in outputs]

    def reset(self) -> None:
        return


@dataclass
class Running:
    """A server in a thread of this process."""

    port: int
    server: DrainingServer
    thread: threading.Thread

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def ask(
        self, path: str, body: bytes | dict[str, Any] | None = None, method: str = "", **headers: str
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, parsed JSON (or bytes) and headers of one request on its own connection."""
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        try:
            fields = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method or ("GET" if data is None else "POST"), path, data, fields)
            reply = connection.getresponse()
            found, names = reply.read(), {name.lower(): value for name, value in reply.getheaders()}
        finally:
            connection.close()
        is_json = names.get("content-type") == "application/json" and "content-encoding" not in names
        return reply.status, json.loads(found) if is_json and found else found, names

    def infer(self, model: str, *tensors: dict[str, Any], **more: Any) -> tuple[int, Any, dict[str, str]]:
        return self.ask(f"/v2/models/{model}/infer", {"inputs": list(tensors), **more})

    @property
    def ready(self) -> bool:
        return self.ask("/v2/health/ready")[0] == 200


Start = Callable[..., Running]


@pytest.fixture
def start(shop: Shop) -> Iterator[Start]:
    """Start servers for what the shop made; they are stopped afterwards."""
    started: list[Running] = []

    def begin(
        options: Options | None = None, loader: Callable[[ModelSource], Model] = load_model, wait: bool = True
    ) -> Running:
        plane = DataPlane(read_models(shop.folder), loader=loader)
        listener = socket.create_server(("127.0.0.1", 0))
        executor = ThreadPoolExecutor(1)
        server = make_server(plane, options or Options(), executor)

        def run() -> None:
            with listener, executor:
                server.run(sockets=[listener])
                assert server.end()

        thread = threading.Thread(target=run, daemon=True)
        running = Running(listener.getsockname()[1], server, thread)
        thread.start()
        started.append(running)
        if wait:
            wait_for(lambda: running.ready, "the server is ready")
        return running

    yield begin
    for running in started:
        running.server.should_exit = True
        running.thread.join(DEADLINE)
        assert not running.thread.is_alive()


@dataclass
class Slow:
    """A loader whose only model waits for the test."""

    runtime: SlowRuntime | None = None

    def load(self, source: ModelSource) -> Model:
        self.runtime = SlowRuntime(source.file)
        inputs = {item.name: item for item in source.file.signature.inputs}
        return Model(source.file, self.runtime, inputs, {item.name: item for item in source.file.signature.outputs})


@pytest.fixture
def slow(shop: Shop) -> Iterator[Slow]:
    shop.identity("slow")
    made = Slow()
    yield made
    if made.runtime is not None:
        made.runtime.go.release(100)


@dataclass
class Process:
    """`python -m wherry_serving` as images start it."""

    process: subprocess.Popen[str]
    port: int
    log: list[str]

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        return self.process.wait(DEADLINE)


@pytest.fixture
def launch(shop: Shop) -> Iterator[Callable[..., Process]]:
    """Start the real program on a free port and wait until it is ready."""
    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: str) -> Process:
        command = [sys.executable, "-m", "wherry_serving", "--models", str(shop.folder)]
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", "0", *arguments], stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stderr is not None
        port, log = 0, []
        for line in process.stderr:
            log.append(line)
            found = re.search(r"listening on \S+ port (\d+)", line)
            port = int(found[1]) if found else port
            if line.rstrip().endswith(" ready"):
                return Process(process, port, log)
        pytest.fail("the server ended: " + "".join(log))

    yield begin
    for process in started:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


@pytest.fixture
def numbers() -> np.random.Generator:
    return np.random.default_rng(20261122)
