"""Starts a serving image on the engine with a tiny model mounted, asks it for one inference over HTTP, ends it.

Usage: one_inference.py IMAGE PLATFORM, for example wherry-serving:arm64 linux/arm64.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from wherry.release import MODELS_FOLDER, SERVING_PORT, ModelFile, Signature, TensorSpec

_SECONDS = 180.0
# qemu-user 7.2 shows the host's x86 /proc/cpuinfo, on which ONNX Runtime for arm64 crashes when it is imported.
_ARM_CPU = (
    "processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd evtstrm crc32 cpuid\nCPU implementer\t: 0x41\n"
    "CPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: 0xd08\nCPU revision\t: 3\n\n"
)


def write_model(folder: Path) -> None:
    """A model that doubles its input, as a release's image holds it."""
    shape = [1, 4]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "double",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    target = folder / "double"
    target.mkdir(parents=True)
    onnx.save(model, target / "model.onnx")
    described = ModelFile(
        name="double",
        version="1",
        file="model.onnx",
        runtime="onnx",
        provider="CPUExecutionProvider",
        precision="fp32",
        signature=Signature(
            inputs=[TensorSpec(name="x", datatype="FP32", shape=shape)],
            outputs=[TensorSpec(name="y", datatype="FP32", shape=shape)],
        ),
    )
    (target / "model.json").write_text(described.model_dump_json(by_alias=True))


def docker(*arguments: str) -> str:
    """What a command of the engine's client prints."""
    return subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True).stdout.strip()


def infer(url: str) -> list[float]:
    """One inference, as JSON."""
    asked = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
    request = urllib.request.Request(f"{url}/v2/models/double/infer", json.dumps(asked).encode())
    with urllib.request.urlopen(request, timeout=30) as answer:
        found: list[float] = json.load(answer)["outputs"][0]["data"]
    return found


def main() -> int:
    """Print the answer; 0 when it is right."""
    image, platform = sys.argv[1:3]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # the model server is not root
        write_model(folder / "models")
        mounts = [f"{folder}/models:{MODELS_FOLDER}:ro"]
        if platform.startswith("linux/arm"):
            (folder / "cpuinfo").write_text(_ARM_CPU)
            mounts.append(f"{folder}/cpuinfo:/proc/cpuinfo:ro")
        volumes = [part for mount in mounts for part in ("--volume", mount)]
        container = docker(
            "run", "--detach", "--platform", platform, "--read-only", "--cap-drop", "ALL",
            "--publish", f"127.0.0.1::{SERVING_PORT}", *volumes, image,
        )  # fmt: skip
        try:
            url = f"http://{docker('port', container, str(SERVING_PORT)).splitlines()[0]}"
            return _ask(container, url)
        finally:
            docker("rm", "--force", container)


def _ask(container: str, url: str) -> int:
    begun = time.monotonic()
    while True:
        try:
            found = infer(url)
            break
        except (OSError, urllib.error.HTTPError) as error:
            running = docker("inspect", "--format", "{{.State.Running}}", container) == "true"
            if not running or time.monotonic() - begun > _SECONDS:
                logs = subprocess.run(["docker", "logs", container], check=False, capture_output=True, text=True)
                print(f"no answer: {error}\n{logs.stdout}{logs.stderr}", file=sys.stderr)
                return 1
            time.sleep(0.5)
    user = docker("inspect", "--format", "{{.Config.User}}", container)
    print(f"one inference as user {user}: 2 x [1, 2, 3, 4] = {found}, {time.monotonic() - begun:.1f} s after the start")
    return 0 if found == [2, 4, 6, 8] else 1


if __name__ == "__main__":
    sys.exit(main())
