"""`make bench-touch`: what people wait for. Prints the figures and writes build/bench-touch.json.

- first_rollout_s: from `git clone` to the first committed rollout, as `make demo-once` does it in the clone: new .venv,
  new keys, new images. Debian's packages and pip's downloads may be on the machine already: `prepared` says so.
- page_p95_ms: the slowest page's p95 with 10,000 devices in the database, from a browser's request to its last byte.
- package_warm_s, package_cold_s: `wherry package` of a 20 MB model, with and without cached base and runtime.
- container_over_bare: p50 of an inference in a container over the same files run bare, in turns.
"""

from __future__ import annotations

import json
import os
import shutil
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parent.parent
BIN = ROOT / ".venv" / "bin"
sys.path.insert(0, str(ROOT / "scripts"))

AIMS = {
    "page_p95_ms": "at most 200",
    "package_warm_s": "under 10",
    "package_layers_changed": "1, the model's",
    "container_over_bare": "at most 1.05",
}
DEVICES, LOOKS = 10_000, 20
MODEL_MB = 20


def first_rollout() -> dict[str, Any]:
    """Clone this checkout's last commit and bring its demo to the first committed rollout."""
    folder = Path(tempfile.mkdtemp(prefix="wherry-clone-"))
    try:
        began = time.monotonic()
        subprocess.run(["git", "clone", "-q", str(ROOT), str(folder / "wherry")], check=True)
        clone = folder / "wherry"
        environment = os.environ | {"WHERRY_CACHE": str(folder / "cache")}
        subprocess.run(
            ["bash", "scripts/setup.sh", "demo"], cwd=clone, env=environment, check=True, capture_output=True
        )
        ready = time.monotonic() - began
        # The clone's own Python: its .venv was made by its own set-up.
        subprocess.run(
            [".venv/bin/python", "scripts/demo.py", "--once"],
            cwd=clone,
            env=environment,
            check=True,
            capture_output=True,
        )
        chapters = json.loads((clone / "build" / "demo.json").read_text())["chapters"]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    until = next(number for number, chapter in enumerate(chapters) if chapter["name"] == "rollout-v1")
    to_rollout = sum(chapter["seconds"] for chapter in chapters[: until + 1])
    return {
        "first_rollout_s": ready + to_rollout,
        "set_up_s": ready,
        "prepared": "Debian packages installed before; downloads of pip may be cached; base and runtime layers not",
    }


def pages() -> dict[str, Any]:
    """Ask every page of a server with 10,000 devices, as a browser without scripts would."""
    from ports import free_port
    from seed import seed

    from wherry_server.app import Bell, https_server, make_context
    from wherry_server.config import ServerConfig
    from wherry_server.pki import Authority
    from wherry_server.services.access import create_token

    folder = Path(tempfile.mkdtemp(prefix="wherry-pages-"))
    try:
        config = ServerConfig(data=folder, host="127.0.0.1", bind="127.0.0.1", port=free_port(), link=False)
        Authority.create(config.pki, config.host, datetime.now(UTC))
        context = make_context(config, Bell())
        seeded = seed(context.store, devices=DEVICES, now=datetime.now(UTC))
        token = create_token(context, "bench")
        server = https_server(context)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.05)
        found = _look(f"https://127.0.0.1:{config.port}", token, seeded)
        server.should_exit = True
        thread.join(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {"page_p95_ms": max(found.values()), "pages_p95_ms": found, "devices": DEVICES}


def _look(url: str, token: str, seeded: Any) -> dict[str, float]:
    model, version = seeded.releases[0]
    paths = {
        "fleet": "/", "search": "/?search=0042", "offline": "/?state=offline",
        "device": f"/devices/{seeded.devices[12]}",
        "models": "/models", "model": f"/models/{model}", "releases": "/releases",
        "release": f"/releases/{model}/{version}", "rollouts": "/rollouts",
        "rollout": f"/rollouts/{seeded.rollouts[0]}", "audit": "/audit",
    }  # fmt: skip
    found = {}
    trust = ssl.create_default_context()
    trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE  # our own server, on loopback
    with httpx.Client(base_url=url, verify=trust, timeout=60, headers={"Origin": url}) as browser:
        browser.post("/login", data={"token": token})
        for name, path in paths.items():
            times = []
            for _ in range(LOOKS):
                began = time.perf_counter()
                answer = browser.get(path)
                times.append((time.perf_counter() - began) * 1e3)
                if answer.status_code != 200:
                    raise RuntimeError(f"{path} answered {answer.status_code}")
            found[name] = round(statistics.quantiles(times, n=20)[-1], 1)
    return found


def big_model(path: Path, version: int) -> None:
    """Write a model of 20 MB: two matrices; each version has its own numbers."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    wide = int((MODEL_MB * 1e6 / 4 / 2) ** 0.5)
    numbers = np.random.default_rng(version)
    weights = [numpy_helper.from_array(numbers.standard_normal((wide, wide), np.float32), name) for name in "ab"]
    nodes = [helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("MatMul", ["h", "b"], ["y"])]
    shape = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, wide]) for name in "xy"]
    graph = helper.make_graph(nodes, "big", shape[:1], shape[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))


def packaging() -> dict[str, Any]:
    """Package a 20 MB model with an empty cache, then its next version."""
    folder = Path(tempfile.mkdtemp(prefix="wherry-package-"))
    environment = os.environ | {"WHERRY_CACHE": str(folder / "cache"), "WHERRY_HOME": str(folder / "home")}
    times, layers = [], []
    try:
        for version in (1, 2):
            model, out = folder / f"{version}.onnx", folder / f"out-{version}"
            big_model(model, version)
            began = time.monotonic()
            subprocess.run(
                [BIN / "wherry", "package", model, "--name", "big", "--version", str(version), "--profile",
                 "generic-arm64", "--output", out],
                env=environment, check=True, capture_output=True,
            )  # fmt: skip
            times.append(time.monotonic() - began)
            layout = out / "generic-arm64"
            digest = json.loads((layout / "index.json").read_text())["manifests"][0]["digest"]
            manifest = json.loads((layout / "blobs" / "sha256" / digest.partition(":")[2]).read_text())
            layers.append([(layer["digest"], layer["size"]) for layer in manifest["layers"]])
        model_bytes = (folder / "1.onnx").stat().st_size
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    changed = [new for old, new in zip(*layers, strict=True) if old[0] != new[0]]
    return {
        "package_cold_s": times[0],
        "package_warm_s": times[1],
        "package_image_mb": sum(size for _, size in layers[1]) / 1e6,
        "package_model_mb": model_bytes / 1e6,
        "package_layers_changed": len(changed),
        "package_changed_mb": sum(size for _, size in changed) / 1e6,
    }


def container() -> dict[str, Any]:
    """`wherry bench` on a real model."""
    models = sorted((ROOT / "build" / "models").glob("magika-1*.onnx"))
    if not models:
        raise RuntimeError("build/models holds no magika: run scripts/fetch_models.py")
    done = subprocess.run(
        [BIN / "wherry", "bench", str(models[-1]), "--rounds", "12", "--json"],
        check=True,
        capture_output=True,
        text=True,
    )
    data = json.loads(done.stdout)
    return {"container_over_bare": data["ratios"]["container"]["p50_ms"], "ways": data["ways"]}


def main() -> int:
    """Measure everything, print it and write it."""
    figures: dict[str, Any] = {}
    for part in (packaging, pages, container, first_rollout):
        print(f"measuring {part.__name__.replace('_', ' ')} …", flush=True)
        figures |= part()
    target = ROOT / "build" / "bench-touch.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps({"at": datetime.now(UTC).isoformat(), **figures}, indent=2) + "\n")
    for name, value in figures.items():
        if isinstance(value, int | float):
            aim = f"aim: {AIMS[name]}" if name in AIMS else ""
            print(f"{name:<28} {value:>10,.2f}   {aim}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
