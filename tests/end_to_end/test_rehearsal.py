"""A version that is right on its golden cases and wrong for this device's own callers never gets to answer them."""

from __future__ import annotations

import time

import pytest
from load import Load

from wherry.tensors import tensor_from_values

pytestmark = [
    pytest.mark.docker,
    pytest.mark.broker,
    pytest.mark.registry,
    pytest.mark.slow,
    pytest.mark.timeout(300),
]

LOUD = tensor_from_values("x", "FP32", [1, 4], [1000.0, 2.0, 3.0, 4.0])
MODEL = "tiny"


def write_model(path, loudest: float) -> None:
    """y = x, but nothing louder than the loudest: all alike for the small numbers of made-up golden cases."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("Clip", ["x", "low", "high"], ["y"])],
        MODEL,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [
            numpy_helper.from_array(np.array(-loudest, np.float32), "low"),
            numpy_helper.from_array(np.array(loudest, np.float32), "high"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))


def publish(fleet, version: str, loudest: float) -> None:
    model, out = fleet.lab.folder / f"loud-{version}.onnx", fleet.lab.folder / f"package-{version}"
    write_model(model, loudest)
    fleet.lab.run(
        "wherry", "package", str(model), "--name", MODEL, "--version", version, "--profile", "generic-amd64",
        "--registry", fleet.lab.registry, "--output", str(out),
        "--gate", "rehearsal:requests=20,least=10", "--gate", "latency:factor=100,floor_ms=1000",
        "--gate", "shadow:seconds=1,least=3",
    )  # fmt: skip
    fleet.lab.run("wherry", "release", "publish", str(out / "package.json"))


def judge(outputs) -> str | None:
    first = float(outputs[0].values()[0])
    return None if first == 1000.0 else f"wrong answer {first}"


def gates(target) -> dict[str, dict]:
    return {gate["kind"]: gate for gate in target["deployment"]["gates"]}


def test_what_is_wrong_for_the_devices_own_callers_is_refused_by_rehearsal_and_no_request_fails(fleet):
    publish(fleet, "31", 1e6)
    publish(fleet, "32", 100.0)
    publish(fleet, "33", 1e5)
    assert fleet.roll_out("31")["state"] == "committed"
    with Load("127.0.0.1", fleet.lab.ports.slot, MODEL, [LOUD], judge=judge, rate=40) as requests:
        deadline = time.monotonic() + 60
        while requests.versions.get("31", 0) < 30:
            assert time.monotonic() < deadline, "version 31 never answered enough"
            time.sleep(0.1)
        refused = fleet.roll_out("32")
        assert fleet.serving()["version"] == "31"
        taken = fleet.roll_out("33")
    assert requests.problems == []
    assert requests.versions.keys() <= {"31", "33"}
    assert refused["state"] == "rejected", refused
    found = gates(refused)
    assert found["golden"]["ok"], found
    assert "rehearsal" in found, found
    assert not found["rehearsal"]["ok"]
    assert "0 of 20 answers agree with the version that serves" in found["rehearsal"]["detail"]
    assert found["rehearsal"]["numbers"]["agreement_percent"] == 0.0
    assert taken["state"] == "committed", taken
    passed = gates(taken)
    assert passed["rehearsal"]["numbers"]["agreement_percent"] == 100.0
    assert passed["shadow"]["numbers"]["requests"] >= 3
    assert passed["latency"]["numbers"]["running_p95_ms"] > 0
    assert passed["memory"]["numbers"]["used_mb"] > 0
