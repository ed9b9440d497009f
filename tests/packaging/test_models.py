"""Model files: what they are, in words when they are not, and golden cases that mean something."""

import json

import numpy as np
import pytest

from wherry.elements import tensor_from_golden
from wherry.errors import InputError, ModelError
from wherry.release import GoldenFile, TensorSpec
from wherry_cli.packaging.golden import Recipe, concrete_shape, golden_bytes, make_array, read_golden, telling
from wherry_cli.packaging.model import ModelWishes, read_model, runtime_of
from wherry_cli.packaging.onnx_file import onnx_precision


def spec(datatype="FP32", shape=(-1, 3, -1)):
    return TensorSpec(name="x", datatype=datatype, shape=list(shape))


# -- real models


@pytest.mark.parametrize(
    ("name", "runtime", "precision", "reset", "inputs"),
    [
        ("magika-1.0.3", "onnx", "fp32", "never", [("bytes", "INT32", [-1, 2048])]),
        (
            "silero-vad-6.2.3",
            "onnx",
            "fp32",
            "never",
            [("input", "FP32", [-1, -1]), ("state", "FP32", [2, -1, 128]), ("sr", "INT64", [])],
        ),
        ("pymicro-wakeword-2.5.0", "litert", "int8", "each", [("serving_default_input_audio:0", "INT8", [1, 3, 40])]),
    ],
)
def test_real_models_tell_what_they_are(model_files, name, runtime, precision, reset, inputs):
    found = read_model(model_files[name], "m", "1")
    assert (found.runtime, found.precision, found.reset) == (runtime, precision, reset)
    assert [(item.name, item.datatype, item.shape) for item in found.signature.inputs] == inputs
    assert len(found.cases) == 3
    for case in found.cases:
        assert [tensor.name for tensor in case.outputs] == [item.name for item in found.signature.outputs]
        for tensor in map(tensor_from_golden, (*case.inputs, *case.outputs)):
            assert -1 not in tensor.shape


def test_made_cases_are_the_same_every_time(make_model):
    path = make_model()
    first, second = (read_model(path, "m", "1").cases for _ in range(2))
    assert golden_bytes("m", first) == golden_bytes("m", second)
    assert telling(first)


# -- bad files


def test_a_truncated_file_is_said_in_words(model_files, tmp_path):
    for name, suffix in (("magika-1.0.3", ".onnx"), ("pymicro-wakeword-2.5.0", ".tflite")):
        path = tmp_path / f"cut{suffix}"
        path.write_bytes(model_files[name].read_bytes()[:-20000])
        with pytest.raises(ModelError, match=f"model cut{suffix}: "):
            read_model(path, "m", "1")


@pytest.mark.parametrize("content", [b"", b"not a model at all", b"\x08\x07\x3a\x02\x0a\x00", bytes(5000)])
@pytest.mark.parametrize("suffix", [".onnx", ".tflite"])
def test_what_is_no_model_is_refused(tmp_path, content, suffix):
    path = tmp_path / f"junk{suffix}"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="junk"):
        read_model(path, "m", "1")


def test_an_unknown_operator_is_named(tmp_path, make_model):
    path = tmp_path / "custom.onnx"
    path.write_bytes(make_model().read_bytes().replace(b"MatMul", b"MatMuk"))
    with pytest.raises(ModelError, match="MatMuk"):
        read_model(path, "m", "1")


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("kill -SEGV $$", r"made its runtime crash \(SIGSEGV\)"),
        ("echo last words >&2; exit 1", "could not be run: last words"),
        ("echo '{'", "could not be run"),
    ],
)
def test_a_runtime_that_crashes_does_not_take_us_along(make_model, tmp_path, monkeypatch, script, words):
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setattr("wherry_cli.packaging.child_process.sys.executable", str(fake))
    with pytest.raises(ModelError, match=words):
        read_model(make_model(), "m", "1")


def test_suffix_and_runtime_must_agree(tmp_path):
    assert runtime_of(tmp_path / "A.ONNX") == "onnx"
    assert runtime_of(tmp_path / "a.tflite", "tflite") == "tflite"
    with pytest.raises(ModelError, match="cannot be served by onnx"):
        runtime_of(tmp_path / "a.tflite", "onnx")
    with pytest.raises(ModelError, match="from-image"):
        runtime_of(tmp_path / "a.pt")
    with pytest.raises(ModelError, match="is not a file"):
        read_model(tmp_path / "absent.onnx", "m", "1")


def test_a_model_that_draws_at_random_has_no_golden_cases(random_model):
    with pytest.raises(ModelError, match=r"does not answer the same request the same way twice.*--no-golden"):
        read_model(random_model, "m", "1")
    assert read_model(random_model, "m", "1", ModelWishes(goldens="none")).cases == ()


def test_precision_is_that_of_most_weights(make_model):
    assert onnx_precision(make_model()) == "fp32"
    assert onnx_precision(make_model(kind=np.float16)) == "fp16"


# -- made inputs


def test_dynamic_dimensions_get_a_size_and_the_batch_is_one():
    assert concrete_shape(spec(), {}, Recipe(16, 100)) == (1, 3, 16)
    assert concrete_shape(spec(shape=(2, -1, 128)), {}, Recipe(16, 100, last_only=True)) == (2, 1, 128)
    assert concrete_shape(spec(), {"x": (2, 3, 7)}, Recipe(16, 100)) == (2, 3, 7)
    with pytest.raises(InputError, match=r"--shape x=2,4,7"):
        concrete_shape(spec(), {"x": (2, 4, 7)}, Recipe(16, 100))


@pytest.mark.parametrize("datatype", ["BOOL", "UINT8", "INT8", "UINT16", "INT64", "FP16", "FP32", "FP64", "BYTES"])
def test_values_are_sensible_for_their_datatype(datatype):
    array = make_array(spec(datatype), (1, 3, 50), Recipe(50, 10), np.random.default_rng(0))
    assert array.shape == (1, 3, 50)
    if datatype.startswith(("FP", "UINT16", "INT64")):
        assert 0 <= array.min() < array.max() < 10
    elif datatype == "INT8":
        assert array.min() < 0


def test_a_shape_for_no_input_is_refused(make_model):
    with pytest.raises(InputError, match="these are: x"):
        read_model(make_model(), "m", "1", ModelWishes(shapes={"z": [1, 4]}))


# -- given cases


def write_case(path, outputs):
    case = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 0, 0, 0]}],
        "outputs": outputs,
    }
    path.write_text(json.dumps(case))


def first_row():
    return np.random.default_rng(1).random((4, 3))[0].astype(np.float32).tolist()


def test_given_cases_are_checked_and_completed(make_model, tmp_path):
    path = make_model()
    folder = tmp_path / "cases"
    folder.mkdir()
    write_case(folder / "right.json", [{"name": "y", "datatype": "FP32", "shape": [1, 3], "data": first_row()}])
    write_case(folder / "open.json", [])
    cases = tuple(read_golden(folder))
    assert [case.name for case in cases] == ["open", "right"]
    found = read_model(path, "m", "1", ModelWishes(goldens="given", cases=cases)).cases
    values = [tensor_from_golden(case.outputs[0]).values() for case in found]
    assert list(values[0]) == pytest.approx(list(values[1]), rel=1e-5)


def test_a_given_case_that_the_model_answers_otherwise_is_named(make_model, tmp_path):
    write_case(tmp_path / "wrong.json", [{"name": "y", "datatype": "FP32", "shape": [1, 3], "data": [9, 9, 9]}])
    cases = tuple(read_golden(tmp_path / "wrong.json"))
    with pytest.raises(InputError, match="golden case wrong: is not what this model answers"):
        read_model(make_model(), "m", "1", ModelWishes(goldens="given", cases=cases))


def test_a_given_case_for_other_inputs_is_named(make_model, tmp_path):
    text = {"inputs": [{"name": "z", "datatype": "FP32", "shape": [1], "data": [1]}]}
    (tmp_path / "other.json").write_text(json.dumps(text))
    cases = tuple(read_golden(tmp_path / "other.json"))
    with pytest.raises(InputError, match="golden case other: does not fit the model"):
        read_model(make_model(), "m", "1", ModelWishes(goldens="given", cases=cases))


def test_golden_json_is_read_as_it_was_written(make_model, tmp_path):
    cases = read_model(make_model(), "m", "1").cases
    (tmp_path / "golden.json").write_bytes(golden_bytes("m", cases))
    assert tuple(read_golden(tmp_path / "golden.json")) == cases
    assert GoldenFile.model_validate_json((tmp_path / "golden.json").read_bytes()).model == "m"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"cases": []}', '{"schema": 9, "cases": []}', '{"inputs": [{}]}'])
def test_unusable_golden_files_are_refused(tmp_path, content):
    (tmp_path / "g.json").write_text(content)
    with pytest.raises(InputError, match="golden cases"):
        read_golden(tmp_path / "g.json")
    with pytest.raises(InputError, match="golden cases"):
        read_golden(tmp_path / "absent.json")
