"""Models that people ship: stateful TFLite on both runtimes, and ONNX with state, scalars and dynamic shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton

from wherry.release import ModelFile, Signature, TensorSpec
from wherry_serving.models import load_model, read_models
from wherry_serving.runtimes import open_runtime

WAKE = ["pymicro-wakeword-2.2.0", "pymicro-wakeword-2.5.0"]


def spec(name, datatype, shape):
    return TensorSpec(name=name, datatype=datatype, shape=shape)


def lite_signature(path):
    """Names as the interpreter has them, from the runtime itself."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path))
    names = {np.int8: "INT8", np.uint8: "UINT8", np.float32: "FP32"}
    return [
        [spec(item["name"], names[item["dtype"]], [int(size) for size in item["shape"]]) for item in details]
        for details in (interpreter.get_input_details(), interpreter.get_output_details())
    ]


def open_wake(model_files, name, runtime, reset="each"):
    path = model_files[name]
    inputs, outputs = lite_signature(path)
    file = ModelFile(
        name="wake",
        version="1",
        file=path.name,
        runtime=runtime,
        provider="CPUExecutionProvider",
        precision="int8",
        signature=Signature(inputs=inputs, outputs=outputs),
        reset=reset,
    )
    return open_runtime(file, path), inputs[0], outputs[0]


@pytest.mark.parametrize("name", WAKE)
@pytest.mark.parametrize("reset", ["each", "never"])
def test_both_tflite_runtimes_answer_the_same(model_files, numbers, name, reset):
    frames = numbers.integers(-128, 128, (30, 1, 3, 40)).astype(np.int8)
    answers = []
    for kind in ("litert", "tflite"):
        runtime, source, target = open_wake(model_files, name, kind, reset)
        shaped = frames.reshape(-1, *source.shape)
        answers.append(np.concatenate([runtime.run({source.name: frame}, [target.name])[0] for frame in shaped]))
    np.testing.assert_array_equal(answers[0], answers[1])


@pytest.mark.parametrize("kind", ["litert", "tflite"])
def test_a_stateful_model_forgets_when_it_is_told_to(model_files, numbers, kind):
    frames = numbers.integers(-128, 128, (10, 1, 3, 40)).astype(np.int8)

    def listen(runtime, source, target):
        return [int(runtime.run({source.name: frame}, [target.name])[0][0, 0]) for frame in frames]

    forgetful = listen(*open_wake(model_files, WAKE[0], kind, "each"))
    streaming = listen(*open_wake(model_files, WAKE[0], kind, "never"))
    assert forgetful != streaming, "this model must have state, or the test proves nothing"
    runtime, source, target = open_wake(model_files, WAKE[0], kind, "never")
    assert listen(runtime, source, target) == streaming
    assert listen(runtime, source, target) != streaming
    runtime.reset()
    assert listen(runtime, source, target) == streaming


def test_a_client_starts_a_sequence_anew(model_files, shop, start, numbers):
    path = model_files[WAKE[0]]
    inputs, outputs = lite_signature(path)
    shop.copy("wake", path, "litert", inputs, outputs, precision="int8")
    with triton.InferenceServerClient(start().address) as client:

        def listen(begin):
            found: list[int] = []
            for frame in frames:
                item = triton.InferInput(inputs[0].name, inputs[0].shape, "INT8")
                item.set_data_from_numpy(frame)
                options = {"sequence_id": 1, "sequence_start": begin and not found}
                found.append(int(client.infer("wake", [item], **options).as_numpy(outputs[0].name)[0, 0]))
            return found

        frames = numbers.integers(-128, 128, (5, 1, 3, 40)).astype(np.int8)
        first = listen(False)
        assert listen(True) == first, "the warm inference leaves nothing behind, and neither does the last sequence"
        assert listen(False) != first


@pytest.mark.parametrize("runtime", ["litert", "tflite"])
def test_a_wake_word_over_the_wire(model_files, shop, start, runtime):
    path = model_files[WAKE[0]]
    inputs, outputs = lite_signature(path)
    shop.copy("wake", path, runtime, inputs, outputs, precision="int8", reset="each")
    running = start()
    with triton.InferenceServerClient(running.address) as client:
        assert client.get_model_metadata("wake")["parameters"]["runtime"] == runtime
        item = triton.InferInput(inputs[0].name, inputs[0].shape, inputs[0].datatype)
        item.set_data_from_numpy(np.full(inputs[0].shape, 7, np.int8))
        first, second = (client.infer("wake", [item]).as_numpy(outputs[0].name) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert first.dtype == np.uint8
    status, reply, _ = running.infer(
        "wake", {"name": inputs[0].name, "datatype": "INT8", "shape": [1, 1, 40], "data": [0] * 40}
    )
    assert status == 400
    assert "has shape [1, 1, 40]" in reply["error"]


def test_magika_in_batches_of_any_size(model_files, shop, start):
    path = model_files["magika-1.0.3"]
    shop.copy("magika", path, "onnx", [spec("bytes", "INT32", [-1, 2048])], [spec("target_label", "FP32", [-1, 214])])
    running = start()
    with triton.InferenceServerClient(running.address) as client:
        for batch in (1, 3):
            item = triton.InferInput("bytes", [batch, 2048], "INT32")
            item.set_data_from_numpy(np.full((batch, 2048), 256, np.int32))
            found = client.infer("magika", [item]).as_numpy("target_label")
            assert found.shape == (batch, 214)
            np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-3)


@pytest.mark.parametrize("name", ["silero-vad-5.1.2", "silero-vad-6.2.3"])
def test_silero_with_state_and_a_scalar(model_files, shop, name):
    inputs = [spec("input", "FP32", [-1, -1]), spec("state", "FP32", [2, -1, 128]), spec("sr", "INT64", [])]
    outputs = [spec("output", "FP32", [-1, 1]), spec("stateN", "FP32", [-1, -1, -1])]
    shop.copy("vad", model_files[name], "onnx", inputs, outputs)
    [source] = read_models(shop.folder)
    runtime = open_runtime(source.file, source.path)
    feed: dict[str, np.ndarray[Any, Any]] = {
        "input": np.zeros((1, 576), np.float32),
        "state": np.zeros((2, 1, 128), np.float32),
        "sr": np.array(16000, np.int64),
    }
    found, state = runtime.run(feed, ["output", "stateN"])
    assert found.shape == (1, 1)
    assert state.shape == (2, 1, 128)


def test_tflite_takes_another_shape_when_the_model_allows_it(model_files, shop):
    runtime, source, target = open_wake(model_files, WAKE[0], "litert")
    good = np.zeros(source.shape, np.int8)
    [before] = runtime.run({source.name: good}, [target.name])
    from wherry.errors import WherryError

    with pytest.raises(WherryError):
        runtime.run({source.name: np.zeros((1, 1, 41), np.int8)}, [target.name])
    [after] = runtime.run({source.name: good}, [target.name])
    np.testing.assert_array_equal(before, after)


def test_a_tflite_model_loads_as_an_image_has_it(model_files, shop):
    path = model_files[WAKE[0]]
    inputs, outputs = lite_signature(path)
    shop.copy("wake", path, "litert", inputs, outputs, precision="int8", reset="each")
    [source] = read_models(shop.folder)
    assert load_model(source).runtime.provider == "CPUExecutionProvider"
