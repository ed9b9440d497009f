"""`wherry bench`: its report as sentences, and a real run bare and in a container."""

from __future__ import annotations

import json
import os
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from rich.console import Console

from wherry.errors import StoreError
from wherry_cli.costs import machine
from wherry_cli.costs.layout import read_image
from wherry_cli.costs.measure import Figures, Question, memory_of
from wherry_cli.costs.report import as_data, as_picture, as_table
from wherry_cli.costs.trial import Effort, try_all

BARE = Figures(
    "bare", "as it is", [0.5, 0.4, 0.9], [0.004] * 99 + [0.1], [250.0], 100_000_000, 1, 50_000_000, 3_000_000
)
BOXED = Figures("container", "boxed", [1.0], [0.005] * 100, [200.0], 110_000_000, 1, 50_000_000, 3_000_000)


def shown(found, left_out="") -> str:
    console = Console(width=120)
    with console.capture() as captured:
        console.print(as_table(found, left_out))
    return " ".join(captured.get().split())


def test_the_table_compares_each_way_with_bare():
    text = shown([BARE, BOXED])
    assert "start to first answer 0.5 s 1 s 2.00x" in text
    assert "inference, p50 4 ms 5 ms 1.25x" in text
    assert "memory 100 MB 110 MB 1.10x" in text


def test_a_way_that_could_not_be_measured_is_named_with_the_reason():
    assert "virtual machine left out: not installed: qemu-system-x86" in shown([BARE], "not installed: qemu-system-x86")


def test_the_data_has_every_figure_and_its_ratio():
    data = as_data("m.onnx", [BARE, BOXED], "")
    assert data["ways"]["bare"]["p99_ms"] == pytest.approx(100.0)
    assert data["ratios"]["container"]["throughput"] == 0.8


def test_the_picture_is_well_formed_and_names_the_model():
    picture = ElementTree.fromstring(as_picture("<model> & co.onnx", [BARE, BOXED]))
    words = " ".join(picture.itertext())
    assert "<model> & co.onnx" in words
    assert "250 /s" in words


def test_memory_counts_a_process_and_its_children():
    child = subprocess.Popen(["sleep", "60"])
    try:
        assert memory_of([child.pid]) > 0
        assert memory_of([os.getpid()]) > memory_of([child.pid])
    finally:
        child.kill()
        child.wait()
    assert memory_of([child.pid]) == 0


def test_a_folder_without_an_image_is_refused(tmp_path):
    with pytest.raises(StoreError, match="holds no image"):
        read_image(tmp_path)


def test_a_missing_emulator_is_said_with_the_package_to_install(monkeypatch):
    monkeypatch.setattr(machine.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(machine.shutil, "which", lambda program, path="": None if "qemu" in program else program)
    assert "apt-get install qemu-system-x86" in machine.why_not()


def test_requests_are_binary_and_keep_the_connection():
    request = Question("m", ()).request()
    assert request.startswith(b"POST /v2/models/m/infer HTTP/1.1\r\n")
    assert b"Connection: close" not in request


@pytest.mark.docker
@pytest.mark.slow
def test_a_real_model_is_measured_bare_and_in_a_container_and_nothing_is_left(monkeypatch, tmp_path):
    model = tmp_path / "tiny.onnx"
    _write_model(model)
    monkeypatch.setattr(machine, "why_not", lambda: "not asked for in this test")
    before = _traces()
    found, left_out = try_all(model, None, Effort(1, 2, 5, 0.2, 2), lambda _: None, lambda _: None)
    assert [figures.name for figures in found] == ["bare", "container"]
    assert left_out == "not asked for in this test"
    for figures in found:
        assert figures.start > 0
        assert len(figures.latencies) == 5
        assert figures.throughput > 0
        assert figures.memory_bytes > 20_000_000
    assert found[1].next_bytes < 100_000 < found[1].first_bytes
    json.dumps(as_data("tiny", found, left_out))
    assert _traces() == before


def _traces() -> str:
    listed = ["docker", "ps", "-a", "--filter", "name=wherry-bench", "-q"], ["docker", "images", "-q", "wherry-bench"]
    return "".join(subprocess.run(command, capture_output=True, text=True, check=True).stdout for command in listed)


def _write_model(path: Path) -> None:
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["y"])],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(np.array([2.0], np.float32), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
