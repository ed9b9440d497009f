"""TFLite adapter: LiteRT (`ai_edge_litert`), or `tflite_runtime` where LiteRT has no wheel. Both have one interface."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from wherry.errors import ConfigError, InferenceError, MalformedMessage, ModelError
from wherry.release import Datatype, ModelFile, Signature, TensorSpec
from wherry_serving.runtimes import DATATYPES, DTYPES, Array, Arrays, first_line

_MODULES = {"litert": "ai_edge_litert.interpreter", "tflite": "tflite_runtime.interpreter"}
_PROVIDER = "CPUExecutionProvider"


class LiteRuntime:
    """A TFLite interpreter. Tensors are named as `get_input_details()` and `get_output_details()` name them."""

    platform = "tensorflow_lite"
    provider = _PROVIDER

    def __init__(self, file: ModelFile, path: Path) -> None:
        self._thing = f"model {file.name}"
        if file.provider != _PROVIDER:
            raise ConfigError(self._thing, f"needs {file.provider}, {file.runtime} has only {_PROVIDER}")
        self._file, self._path = file, path
        self._interpreter = self._open()
        self._used = False
        self.keeps_state = file.reset == "never" and _has_variables(self._interpreter)
        self._inputs = {item["name"]: item for item in self._interpreter.get_input_details()}
        self._outputs = {item["name"]: item for item in self._interpreter.get_output_details()}
        self._shapes = self._own_shapes()
        self.signature = Signature(
            inputs=[self._spec(item) for item in self._inputs.values()],
            outputs=[self._spec(item) for item in self._outputs.values()],
        )

    def _open(self) -> Any:
        make, runtime = _interpreter_class(self._file.runtime), self._file.runtime
        try:
            interpreter = make(model_path=str(self._path), num_threads=self._file.threads or None)
            interpreter.allocate_tensors()
        except Exception as error:  # ValueError, RuntimeError, and SystemError when numpy is too new
            raise ModelError(self._thing, f"{runtime} cannot load {self._file.file}: {first_line(error)}") from error
        return interpreter

    def _own_shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(item["shape"]) for name, item in self._inputs.items()}

    def reset(self) -> None:
        """Forget the state of earlier runs; see `Runtime.reset`.

        `reset_all_variables` leaves resource variables (VAR_HANDLE) as they are, and streaming models keep their
        state in them: only a new interpreter forgets. It takes half a millisecond for a model of 60 kB.
        """
        if self._used:
            self._interpreter = self._open()
            self._shapes = self._own_shapes()
            self._used = False

    def _spec(self, item: Any) -> TensorSpec:
        datatype = "BYTES" if item["dtype"] is np.bytes_ else DATATYPES.get(np.dtype(item["dtype"]))
        if datatype is None:
            raise ModelError(self._thing, f"tensor {item['name']!r} is {item['dtype']}, which cannot be served")
        shape = [int(size) for size in item.get("shape_signature", item["shape"])]
        return TensorSpec(name=item["name"], datatype=cast(Datatype, datatype), shape=shape)

    def run(self, inputs: Arrays, outputs: Sequence[str]) -> list[Array]:
        """Run the model once; see `Runtime.run`."""
        if self._file.reset == "each":
            self.reset()
        self._resize(inputs)
        self._used = True
        try:
            for name, array in inputs.items():
                self._interpreter.set_tensor(self._inputs[name]["index"], array)
            self._interpreter.invoke()
            return [self._read(name) for name in outputs]
        except (ValueError, RuntimeError) as error:
            raise InferenceError(self._thing, f"the TFLite runtime failed: {first_line(error)}") from error

    def _resize(self, inputs: Arrays) -> None:
        shapes = {name: array.shape for name, array in inputs.items()}
        if shapes == self._shapes:
            return
        try:
            for name, shape in shapes.items():
                self._interpreter.resize_tensor_input(self._inputs[name]["index"], list(shape))
            self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            self._shapes = {}  # half resized: the next request sets every shape again
            raise MalformedMessage(self._thing, f"refuses these input shapes: {first_line(error)}") from error
        self._shapes = shapes

    def _read(self, name: str) -> Array:
        item = self._outputs[name]
        array = np.asarray(self._interpreter.get_tensor(item["index"]))
        return array.astype(DTYPES["BYTES"]) if array.dtype.kind == "S" else array


def _has_variables(interpreter: Any) -> bool:
    """Whether a run leaves something for the next. An interpreter that does not say is taken to."""
    try:
        return any(item["op_name"] == "VAR_HANDLE" for item in interpreter._get_ops_details())
    except (AttributeError, KeyError, TypeError):
        return True


def _interpreter_class(runtime: str) -> Any:
    name = _MODULES[runtime]
    try:
        return importlib.import_module(name).Interpreter
    except ImportError as error:
        package = name.partition(".")[0]
        reason = f"{package} is not installed here ({first_line(error)})"
        raise ConfigError(f"runtime {runtime}", reason, f"Add {package} to the image's runtime layer") from error
