"""Inference requests and responses as values; `wherry.tensors` reads and writes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from wherry.elements import Tensor
from wherry.errors import InferenceError


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """An output that a request names, and the form it wants it in.

    Attributes:
        name: of the output.
        binary: as raw bytes, not JSON.
        classes: how many of its best classes are wanted instead of the tensor (the classification extension).
    """

    name: str
    binary: bool
    classes: int = 0


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A decoded inference request.

    Attributes:
        id: echoed in the response; "" for none.
        inputs: in the order sent.
        outputs: those asked for; empty means all.
        binary_output: form of the outputs when `outputs` is empty.
        parameters: the request's other parameters.
    """

    id: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[RequestedOutput, ...] = ()
    binary_output: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class InferResponse:
    """A decoded inference response."""

    model: str
    version: str
    id: str
    outputs: tuple[Tensor, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def output(self, name: str) -> Tensor:
        """The output of a name.

        Raises:
            InferenceError: the response has none of that name.
        """
        for tensor in self.outputs:
            if tensor.name == name:
                return tensor
        raise InferenceError(f"response of model {self.model}", f"has no output {name!r}")
