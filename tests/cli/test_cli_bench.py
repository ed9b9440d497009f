"""`wherry bench`: its report as sentences, and a real run bare and in a container."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
import xml.etree.ElementTree as ElementTree

import pytest
from rich.console import Console
from tiny_model import write_tiny

from wherry.errors import BuildError, StoreError
from wherry_cli.costs import machine
from wherry_cli.costs.layout import Image, read_image, unpack
from wherry_cli.costs.measure import Figures, Question, memory_of
from wherry_cli.costs.report import as_data, as_picture, as_table
from wherry_cli.costs.trial import Effort, alone, try_all

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


def layered(tmp_path, *members) -> Image:
    """An image of one layer: (name, kind, what a link names or a file holds)."""
    blob = tmp_path / "layer.tar"
    with tarfile.open(blob, "w") as archive:
        for name, kind, value in members:
            item = tarfile.TarInfo(name)
            item.type, item.mode = kind, 0o755
            if kind == tarfile.REGTYPE:
                item.size = len(value)
            else:
                item.linkname = value
            archive.addfile(item, io.BytesIO(value.encode()) if kind == tarfile.REGTYPE else None)
    return Image(tmp_path, blob, {}, (("base", blob),))


def test_unpacking_keeps_programs_and_links_of_the_images_own_root_inside(tmp_path):
    root = tmp_path / "root"
    image = layered(
        tmp_path,
        ("usr/bin/tool", tarfile.REGTYPE, "hello"),
        ("etc/tool", tarfile.SYMTYPE, "/usr/bin/tool"),
        ("usr/bin/other", tarfile.SYMTYPE, "tool"),
        ("bin", tarfile.SYMTYPE, "usr/bin"),
        ("bin/third", tarfile.SYMTYPE, "/usr/bin/tool"),
        ("dev/null", tarfile.CHRTYPE, ""),
        ("away", tarfile.SYMTYPE, "/"),
        ("away/written", tarfile.REGTYPE, "inside"),
    )
    assert unpack(image, root) == len("hello") + len("inside")
    assert os.access(root / "usr/bin/tool", os.X_OK)
    assert (root / "etc/tool").read_text() == (root / "usr/bin/third").read_text() == "hello"
    assert (root / "written").read_text() == "inside"
    assert not (root / "dev/null").exists()


@pytest.mark.parametrize(
    "members",
    [
        [("away", tarfile.SYMTYPE, "../.."), ("away/x", tarfile.REGTYPE, "x")],
        [("../x", tarfile.REGTYPE, "x")],
        [("x", tarfile.LNKTYPE, "../layer.tar")],
    ],
    ids=["link", "name", "hard link"],
)
def test_a_layer_that_leads_out_of_its_folder_is_refused(tmp_path, members):
    with pytest.raises(StoreError, match="cannot be unpacked"):
        unpack(layered(tmp_path, *members), tmp_path / "root")


def test_a_layer_that_unpacks_to_more_than_is_sane_is_refused(tmp_path):
    image = layered(tmp_path, ("a", tarfile.REGTYPE, "x" * 2000), ("b", tarfile.REGTYPE, "x"))
    assert unpack(image, tmp_path / "enough", most=4000) == 2001
    with pytest.raises(StoreError, match="holds more than"):
        unpack(image, tmp_path / "short", most=2800)


def test_a_second_run_at_the_same_time_is_refused_in_words(tmp_path):
    with alone(tmp_path), pytest.raises(BuildError, match="runs on this machine already"), alone(tmp_path):
        pass
    with alone(tmp_path):
        pass


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
    write_tiny(model)
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
