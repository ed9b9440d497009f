"""What the numbers of an output mean: probabilities, the best classes, their names. Pure numpy.

Classes stand on the last axis. Two forms carry them:
- Triton's classification extension: an output asked for with `parameters.classification: k` comes as BYTES with
  "score:index" or "score:index:label" elements, best first, and k as its last dimension.
- `parameters.labels` of a response: `[{"label": …, "index": …, "score": …}, …]`, for pictures always, for tensors
  when the request's `parameters.labels` is true. An output of several rows gives a list of such lists.
Outputs asked for as they are stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wherry.elements import Tensor, pack_bytes
from wherry.errors import ConfigError, MalformedMessage
from wherry.release import LabelledOutput, ModelFile
from wherry_serving.runtimes import Array

_MOST_ROWS = 1000
"""An output with more rows than this holds no classes that anyone would read."""
_AGAIN = "Correct the declaration and package the model again"


def softmax(scores: Array) -> Array:
    """Scores as probabilities along the last axis, in double precision."""
    shifted = scores.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    raised = np.exp(shifted)
    found: Array = raised / raised.sum(axis=-1, keepdims=True)
    return found


def best(scores: Array, count: int) -> Array:
    """Indices of the highest scores along the last axis, best first; of equal ones the lower index first."""
    order: Array = np.argsort(-scores.astype(np.float64), axis=-1, kind="stable")
    return order[..., :count]


def check_labelled(file: ModelFile) -> LabelledOutput | None:
    """The labels that a model.json declares.

    Raises:
        ConfigError: they do not fit the model's signature.
    """
    spec = file.labelled
    if spec is None:
        return None
    found = {tensor.name: tensor for tensor in file.signature.outputs}
    thing, tensor = f"labels of model {file.name}", found.get(spec.output)
    if tensor is None:
        raise ConfigError(thing, f"are for output {spec.output!r}, the model has {', '.join(found)}", _AGAIN)
    if tensor.datatype in ("BYTES", "BOOL") or not tensor.shape:
        raise ConfigError(thing, f"are for output {spec.output!r}, which holds no scores", _AGAIN)
    if tensor.shape[-1] not in (-1, len(spec.labels)):
        reason = f"are {len(spec.labels)}, output {spec.output!r} has {tensor.shape[-1]} classes"
        raise ConfigError(thing, reason, _AGAIN)
    return spec


class Labels:
    """Names classes, for one model.

    Args:
        spec: what its model.json declares, None without labels.
    """

    def __init__(self, spec: LabelledOutput | None = None) -> None:
        self.spec = spec

    def classify(self, name: str, array: Array, count: int) -> Tensor:
        """An output in the form of the classification extension.

        Raises:
            MalformedMessage: the output holds no scores.
        """
        scores = self._scores(name, array)
        indices = best(scores, count)
        elements = (
            b":".join([b"%f" % score, b"%d" % index, *self._label(name, index)])
            for score, index in zip(np.take_along_axis(scores, indices, -1).flat, indices.flat, strict=True)
        )
        return Tensor(name, "BYTES", indices.shape, pack_bytes(elements))

    def readable(self, outputs: Mapping[str, Array]) -> dict[str, Any]:
        """The response's parameters with the named classes; empty when no labels are declared or asked for."""
        if self.spec is None or self.spec.output not in outputs:
            return {}
        scores = self._scores(self.spec.output, outputs[self.spec.output])
        rows = math.prod(scores.shape[:-1])
        if not 0 < rows <= _MOST_ROWS:
            return {}
        named = [self._row(row) for row in scores.reshape(rows, -1)]
        return {"labels": named[0] if rows == 1 else named}

    def describe(self) -> dict[str, Any]:
        """For the model's metadata."""
        if self.spec is None:
            return {}
        classes = len(self.spec.labels)
        return {"labelled": {"output": self.spec.output, "classes": classes, "top": self.spec.top}}

    def _row(self, scores: Array) -> Sequence[dict[str, Any]]:
        assert self.spec is not None  # noqa: S101 - for the type checker: `readable` has looked
        return [
            {"label": self._name(index), "index": index, "score": float(scores[index])}
            for index in best(scores, self.spec.top).tolist()
        ]

    def _scores(self, name: str, array: Array) -> Array:
        if array.dtype.kind not in "fiu" or not array.ndim or not array.size:
            raise MalformedMessage(f"output {name!r}", "holds no scores, so it has no classes: ask for the tensor")
        return softmax(array) if self.spec and self.spec.softmax and self.spec.output == name else array

    def _label(self, name: str, index: int) -> list[bytes]:
        if self.spec is None or self.spec.output != name:
            return []
        return [self._name(index).encode()]

    def _name(self, index: int) -> str:
        names = self.spec.labels if self.spec else []
        return names[index] if index < len(names) else str(index)
