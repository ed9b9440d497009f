"""ONNX Runtime adapter: the only importer of onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from wherry.errors import ConfigError, InferenceError, MalformedMessage, ModelError
from wherry.release import Datatype, ModelFile, Signature, TensorSpec
from wherry_serving.runtimes import Array, Arrays, first_line

_CPU = "CPUExecutionProvider"
_FALLBACKS = {
    _CPU: [],
    # Operators that TensorRT cannot take run on CUDA; the session still reports TensorRT first.
    "TensorrtExecutionProvider": ["CUDAExecutionProvider", _CPU],
}
_TYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float": "FP32",
    "double": "FP64",
    "string": "BYTES",
}


class OnnxRuntime:
    """An ONNX Runtime session."""

    platform = "onnxruntime_onnx"
    keeps_state = False

    def __init__(self, file: ModelFile, path: Path) -> None:
        self._thing = f"model {file.name}"
        ort.disable_telemetry_events()  # a model server on a device tells nobody but its owner
        if file.provider not in ort.get_available_providers():
            have = ", ".join(ort.get_available_providers())
            raise ConfigError(self._thing, f"needs {file.provider}, this ONNX Runtime has only {have}")
        providers = [file.provider, *_FALLBACKS.get(file.provider, [_CPU])]
        try:
            self._session = ort.InferenceSession(str(path), _options(file.threads), providers=providers)
        except Exception as error:  # its many exception classes share no base but Exception
            raise ModelError(self._thing, f"ONNX Runtime cannot load {file.file}: {first_line(error)}") from error
        self.provider: str = self._session.get_providers()[0]
        self.signature = Signature(
            inputs=[self._spec(item) for item in self._session.get_inputs()],
            outputs=[self._spec(item) for item in self._session.get_outputs()],
        )
        self._text_inputs = [item.name for item in self.signature.inputs if item.datatype == "BYTES"]

    def _spec(self, item: Any) -> TensorSpec:
        datatype = _TYPES.get(str(item.type).removeprefix("tensor(").removesuffix(")"))
        if datatype not in get_args(Datatype):
            raise ModelError(self._thing, f"tensor {item.name!r} is a {item.type}, which cannot be served")
        shape = [size if isinstance(size, int) else -1 for size in item.shape]
        return TensorSpec(name=item.name, datatype=cast(Datatype, datatype), shape=shape)

    def run(self, inputs: Arrays, outputs: Sequence[str]) -> list[Array]:
        """Run the model once; see `Runtime.run`."""
        feed = {name: _aligned(array) for name, array in inputs.items()}
        for name in self._text_inputs:
            feed[name] = _text(name, feed[name])
        try:
            results = self._session.run(list(outputs), feed)
        except InvalidArgument as error:
            raise MalformedMessage(self._thing, f"refuses these inputs: {first_line(error)}") from error
        except Exception as error:  # as above
            raise InferenceError(self._thing, f"ONNX Runtime failed: {first_line(error)}") from error
        return [self._array(name, result) for name, result in zip(outputs, results, strict=True)]

    def reset(self) -> None:
        """Nothing to forget: ONNX models take and give their state as tensors."""

    def _array(self, name: str, result: Any) -> Array:
        if not isinstance(result, np.ndarray):
            raise InferenceError(self._thing, f"output {name!r} is a {type(result).__name__}, not a tensor")
        if result.dtype != np.object_:
            return result
        return _object_array([str(item).encode() for item in result.flat], result.shape)


def _options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.enable_cpu_mem_arena = False  # costs no time, and returns the memory of a large request
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Idle threads that spin took 16 ms of CPU for each run of 6 ms (magika, 2 cores) and made nothing faster.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _aligned(array: Array) -> Array:
    """A view into a request's body may start at any byte; ONNX Runtime reads whole words."""
    return array if array.flags.aligned else array.copy()


def _text(name: str, array: Array) -> Array:
    """ONNX Runtime takes `str` elements: it would print `bytes` as b'…'."""
    try:
        return _object_array([item.decode() for item in array.flat], array.shape)
    except UnicodeDecodeError as error:
        raise MalformedMessage(f"input {name!r}", "holds bytes that are not UTF-8, expected text") from error


def _object_array(items: list[Any], shape: tuple[int, ...]) -> Array:
    array = np.empty(len(items), dtype=np.object_)
    array[:] = items
    return array.reshape(shape)
