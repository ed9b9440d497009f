"""Quantizes ONNX models. The packages for it are heavy and come with the extra `quantize`; imported in a child only."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from wherry.errors import InputError
from wherry_cli.packaging.samples import Sample

_CONVOLUTIONS = {"Conv", "ConvTranspose"}
_OPSET = 13
_PRODUCTS = {"MatMul", "Gemm", "LSTM", "Attention", "Gather"}
_DYNAMIC = ["MatMul", "Gemm", "Attention", "LSTM", "Gather", "EmbedLayerNormalization"]
"""Without Conv: measured on convolutions, dynamic int8 is 3.5 times slower and often answers otherwise."""


def is_convolutional(path: Path) -> bool:
    """Whether most of the weights that can be quantized belong to convolutions.

    Raises:
        InputError: no weight can be quantized.
    """
    import onnx

    held: Counter[bool] = Counter()
    for node, weights in _weighted(onnx.load(path).graph, {}):
        if node in _CONVOLUTIONS | _PRODUCTS:
            held[node in _CONVOLUTIONS] += weights
    if not held.total():
        reason = "has no convolution and no matrix product with weights: there is nothing to quantize to int8"
        raise InputError(f"model {path.name}", reason, "Package it without --quantize")
    return held[True] >= held[False]


def _weighted(graph: Any, outer: dict[str, int]) -> Iterator[tuple[str, int]]:
    """Operator and number of weights that it reads, also of graphs inside."""
    import math

    known = outer | {item.name: math.prod(item.dims) for item in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.HasField("t"):
                known[node.output[0]] = math.prod(attribute.t.dims)
            if attribute.HasField("g"):
                yield from _weighted(attribute.g, known)
        yield node.op_type, sum(known.get(name, 0) for name in node.input)


def to_fp16(source: Path, target: Path, *, second: bool = False) -> None:
    """Weights and computation in half precision; inputs and outputs stay as they are.

    Args:
        source: the model.
        target: where to.
        second: use ONNX Runtime's own converter, which takes some models that the first gets wrong, and the reverse.
    """
    import onnx

    if second:
        from onnxruntime.transformers.float16 import convert_float_to_float16
    else:
        from onnxconverter_common.float16 import convert_float_to_float16
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of each weight that it clips
        converted = convert_float_to_float16(onnx.load(source), keep_io_types=True)
    onnx.save(converted, target)


def to_int8_static(source: Path, target: Path, samples: Sequence[Sample], folder: Path, *, plain: bool = False) -> None:
    """QDQ, unsigned activations and signed weights by channel, calibrated on samples; for convolutional models.

    Args:
        source: the model.
        target: where to.
        samples: typical inputs.
        folder: for what lies between.
        plain: leave scales of weights as they are where a bias is large; that adjustment fails on some models.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Hands out the samples, once."""

        def __init__(self) -> None:
            self._left = iter(samples)

        def get_next(self) -> Any:
            """The next sample, None at the end."""
            return next(self._left, None)

    quantize_static(
        _prepared(source, folder),
        target,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=True,  # U8S8 products overflow on CPUs without VNNI
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options={"QDQDisableWeightAdjustForInt32Bias": plain},
    )


def to_int8_dynamic(source: Path, target: Path, folder: Path) -> None:
    """Weights in int8, activations quantized as they come; for models of matrix products."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        _prepared(source, folder),
        target,
        op_types_to_quantize=_DYNAMIC,
        per_channel=True,
        reduce_range=True,
        weight_type=QuantType.QInt8,
    )


def _prepared(source: Path, folder: Path) -> Path:
    """The model in a recent opset, with shapes inferred and constants folded; as it is where that fails."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    recent, prepared = _recent(source, folder), folder / "prepared.onnx"
    try:
        quant_pre_process(recent, prepared, skip_symbolic_shape=True)  # that one needs sympy, and adds little
    except Exception:  # it raises whatever its parts raise; quantization then says what it minds
        return recent
    return prepared


def _recent(source: Path, folder: Path) -> Path:
    """The model in an opset that knows scales by channel; as it is where it has that, or cannot be converted."""
    import onnx
    from onnx import version_converter

    model = onnx.load(source)
    if any(item.domain in ("", "ai.onnx") and item.version >= _OPSET for item in model.opset_import):
        return source
    converted = folder / "recent.onnx"
    try:
        onnx.save(version_converter.convert_version(model, _OPSET), converted)
    except Exception:  # as above
        return source
    return converted
