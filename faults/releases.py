"""The releases of the sweep: two good ones that answer differently, and bad ones of every kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import docker
from lab import Lab

MODEL, PROFILE = "tiny", "generic-amd64"
GOOD, WRONG = ("1", "2", "4"), "3"
WEIGHTS = {"1": 1.0, "2": 2.0, "3": 3.0, "4": 2.0}
"""What each version multiplies by. Version 3 is signed with version 2's golden cases, so it is wrong."""
BALLAST_FLOATS = 400_000
_PATIENT = ("--start-seconds", "180")
"""A busy machine may take its time: a good release that is rejected for that would prove nothing."""
SCRIPTS = {
    "exit0": "exit 0",
    "exit1": "exit 1",
    "exit137": "kill -9 $$",
    "dies": "mkdir /tmp/w; echo ok >/tmp/w/ok; /bin/busybox httpd -p 8080 -h /tmp/w; sleep 1; exit 1",
    "hangs": "while :; do /bin/busybox nc -l -p 8080 -e /bin/busybox sleep 60; done",
    "lies": "mkdir /tmp/w; echo ok >/tmp/w/no; exec /bin/busybox httpd -f -p 8080 -h /tmp/w",
}
"""Containers that break in their own ways."""


def write_model(path: Path, weight: float, seed: int) -> None:
    """A model that multiplies four numbers by a weight, with ballast that makes its layer worth a download."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    ballast = np.random.default_rng(seed).random(BALLAST_FLOATS, np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMax", ["ballast"], ["most"], keepdims=0),
            helper.make_node("Sub", ["most", "most"], ["nothing"]),
            helper.make_node("Mul", ["x", "w"], ["product"]),
            helper.make_node("Add", ["product", "nothing"], ["y"]),
        ],
        MODEL,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(np.array([weight], np.float32), "w"), numpy_helper.from_array(ballast, "ballast")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))


def package(lab: Lab, version: str, *flags: str) -> dict[str, Any]:
    """Package a version of the model; its image."""
    model = lab.folder / f"{MODEL}-{version}.onnx"
    write_model(model, WEIGHTS[version], int(version))
    out = lab.folder / f"package-{version}"
    return _made(lab, out, str(model), *_common(lab, version, out), *_PATIENT, *flags)


def publish(lab: Lab, version: str) -> None:
    """Sign and publish what was packaged."""
    lab.run("wherry", "release", "publish", str(lab.folder / f"package-{version}" / "package.json"))


def package_wrong(lab: Lab, good: str, wrong: str) -> dict[str, Any]:
    """A version that answers with its own weight, signed with the golden cases of another."""
    image = package(lab, wrong)
    out = lab.folder / f"package-{wrong}"
    return _made(
        lab, out, "--from-image", f"{image['repository']}@{image['digest']}",
        "--golden", str(lab.folder / f"package-{good}" / "golden.json"), *_common(lab, wrong, out),
        *_PATIENT,
    )  # fmt: skip


def package_script(lab: Lab, engine: docker.APIClient, name: str) -> dict[str, Any]:
    """A container of busybox that runs one of the scripts, as version NAME."""
    import io
    import tarfile

    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as archive:
        archive.add("/bin/busybox", "bin/busybox")
        link = tarfile.TarInfo("bin/sh")
        link.type, link.linkname = tarfile.SYMTYPE, "busybox"
        archive.addfile(link)
    reference = f"{lab.registry}/scripts/{name}"
    command = ["/bin/busybox", "sh", "-c", SCRIPTS[name]]
    changes = [f"CMD {json.dumps(command)}", "EXPOSE 8080"]
    engine.import_image_from_data(layer.getvalue(), repository=reference, tag="1", changes=changes)
    engine.push(reference, tag="1")
    out = lab.folder / f"package-{name}"
    flags = ("--no-golden", "--health-path", "/ok", "--start-seconds", "3", "--memory", "32")
    image = _made(lab, out, "--from-image", f"{reference}:1", *_common(lab, name, out), *flags)
    engine.remove_image(f"{reference}:1", force=True)
    return image


def _common(lab: Lab, version: str, out: Path) -> list[str]:
    return [
        "--name", MODEL, "--version", version, "--profile", PROFILE, "--registry", lab.registry, "--output", str(out),
    ]  # fmt: skip


def _made(lab: Lab, out: Path, *arguments: str) -> dict[str, Any]:
    lab.run("wherry", "package", *arguments)
    found: dict[str, Any] = json.loads((out / "package.json").read_text())["images"][0]
    return found
