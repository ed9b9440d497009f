"""What the agent costs when idle, what a rollout adds to a bare pull and run, what a swap does to callers.

A whole lab is started: registry, broker, server, one device, all on ports of their own.
"""

from __future__ import annotations

import json
import shutil
import statistics
import time
import urllib.error
import urllib.request
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
from inference import FEATURES, tiny_model
from lab import ROOT, Lab, Ports
from load import Load
from ports import free_port

from wherry.tensors import tensor_from_values

MODEL, PROFILE = "tiny", "generic-amd64"
IDLE_SECONDS, ROLLOUTS, SWAPS, RATE = 60, 3, 4, 200.0


def make_versions(folder: Path, count: int) -> list[Path]:
    """The same tiny model again and again; each file differs in a comment only, so each is another digest."""
    import onnx

    base = folder / "tiny.onnx"
    tiny_model(base)
    versions = []
    for number in range(count):
        model = onnx.load(str(base))
        model.doc_string = f"version {number}"
        versions.append(folder / f"tiny-{number}.onnx")
        onnx.save(model, str(versions[-1]))
    return versions


def publish(lab: Lab, model: Path, version: str) -> dict[str, Any]:
    """Package, push, sign and publish a version; its image for this machine's profile."""
    out = lab.folder / f"package-{version}"
    lab.run(
        "wherry", "package", str(model), "--name", MODEL, "--version", version, "--profile", PROFILE,
        "--registry", lab.registry, "--output", str(out),
    )  # fmt: skip
    lab.run("wherry", "release", "publish", str(out / "package.json"))
    image: dict[str, Any] = json.loads((out / "package.json").read_text())["images"][0]
    return image


def roll_out(lab: Lab, version: str) -> float:
    """Roll a version out and wait for its end; seconds from the rollout's start to committed, by their own clocks."""
    done = lab.run("wherry", "rollout", "start", MODEL, version, "--to", "all", "--watch", "--json")
    rollout = json.loads(done.stdout.splitlines()[-1])
    target = rollout["targets"][0]
    if target["state"] != "committed":
        raise RuntimeError(f"version {version} ended {target['state']}: {target.get('problem')}")
    committed = dict(map(tuple, target["deployment"]["phases"]))["committed"]
    return (datetime.fromisoformat(committed) - datetime.fromisoformat(rollout["created"])).total_seconds()


def bare(lab: Lab, image: dict[str, Any]) -> float:
    """`docker pull` + `docker run` + first ready answer of the same image; then it is removed again."""
    reference = f"{image['repository']}@{image['digest']}"
    port = free_port()
    began = time.monotonic()
    lab.run("docker", "pull", "-q", reference)
    name = lab.run(
        "docker", "run", "-d", "--init", "--read-only", "-p", f"127.0.0.1:{port}:8080", reference
    ).stdout.strip()
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/models/{MODEL}/ready", timeout=1):
                break
        except (OSError, urllib.error.URLError):
            if time.monotonic() - began > 60:
                raise
            time.sleep(0.02)
    seconds = time.monotonic() - began
    lab.run("docker", "rm", "-f", name)
    lab.run("docker", "rmi", "-f", reference)
    return seconds


def idle(lab: Lab) -> dict[str, float]:
    """Memory and processor time of the agent over an idle minute with one slot."""
    process = psutil.Process(lab.pid("agent"))
    before, began = sum(process.cpu_times()[:2]), time.monotonic()
    peak = 0
    while time.monotonic() - began < IDLE_SECONDS:
        peak = max(peak, process.memory_info().rss)
        time.sleep(1)
    used = sum(process.cpu_times()[:2]) - before
    return {
        "agent_rss_mb": round(peak / 2**20, 1),
        "agent_cpu_percent": round(100 * used / (time.monotonic() - began), 2),
    }


def swaps(lab: Lab, versions: list[str]) -> dict[str, float]:
    """Swap again and again while requests keep coming; what failed."""
    sample = tensor_from_values("x", "FP32", [1, FEATURES], [0.5] * FEATURES)
    with Load("127.0.0.1", lab.ports.slot, MODEL, [sample], rate=RATE, workers=8) as load:
        time.sleep(2)
        for version in versions:
            roll_out(lab, version)
        time.sleep(7)
    for problem in sorted(set(load.problems))[:3]:
        print(f"  failed: {problem}")
    return {
        "swap_sent": load.sent,
        "swap_failed": len(load.problems),
        "swap_count": len(versions),
        "swap_longest_gap_ms": round(load.longest_gap() * 1000, 1),
        "swap_p50_ms": round(load.percentile(0.5) * 1000, 2),
        "swap_p99_ms": round(load.percentile(0.99) * 1000, 2),
    }


def measure() -> dict[str, float]:
    """All figures of one lab."""
    folder = ROOT / "build" / "bench" / "lab"
    lab = Lab(folder, Ports.free(), device="bench-device")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        return _measure(lab)
    finally:
        lab.stop()


def _measure(lab: Lab) -> dict[str, float]:
    lab.start_site()
    models = make_versions(lab.folder, 1 + ROLLOUTS + SWAPS)
    images = [publish(lab, model, str(number)) for number, model in enumerate(models)]
    lab.enrol(PROFILE)
    lab.start_agent()
    roll_out(lab, "0")
    wherry, plain = [], []
    for number in range(1, 1 + ROLLOUTS):
        plain.append(bare(lab, images[number]))
        wherry.append(roll_out(lab, str(number)))
        time.sleep(2)
    print(f"  rollouts {[round(one, 2) for one in wherry]} s, bare {[round(one, 2) for one in plain]} s", flush=True)
    figures = {
        "rollout_s": round(statistics.median(wherry), 2),
        "bare_pull_run_s": round(statistics.median(plain), 2),
        "rollout_overhead_s": round(statistics.median(w - p for w, p in zip(wherry, plain, strict=True)), 2),
    }
    figures |= swaps(lab, [str(number) for number in range(1 + ROLLOUTS, 1 + ROLLOUTS + SWAPS)])
    time.sleep(10)
    return figures | idle(lab)


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))
