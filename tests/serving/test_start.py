"""What can be wrong with an image's models is said in one sentence, with exit code 1."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import helper

from wherry.errors import ConfigError, MalformedMessage, ModelError
from wherry.release import Signature, TensorSpec
from wherry.tensors import tensor_from_values
from wherry_serving.app import arguments, main
from wherry_serving.models import check_signature, load_model, read_models, warm_inputs


def edit(folder, **changes):
    path = folder / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def start(*arguments):
    command = [sys.executable, "-m", "wherry_serving", "--host", "127.0.0.1", "--port", "0", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "model.json").write_text("{"), "model.json: is not usable JSON"),
        (lambda folder: edit(folder, schema=9), "has schema version 9, this program knows 1"),
        (lambda folder: edit(folder, runtime="caffe"), "field runtime"),
        (lambda folder: edit(folder, file="other.onnx"), "other.onnx is missing"),
        (lambda folder: edit(folder, file="../same/model.onnx"), "expected a plain file name"),
        (lambda folder: (folder / "golden.json").write_text("[]"), "golden.json: is not a JSON object"),
        (lambda folder: (folder / "model.json").unlink(), "has no folder with a model.json"),
        (lambda folder: folder.with_name("b").mkdir() or copy(folder), "holds model same twice"),
    ],
)
def test_what_is_wrong_with_the_files(shop, capsys, damage, said):
    damage(shop.identity("same"))
    assert main(["--models", str(shop.folder), "--port", "0"]) == 1
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("wherry-serving: ")
    assert said in line


def copy(folder):
    (folder.with_name("b") / "model.json").write_text((folder / "model.json").read_text())
    (folder.with_name("b") / "model.onnx").write_bytes(b"")


def test_no_folder_and_no_port(shop, capsys):
    assert main(["--models", "/no/such/folder"]) == 1
    assert "cannot be read" in capsys.readouterr().err
    shop.identity("same")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["--models", str(shop.folder), "--host", "127.0.0.1", "--port", port]) == 1
    assert "cannot be listened on" in capsys.readouterr().err


def test_a_model_that_cannot_be_read_ends_the_program_with_one_sentence(shop):
    folder = shop.identity("same")
    (folder / "model.onnx").write_bytes(b"\x08\x08garbage" * 30)
    done = start("--models", str(shop.folder))
    assert done.returncode == 1
    assert "wherry-serving: model same: ONNX Runtime cannot load model.onnx" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_loader_that_fails_unexpectedly_ends_the_server(shop, start, caplog):
    shop.identity("same")

    def load(source):
        raise MemoryError

    running = start(loader=load, wait=False)
    running.thread.join(20)
    assert not running.thread.is_alive()
    assert running.server.failure is not None
    assert "MemoryError" in running.server.failure.reason
    assert "MemoryError" in caplog.text


def test_the_drain_time_comes_from_the_environment_or_the_arguments():
    assert arguments({}).parse_args(["--models", "m"]).drain_seconds == 5
    assert arguments({"WHERRY_DRAIN_SECONDS": "2.5"}).parse_args(["--models", "m"]).drain_seconds == 2.5
    assert (
        arguments({"WHERRY_DRAIN_SECONDS": "2"}).parse_args(["--models", "m", "--drain-seconds", "1"]).drain_seconds
        == 1
    )


def load(shop):
    [source] = read_models(shop.folder)
    return load_model(source)


@pytest.mark.parametrize("runtime", ["litert", "tflite"])
def test_a_tflite_file_that_is_none(shop, runtime):
    edit(shop.identity("same"), runtime=runtime)
    with pytest.raises(ModelError, match=f"{runtime} cannot load model.onnx"):
        load(shop)


def test_a_provider_that_is_not_here(shop):
    shop.identity("same", provider="CUDAExecutionProvider")
    with pytest.raises(ConfigError, match="needs CUDAExecutionProvider, this ONNX Runtime has only"):
        load(shop)


def test_a_session_that_fell_back_to_another_provider(shop):
    shop.identity("same", provider="TensorrtExecutionProvider")
    [source] = read_models(shop.folder)
    with pytest.raises(ConfigError, match="declared for TensorrtExecutionProvider, but the session runs on CPU"):
        load_model(source, open_cpu)


def open_cpu(file, path):
    from wherry_serving.runtimes import open_runtime

    return open_runtime(file.model_copy(update={"provider": "CPUExecutionProvider"}), path)


def test_a_runtime_that_is_not_installed(shop, monkeypatch):
    edit(shop.identity("same"), runtime="litert")
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(ConfigError, match="ai_edge_litert is not installed here"):
        load(shop)


def test_a_model_that_fails_its_first_inference(shop):
    nodes = [helper.make_node("Reshape", ["x", "to"], ["y"])]
    inputs = [TensorSpec(name="x", datatype="FP32", shape=[-1]), TensorSpec(name="to", datatype="INT64", shape=[2])]
    shop.save("picky", nodes, inputs, [TensorSpec(name="y", datatype="FP32", shape=[-1, -1])])
    with pytest.raises(ModelError, match="its first inference failed"):
        load(shop)
    shop.golden(
        "picky", [tensor_from_values("x", "FP32", [6], range(6)), tensor_from_values("to", "INT64", [2], [2, 3])]
    )
    assert load(shop).name == "picky"


def test_golden_inputs_that_do_not_fit(shop):
    shop.identity("same")
    shop.golden("same", [tensor_from_values("x", "FP32", [1, 3], [0, 0, 0])])
    [source] = read_models(shop.folder)
    with pytest.raises(MalformedMessage, match="input 'x' does not fit"):
        warm_inputs(source)


def test_without_golden_cases_the_first_inputs_are_zeros(shop):
    shop.identity("text", "BYTES", [-1, 2])
    [source] = read_models(shop.folder)
    [array] = warm_inputs(source).values()
    assert array.tolist() == [[b"", b""]]


def signature(shape, datatype="FP32", name="x", more=()):
    tensors = [TensorSpec(name=name, datatype=datatype, shape=shape), *more]
    return Signature(inputs=tensors, outputs=tensors)


@pytest.mark.parametrize(
    ("declared", "found", "said"),
    [
        (signature([1, 4]), signature([1, 4]), None),
        (signature([1, 4]), signature([-1, 4]), None),
        (signature([-1, 4]), signature([1, 4]), None),
        (signature([1, 4]), signature([]), None),
        (signature([1, 4]), signature([1, 5]), r"input 'x' is FP32\[1, 5\], expected FP32\[1, 4\]"),
        (signature([1, 4]), signature([1, 4, 1]), "expected"),
        (signature([4]), signature([4], "INT32"), "INT32"),
        (signature([4]), signature([4], name="z"), "input 'x' is not among the file's: z"),
        (
            signature([4]),
            signature([4], more=[TensorSpec(name="w", datatype="FP32", shape=[1])]),
            "input 'w' of the file is not declared",
        ),
    ],
)
def test_the_declared_signature_is_the_files(declared, found, said):
    if said is None:
        check_signature("m", declared, found)
        return
    with pytest.raises(ModelError, match=said):
        check_signature("m", declared, found)


def test_types_that_the_protocol_does_not_have(shop):
    folder = shop.identity("same")
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.BFLOAT16, [1])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.BFLOAT16, [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(folder / "model.onnx"))
    with pytest.raises(ModelError, match="which cannot be served"):
        load(shop)


def test_inputs_at_odd_addresses(shop):
    shop.identity("same", "FP64")
    runtime = load(shop).runtime
    odd = np.frombuffer(b"\0" + np.arange(4.0).tobytes(), np.uint8)[1:].view(np.float64).reshape(1, 4)
    assert not odd.flags.aligned
    [found] = runtime.run({"x": odd}, ["y"])
    np.testing.assert_array_equal(found, odd)
