"""Quantizing for real: smaller files whose answers stay, and refusals that say what to do."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wherry.errors import BuildError, InputError, ModelError
from wherry.release import ModelFile, Signature, TensorSpec
from wherry_cli.packaging.agreement import compare_models
from wherry_cli.packaging.command import PackageOrder, package
from wherry_cli.packaging.model import read_model
from wherry_cli.packaging.quantize import ModelNotes, Quantize, quantize_model
from wherry_cli.packaging.samples import read_samples


@pytest.fixture
def folder(tmp_path) -> Path:
    made = tmp_path / "quantized"
    made.mkdir()
    return made


@pytest.fixture
def pictures_like(tmp_path) -> Path:
    """Forty inputs of the small classifier, as one .npy."""
    path = tmp_path / "calibration" / "inputs.npy"
    path.parent.mkdir()
    np.save(path, np.random.default_rng(0).random((40, 3, 16, 16)).astype(np.float32))
    return path.parent


class Answers:
    """A stand-in for a runtime: gives a fixed output for each sample."""

    platform = provider = "test"

    def __init__(self, *outputs):
        self.signature = Signature(inputs=[], outputs=[TensorSpec(name="y", datatype="FP32", shape=[1, 3])])
        self._left = [np.array(output, np.float32) for output in outputs]

    def run(self, inputs, outputs):
        return [self._left.pop(0)]

    def reset(self):
        """Nothing."""


# -- ONNX


def test_fp16_halves_the_file_and_keeps_the_answers(conv_model, folder):
    path, report = quantize_model(conv_model, Quantize("fp16"), ModelNotes(), folder)
    assert report.quantized is not None
    assert report.quantized.bytes < 0.6 * report.original.bytes
    assert (report.original.precision, report.quantized.precision) == ("fp32", "fp16")
    assert report.agreement == 1.0
    assert report.error < 0.01
    assert report.made_up
    found = read_model(path, "m", "1")
    assert found.precision == "fp16"
    assert found.signature.inputs[0].datatype == "FP32", "inputs and outputs stay"


def test_int8_of_convolutions_is_calibrated_and_the_same_every_time(conv_model, folder, pictures_like, tmp_path):
    wanted = Quantize("int8", pictures_like)
    path, report = quantize_model(conv_model, wanted, ModelNotes(), folder)
    assert report.method == "static int8, calibrated"
    assert report.quantized is not None
    assert report.quantized.bytes < 0.5 * report.original.bytes
    assert report.samples == 40
    assert report.agreement >= 0.99
    assert read_model(path, "m", "1").precision == "int8"
    again = tmp_path / "again"
    again.mkdir()
    assert quantize_model(conv_model, wanted, ModelNotes(), again)[0].read_bytes() == path.read_bytes()


def test_int8_of_convolutions_without_samples_is_refused(conv_model, folder):
    with pytest.raises(InputError, match=r"must be calibrated on real inputs.*--calibration DIR"):
        quantize_model(conv_model, Quantize("int8"), ModelNotes(), folder)
    assert list(folder.iterdir()) == []


def test_int8_of_matrix_products_needs_no_samples(wide_model, folder):
    _, report = quantize_model(wide_model, Quantize("int8"), ModelNotes(), folder)
    assert report.method == "dynamic int8"
    assert report.agreement >= 0.99
    assert report.quantized is not None
    assert report.quantized.bytes < 0.4 * report.original.bytes


def test_a_model_whose_answers_change_is_refused_with_the_figures(conv_model, folder, tmp_path):
    poor = tmp_path / "poor"
    poor.mkdir()
    flat = np.zeros((2, 3, 16, 16), np.float32)
    flat[1] = 50  # these ranges leave next to nothing for the small differences that decide
    np.save(poor / "a.npy", flat)
    np.save(poor / "b.npy", np.random.default_rng(1).normal(0, 0.05, (30, 3, 16, 16)).astype(np.float32))
    with pytest.raises(ModelError, match=r"keeps .*% of the original's answers on 32 samples, 100.0% are needed"):
        quantize_model(conv_model, Quantize("int8", poor, 100), ModelNotes(), folder)
    assert not (folder / "classifier-int8.onnx").exists()


def test_a_model_without_weights_to_quantize_says_so(random_model, folder):
    with pytest.raises((InputError, BuildError), match=r"nothing to quantize"):
        quantize_model(random_model, Quantize("int8"), ModelNotes(), folder)


def test_a_model_of_that_precision_already_is_packaged_as_it_is(make_model, folder):
    given = make_model(kind=np.float16)
    path, report = quantize_model(given, Quantize("fp16"), ModelNotes(), folder)
    assert path == given
    assert report.quantized is None


@pytest.mark.parametrize("name", ["magika-1.0.3", "silero-vad-6.2.3"])
def test_real_models_that_one_converter_gets_wrong_become_fp16_all_the_same(model_files, folder, name):
    _, report = quantize_model(model_files[name], Quantize("fp16"), ModelNotes(), folder)
    assert report.quantized is not None
    assert report.quantized.bytes < 0.6 * report.original.bytes
    assert report.agreement >= 0.99


# -- TFLite


@pytest.mark.parametrize(("kind", "share"), [("fp16", 0.6), ("int8", 0.4)])
def test_tflite_models_are_quantized_without_tensorflow(tflite_model, folder, kind, share):
    path, report = quantize_model(tflite_model, Quantize(kind), ModelNotes(), folder)
    assert report.quantized is not None
    assert report.quantized.bytes < share * report.original.bytes
    assert report.quantized.precision == kind
    assert report.agreement >= 0.99
    found = read_model(path, "m", "1")
    assert (found.precision, found.signature.inputs[0].datatype) == (kind, "FP32")


def test_a_tflite_tool_that_does_nothing_is_caught(tflite_model, folder, tmp_path):
    half, _ = quantize_model(tflite_model, Quantize("fp16"), ModelNotes(), folder)
    given = shutil.copy(half, tmp_path / "half.tflite")
    with pytest.raises(InputError, match=r"leaves its FP16 weights alone"):
        quantize_model(Path(given), Quantize("int8"), ModelNotes(), folder)


# -- comparing


def test_an_answer_stays_when_it_is_close_or_names_the_same_class():
    wanted = [[[1.0, 0.0, 0.0]], [[1.0, 0.0, 0.0]], [[1.0, 0.9, 0.0]], [[0.0, 1.0, 0.0]]]
    found = [[[0.97, 0.0, 0.0]], [[0.5, 0.01, 0.0]], [[0.9, 1.0, 0.0]], [[0.0, np.nan, 0.0]]]
    result = compare_models(Answers(*wanted), Answers(*found), [{}] * 4, "int8")
    assert result.agreement == 0.5, "close, same class; another class, not a number"
    assert result.error == float("inf")
    assert result.cosine == 0.0


# -- samples


def described(*inputs: tuple[str, list[int]]) -> ModelFile:
    specs = [TensorSpec(name=name, datatype="FP32", shape=shape) for name, shape in inputs]
    return ModelFile(
        name="m", version="1", file="m.onnx", runtime="onnx", provider="CPUExecutionProvider", precision="fp32",
        signature=Signature(inputs=specs, outputs=[]),
    )  # fmt: skip


def test_samples_come_from_arrays_one_by_one_or_stacked(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((5, 4)), y=np.ones((5, 2), np.float32))
    np.savez(tmp_path / "b.npz", x=np.zeros(4, np.float32), y=np.ones((1, 2), np.float32))
    (tmp_path / "notes.txt").write_text("not a sample")
    found = read_samples(tmp_path, described(("x", [-1, 4]), ("y", [-1, 2])))
    assert len(found) == 6
    assert {(sample["x"].shape, str(sample["x"].dtype)) for sample in found} == {((1, 4), "float32")}


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: None, "holds no samples"),
        (lambda path: np.savez(path / "a.npz", z=np.zeros((1, 4))), r"a\.npz.*lacks input 'x', it has z"),
        (lambda path: np.save(path / "a.npy", np.zeros((1, 5))), r"has shape \[1, 5\] for input 'x'"),
        (lambda path: np.save(path / "a.npy", np.array([["a"] * 4])), "has <U1 for input 'x'"),
        (lambda path: (path / "a.npy").write_bytes(b"junk"), "is not a numpy file"),
        (lambda path: (path / "a.npz").write_bytes(b"junk"), "is not a numpy file"),
        (lambda path: np.save(path / "a.npy", np.array([{}]), allow_pickle=True), "is not a numpy file"),
        (lambda path: (path / "a.png").write_bytes(b"junk"), "declares no picture input"),
    ],
)
def test_samples_that_do_not_fit_are_named(tmp_path, write, words):
    write(tmp_path)
    with pytest.raises(InputError, match=words):
        read_samples(tmp_path, described(("x", [-1, 4])))


# -- packaging


def test_the_release_of_a_quantized_model_is_of_its_precision(conv_model, pictures_like, tmp_path, quick_layers):
    order = PackageOrder(
        "m", "1", ("generic-amd64",), model=conv_model, output=tmp_path / "out", cache=quick_layers,
        quantize=Quantize("int8", pictures_like),
    )  # fmt: skip
    made = package(order)
    (image,) = made.images
    assert made.quantization is not None
    assert made.quantization.kind == image.precision == "int8"
    assert [gate.tolerance for gate in image.gates if gate.kind == "golden"] == ["0.05"]
    assert package(replace(order, output=tmp_path / "again")).images[0].digest == image.digest
    assert list((quick_layers / "scratch").iterdir()) == [], "nothing half-made is left"
    refused = replace(order, quantize=Quantize("int8"), output=tmp_path / "refused")
    with pytest.raises(InputError, match="--calibration"):
        package(refused)
    assert not (tmp_path / "refused").exists()


def test_a_missing_extra_says_how_to_install_it(conv_model, folder, monkeypatch, tmp_path):
    (tmp_path / "onnxconverter_common").mkdir()
    (tmp_path / "onnxconverter_common" / "__init__.py").write_text("raise ImportError('No module named onnx')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "__init__.py").write_text("raise ImportError('No module named onnx')")
    with pytest.raises(BuildError, match=r"pip install 'wherry\[quantize\]'"):
        quantize_model(conv_model, Quantize("fp16"), ModelNotes(), folder)
    assert "onnxconverter_common" not in sys.modules, "heavy packages stay in the child"
