"""The real models of the demo: what they take, what they mean, and one that answers wrongly."""

from __future__ import annotations

import json
from pathlib import Path

from lab import ROOT

from wherry.tensors import Tensor, tensor_from_values


def magika_input(content: bytes) -> Tensor:
    """A file as Magika's v3 models take it: 1,024 bytes of its beginning and of its end, 256 for none."""
    block, pad = 4096, 256
    beginning = list(content[:block].lstrip()[:1024])
    end = list(content[-block:].rstrip()[-1024:])
    values = beginning + [pad] * (1024 - len(beginning)) + [pad] * (1024 - len(end)) + end
    return tensor_from_values("bytes", "INT32", [1, 2048], values)


def break_model(source: Path, target: Path) -> None:
    """A model that loads, is fast and calls itself healthy, but whose classes are shifted by one.

    It is what an export with the wrong label order gives: no health check sees it.
    """
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(str(source))
    output = model.graph.output[0].name
    classes = model.graph.output[0].type.tensor_type.shape.dim[-1].dim_value
    for node in model.graph.node:
        node.output[:] = ["right_answer" if name == output else name for name in node.output]
    import numpy as np

    order = numpy_helper.from_array(np.roll(np.arange(classes), 1), "order")
    model.graph.initializer.append(order)
    model.graph.node.append(helper.make_node("Gather", ["right_answer", "order"], [output], axis=-1))
    onnx.save(model, str(target))


def labels(version: str) -> list[str]:
    """What the model's classes mean, as its package says."""
    config = json.loads((ROOT / "build" / "models" / f"magika-{version}.json").read_text())
    return [str(label) for label in config["target_labels_space"]]
