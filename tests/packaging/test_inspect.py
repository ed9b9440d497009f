"""What `wherry inspect` says of real, odd and hostile files."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from wherry.errors import ModelError
from wherry_cli.main import app
from wherry_cli.packaging.inspection import inspect_model
from wherry_cli.packaging.onnx_file import onnx_facts
from wherry_cli.packaging.protobuf import printable
from wherry_cli.packaging.tflite_file import tflite_facts


def test_an_onnx_file_is_told_with_its_fit(model_files, profiles, store):
    found = inspect_model(model_files["magika-1.0.3"], profiles, store)
    assert (found.format, found.opsets["ai.onnx"], found.precision) == ("onnx", 15, "fp32")
    assert found.producer.startswith("tf2onnx")
    assert (found.operators["MatMul"], found.parameters, found.custom) == (2, 784519, [])
    assert found.signature is not None
    assert found.signature.inputs[0].shape == [-1, 2048]
    assert found.axes["bytes"][0].startswith("unk")
    assert [(item.runtime, item.ok) for item in found.runtimes] == [("onnx", True)]
    fits = {item.profile: item for item in found.profiles}
    assert set(fits) == set(profiles)
    assert fits["raspberry-pi-4"].fits
    assert list(fits["raspberry-pi-4"].layers) == ["base", "runtime", "serving", "model"]
    assert not fits["raspberry-pi-4"].exact, "nothing is in this cache"
    assert "registry" in fits["jetson-orin"].remarks[0]


def test_a_stateful_tflite_file_is_tried_with_both_runtimes(model_files, profiles, store):
    found = inspect_model(model_files["pymicro-wakeword-2.5.0"], profiles, store)
    assert (found.format, found.precision, found.stateful) == ("tflite", "int8", True)
    assert found.operators["CONV_2D v3"] == 6
    assert [(item.runtime, item.ok) for item in found.runtimes] == [("litert", True), ("tflite", True)]


def test_a_model_too_large_for_a_profile_says_why(make_model, profiles, store):
    profile = profiles["generic-amd64"]
    able = profile.capabilities.model_copy(update={"memory_mb": 100, "image_limit_mb": 50, "precisions": ["int8"]})
    small = {profile.name: profile.model_copy(update={"capabilities": able})}
    (fit,) = inspect_model(make_model(), small, store).profiles
    assert not fit.fits
    words = "; ".join(fit.reasons)
    assert "precision fp32 is not among" in words
    assert "needs 256 MB of memory, this device has 100 MB" in words
    assert "the limit is 50 MB" in words


def test_custom_operators_are_named_and_refused_by_the_runtime(tmp_path, profiles, store):
    node = helper.make_node("Swirl", ["x"], ["y"], domain="com.example")
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy"]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)]
    model = helper.make_model(helper.make_graph([node], "g", tensors[:1], tensors[1:]), opset_imports=opsets)
    path = tmp_path / "swirl.onnx"
    path.write_bytes(model.SerializeToString())
    found = inspect_model(path, profiles, store)
    assert found.custom == ["com.example:Swirl"]
    assert found.signature is None
    (verdict,) = found.runtimes
    assert verdict.ok is False
    assert "Swirl" in verdict.reason
    assert not any(item.fits for item in found.profiles)


def test_operators_inside_branches_and_functions_are_counted(tmp_path):
    weights = numpy_helper.from_array(np.ones((2, 2), np.float32), "w")
    value = helper.make_tensor_value_info("o", TensorProto.FLOAT, None)
    branch = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["o"])], "b", [], [value], [weights])
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    call = helper.make_node("Twice", ["y"], ["z"], domain="local")
    twice = helper.make_function(
        "local", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    graph = helper.make_graph([node, call], "g", [], [])
    path = tmp_path / "branches.onnx"
    onnx.save(helper.make_model(graph, functions=[twice]), path)
    facts = onnx_facts(path)
    assert facts.operators == {"If": 1, "MatMul": 2, "local:Twice": 1, "Add": 1}
    assert facts.custom == set(), "the file brings that operator itself"
    assert facts.weights == {"FP32": 8}


@pytest.mark.parametrize("cut", [9, 100, 5000, 60000])
def test_a_tflite_file_that_is_cut_off_is_refused_in_words(model_files, tmp_path, cut):
    path = tmp_path / "cut.tflite"
    path.write_bytes(model_files["pymicro-wakeword-2.5.0"].read_bytes()[:cut])
    with pytest.raises(ModelError, match=r"cut\.tflite: is not a (complete )?TFLite file"):
        tflite_facts(path)


def test_flipped_bytes_never_escape_as_a_foreign_error(model_files, tmp_path):
    for name, read in (("pymicro-wakeword-2.5.0", tflite_facts), ("silero-vad-6.2.3", onnx_facts)):
        data = model_files[name].read_bytes()
        random = np.random.default_rng(7)
        for _ in range(60):
            broken = bytearray(data)
            for at in random.integers(0, min(len(data), 4000), 8):
                broken[at] ^= int(random.integers(1, 256))
            path = tmp_path / "broken"
            path.write_bytes(broken)
            try:
                read(path)
            except ModelError as error:
                assert len(str(error)) < 400  # noqa: PT017 - most flips are harmless


def test_what_a_file_says_cannot_steer_the_terminal():
    assert printable(b"a\x1b[2Jb\n\xff") == "a [2Jb �"


def test_the_command_prints_pages_and_json(model_files, tmp_path, monkeypatch):
    monkeypatch.setenv("WHERRY_CACHE", str(tmp_path / "cache"))
    path = str(model_files["silero-vad-6.2.3"])
    page = CliRunner().invoke(app, ["inspect", path])
    assert page.exit_code == 0
    assert "onnx: loads it" in page.stdout
    assert "raspberry-pi-5" in page.stdout
    found = json.loads(CliRunner().invoke(app, ["inspect", path, "--json"]).stdout)
    assert found["signature"]["inputs"][1]["shape"] == [2, -1, 128]
    missing = CliRunner().invoke(app, ["inspect", str(tmp_path / "no.onnx")])
    assert missing.exit_code == 1
