"""Model runtimes, one adapter each, behind one interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wherry.release import ModelFile, Signature

Array = NDArray[Any]
Arrays = Mapping[str, Array]

DTYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(np.object_),
}
"""Datatype of the protocol -> numpy's. Elements of BYTES arrays are `bytes`."""
DATATYPES = {dtype: name for name, dtype in DTYPES.items()}


class Runtime(Protocol):
    """A loaded model. Used from one thread only."""

    @property
    def platform(self) -> str:
        """The protocol's name of the model format."""

    @property
    def provider(self) -> str:
        """The execution provider that the session really uses."""

    @property
    def keeps_state(self) -> bool:
        """Whether an answer depends on the requests before: such a model is not disturbed while it serves."""

    @property
    def signature(self) -> Signature:
        """Inputs and outputs as the model file has them."""

    def run(self, inputs: Arrays, outputs: Sequence[str]) -> list[Array]:
        """Run the model once.

        Args:
            inputs: every input by name, of the declared datatype.
            outputs: names of the outputs wanted.

        Raises:
            MalformedMessage: the model refuses these inputs.
            InferenceError: the runtime failed.
        """

    def reset(self) -> None:
        """Forget what earlier runs left in the model's variables."""


def open_runtime(file: ModelFile, path: Path) -> Runtime:
    """Load a model file with the runtime that its model.json names; only that runtime is imported.

    Raises:
        ConfigError: the runtime or provider is not in this image.
        ModelError: the file cannot be loaded.
    """
    if file.runtime == "onnx":
        from wherry_serving.runtimes.onnx import OnnxRuntime

        return OnnxRuntime(file, path)
    from wherry_serving.runtimes.litert import LiteRuntime

    return LiteRuntime(file, path)


def first_line(error: BaseException) -> str:
    """What a runtime's exception says, without stack and file names, short enough for one sentence."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300].rstrip(". ")
