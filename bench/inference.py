"""What the model server adds to an inference: p50 over REST less in-process session.run, beside MLServer.

One connection, JSON, a tiny model, one request at a time; the servers are asked in turn, round by round, so
that a noisy machine disturbs all of them alike. The client writes prepared bytes to a socket and reads the
answer: it costs every server the same.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ports import free_port

ROOT = Path(__file__).parent.parent
WORK = ROOT / "build" / "bench"
ROUNDS, REQUESTS = 6, 400
FEATURES = 8


def tiny_model(path: Path) -> None:
    """Write y = x W for eight features and three outputs."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = np.arange(FEATURES * 3, dtype=np.float32).reshape(FEATURES, 3) / 10
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", FEATURES])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(weights, "w")],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))


def model_folder(model: Path) -> Path:
    """The model as it stands in an image: its file and model.json."""
    folder = WORK / "models" / "tiny"
    tiny_model(folder / "model.onnx")
    spec = {"datatype": "FP32"}
    document = {
        "schema": 1, "name": "tiny", "version": "1", "file": "model.onnx", "runtime": "onnx",
        "provider": "CPUExecutionProvider", "precision": "fp32", "steady": True,
        "signature": {
            "inputs": [spec | {"name": "x", "shape": [-1, FEATURES]}],
            "outputs": [spec | {"name": "y", "shape": [-1, 3]}],
        },
    }  # fmt: skip
    (folder / "model.json").write_text(json.dumps(document))
    model.write_bytes((folder / "model.onnx").read_bytes())
    return folder.parent


class Client:
    """One keep-alive connection that sends the same request again and again."""

    def __init__(self, port: int) -> None:
        body = json.dumps(
            {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, FEATURES], "data": [0.5] * FEATURES}]}
        ).encode()
        head = "POST /v2/models/tiny/infer HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
        self.request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self) -> None:
        """One request and its whole answer; anything but 200 is an error."""
        self.socket.sendall(self.request)
        data = b""
        while b"\r\n\r\n" not in data:
            data += self.socket.recv(65536)
        head, _, body = data.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(data.decode("utf-8", "replace"))
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        while len(body) < length:
            body += self.socket.recv(65536)


@contextmanager
def server(argv: list[str], port: int, cwd: Path, env: dict[str, str]) -> Iterator[None]:
    """A model server as a process of its own, until its model is ready."""
    WORK.mkdir(parents=True, exist_ok=True)
    with (WORK / f"server-{port}.log").open("wb") as log:
        process = subprocess.Popen(argv, cwd=cwd, env=os.environ | env, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    Client(port).ask()
                    break
                except (OSError, RuntimeError, IndexError) as error:
                    if process.poll() is not None or time.monotonic() > deadline:
                        text = (WORK / f"server-{port}.log").read_text("utf-8", "replace")[-1500:]
                        raise RuntimeError(f"{argv[0]} did not start:\n{text}") from error
                    time.sleep(0.2)
            yield
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def mlserver_python() -> Path:
    """MLServer in an environment of its own (its pins are not ours)."""
    venv = ROOT / "build" / "mlserver-venv"
    python = venv / "bin" / "python"
    if not (venv / "bin" / "mlserver").exists():
        print("  installing MLServer from the package index, to compare with …", flush=True)
        uv = str(Path(sys.executable).parent / "uv")
        subprocess.run([uv, "venv", "-q", "--clear", "--python", sys.executable, str(venv)], check=True)
        lock = str(ROOT / "requirements" / "bench-mlserver.txt")
        subprocess.run([uv, "pip", "install", "-q", "-p", str(python), "--require-hashes", "-r", lock], check=True)
    return python


def mlserver_folder(model: Path, port: int) -> Path:
    """MLServer's model repository, with the same model and one process."""
    folder = WORK / "mlserver"
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "host": "127.0.0.1", "http_port": port, "grpc_port": free_port(), "metrics_port": free_port(),
        "parallel_workers": 0, "debug": False,
    }  # fmt: skip
    (folder / "settings.json").write_text(json.dumps(settings))
    implementation = {"name": "tiny", "implementation": "mlserver_model.TinyModel", "parameters": {"uri": str(model)}}
    (folder / "model-settings.json").write_text(json.dumps(implementation))
    return folder


def p50_us(ask: Callable[[], Any], count: int) -> float:
    """Median time of a call, in microseconds."""
    times = []
    for _ in range(count):
        began = time.perf_counter()
        ask()
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e6


def recent_us(count: int = 20_000) -> float:
    """What keeping a request for a rehearsal adds to it, where the release consents (ring full, 4 KB a request)."""
    from wherry_serving.recent import RecentRequests

    ring, body = RecentRequests(100, "token"), bytes(2048)
    began = time.perf_counter()
    for _ in range(count):
        ring.add("tiny", "tensors", body, None, body, None)
    return (time.perf_counter() - began) / count * 1e6


def measure() -> dict[str, float]:
    """Medians over all rounds, in microseconds."""
    import numpy as np
    import onnxruntime

    model = WORK / "tiny.onnx"
    WORK.mkdir(parents=True, exist_ok=True)
    models = model_folder(model)
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    x = np.full((1, FEATURES), 0.5, np.float32)
    ours, theirs = free_port(), free_port()
    python = mlserver_python()
    found: dict[str, list[float]] = {"inprocess": [], "wherry": [], "mlserver": []}
    with ExitStack() as stack:
        argv = [
            sys.executable,
            "-m",
            "wherry_serving",
            "--models",
            str(models),
            "--port",
            str(ours),
            "--host",
            "127.0.0.1",
        ]
        stack.enter_context(server(argv, ours, ROOT, {}))
        folder = mlserver_folder(model, theirs)
        argv = [str(python.parent / "mlserver"), "start", str(folder)]
        stack.enter_context(server(argv, theirs, folder, {"PYTHONPATH": str(ROOT / "bench")}))
        clients = {"wherry": Client(ours), "mlserver": Client(theirs)}
        for client in clients.values():
            p50_us(client.ask, REQUESTS)
        for _ in range(ROUNDS):
            found["inprocess"].append(p50_us(lambda: session.run(None, {"x": x}), REQUESTS))
            for name, client in clients.items():
                found[name].append(p50_us(client.ask, REQUESTS))
    medians = {name: statistics.median(values) for name, values in found.items()}
    added = medians["wherry"] - medians["inprocess"]
    peer = medians["mlserver"] - medians["inprocess"]
    return {
        "serving_inprocess_p50_us": round(medians["inprocess"], 1),
        "serving_added_us": round(added, 1),
        "serving_added_us_mlserver": round(peer, 1),
        "serving_times_better_than_mlserver": round(peer / added, 2),
        "serving_recent_us": round(statistics.median(recent_us() for _ in range(5)), 2),
    }


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))
