"""Quantizes a model and compares it with its original, in a process of its own; see `child_process`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from wherry.elements import tensor_from_golden
from wherry.errors import BuildError, InputError, ModelError, WherryError
from wherry.release import ModelFile, Precision, Signature
from wherry_cli.packaging.agreement import compare_models, latencies
from wherry_cli.packaging.child_process import answer_parent
from wherry_cli.packaging.golden import make_cases
from wherry_cli.packaging.onnx_file import classify, onnx_facts
from wherry_cli.packaging.package_file import ModelFigures, QuantizationReport
from wherry_cli.packaging.picture import Declaration, declare
from wherry_cli.packaging.quantize_onnx import is_convolutional, to_fp16, to_int8_dynamic, to_int8_static
from wherry_cli.packaging.quantize_tflite import quantize_tflite
from wherry_cli.packaging.samples import Sample, read_samples
from wherry_cli.packaging.tflite_file import tflite_facts
from wherry_serving.arrays import to_array
from wherry_serving.runtimes import Runtime, first_line, open_runtime

Kind = Literal["fp16", "int8"]
INSTALL = "Install what quantizes: pip install 'wherry[quantize]'"
LEAVE = "Package it without --quantize, or quantize it where it was made"
_MADE = 16
_BEARABLE = 0.9
_SAME_SIZE = 0.98
"""A quantized file of at least this share of the original's size has lost nothing but a little padding."""


class QuantizeOrder(BaseModel):
    """What to quantize, and how far it may differ.

    Attributes:
        target: where the quantized model goes; a private folder, which also takes what lies between.
        calibration: folder of samples; None makes some up, where that is enough.
        agreement: smallest share of answers that must stay, 0 to 1.
    """

    path: str
    target: str
    runtime: Literal["onnx", "litert"]
    kind: Kind
    calibration: str | None = None
    declaration: Declaration | None = None
    shapes: dict[str, list[int]] = {}
    reset: Literal["each", "never"] = "never"
    agreement: float = 0.99


def quantize(order: QuantizeOrder) -> QuantizationReport:
    """Quantize, compare, and refuse what differs too much.

    Raises:
        InputError: samples are missing or do not fit, or there is nothing to quantize.
        BuildError: the extra `quantize` is not installed, or its tools fail on this model.
        ModelError: the quantized model answers too differently.
    """
    source, target = Path(order.path), Path(order.target)
    before = _weights(order, source)
    if classify(before) == order.kind:
        report = _empty(order, "unchanged")
        return report.model_copy(update={"original": _figures(source, before, 0.0)})
    original = _open(order, source, Signature(inputs=[], outputs=[]))
    samples = _samples(order, original)
    best: QuantizationReport | None = None
    failed: BuildError | None = None
    for method, make in _methods(order, samples):
        try:
            _guarded(order, make)
            report = _compare(order, original, before, samples, method)
        except BuildError as error:
            failed = error
            continue
        if report.agreement >= order.agreement:
            return report
        best = report if best is None or report.agreement > best.agreement else best
        target.unlink(missing_ok=True)
    raise _refusal(order, best) if best or not failed else failed


def _weights(order: QuantizeOrder, path: Path) -> Counter[str]:
    return onnx_facts(path).weights if order.runtime == "onnx" else tflite_facts(path).weights


def _open(order: QuantizeOrder, path: Path, signature: Signature) -> Runtime:
    return open_runtime(_model_file(order, path, signature), path)


def _model_file(order: QuantizeOrder, path: Path, signature: Signature) -> ModelFile:
    return ModelFile(
        name="model", version="0", file=path.name, runtime=order.runtime, provider="CPUExecutionProvider",
        precision="fp32", signature=signature, reset=order.reset,
    )  # fmt: skip


def _samples(order: QuantizeOrder, original: Runtime) -> list[Sample]:
    if order.calibration is not None:
        described = _model_file(order, Path(order.path), original.signature)
        if order.declaration is not None:
            described = declare(order.declaration, described)
        return read_samples(Path(order.calibration), described)
    cases = make_cases(original, order.shapes, _MADE)
    return [{item.name: to_array(tensor_from_golden(item)) for item in case.inputs} for case in cases]


Method = tuple[str, Callable[[], None]]


def _methods(order: QuantizeOrder, samples: Sequence[Sample]) -> Iterator[Method]:
    """What to try, best first.

    Raises:
        InputError: the model needs samples for calibration and there are none.
    """
    source, target = Path(order.path), Path(order.target)
    if order.runtime == "litert":
        if order.kind == "fp16":
            yield "weights in fp16", lambda: quantize_tflite(source, target, "fp16")
            return
        yield "dynamic int8", lambda: quantize_tflite(source, target, "dynamic")
        yield "weights in int8", lambda: quantize_tflite(source, target, "weights")
    elif order.kind == "fp16":
        yield "fp16", lambda: to_fp16(source, target)
        yield "fp16", lambda: to_fp16(source, target, second=True)
    elif not _guarded(order, lambda: is_convolutional(source)):
        yield "dynamic int8", lambda: to_int8_dynamic(source, target, target.parent)
    elif order.calibration is None:
        raise InputError(
            f"model {source.name}",
            "is convolutional, and int8 for it must be calibrated on real inputs: random ones would spoil its ranges",
            "Give --calibration DIR with some 50 to 200 typical inputs (.npz, .npy, or pictures with --picture), "
            "or use --quantize fp16",
        )
    else:
        yield "static int8, calibrated", lambda: to_int8_static(source, target, samples, target.parent)
        yield (
            "static int8, calibrated",
            lambda: to_int8_static(source, target, samples, target.parent, plain=True),
        )


def _guarded(order: QuantizeOrder, work: Callable[[], object]) -> object:
    """Run a quantization tool; what it raises becomes one sentence."""
    thing = f"model {Path(order.path).name}"
    try:
        return work()
    except WherryError:
        raise
    except ImportError as error:
        raise BuildError(thing, f"cannot be quantized here ({first_line(error)})", INSTALL) from error
    except Exception as error:  # these tools raise anything
        reason = f"cannot be quantized to {order.kind}: {type(error).__name__}: {first_line(error)}"
        raise BuildError(thing, reason, LEAVE) from error


def _compare(
    order: QuantizeOrder, original: Runtime, before: Counter[str], samples: Sequence[Sample], method: str
) -> QuantizationReport:
    source, target = Path(order.path), Path(order.target)
    after = _weights(order, target)
    if classify(after) != order.kind and target.stat().st_size >= _SAME_SIZE * source.stat().st_size:
        main = before.most_common(1)[0][0] if before else "no"
        reason = f"stays as it is: the tool for {order.kind} leaves its {main} weights alone"
        raise InputError(f"model {source.name}", reason, "Export it with fp32 weights, or leave out --quantize")
    try:
        quantized = _open(order, target, original.signature)
    except ModelError as error:
        raise BuildError(f"model {source.name}", f"was quantized to {order.kind}, but {error.reason}", LEAVE) from error
    found = compare_models(original, quantized, samples, order.kind)
    slow, quick = latencies([original, quantized], samples[0])
    return _empty(order, method).model_copy(
        update={
            "original": _figures(source, before, slow),
            "quantized": _figures(target, after, quick),
            "samples": len(samples),
            "error": found.error,
            "cosine": found.cosine,
            "agreement": found.agreement,
        }
    )


def _empty(order: QuantizeOrder, method: str) -> QuantizationReport:
    return QuantizationReport(kind=order.kind, method=method, made_up=order.calibration is None)


def _figures(path: Path, weights: Counter[str], milliseconds: float) -> ModelFigures:
    precision: Precision = classify(weights)
    return ModelFigures(bytes=path.stat().st_size, precision=precision, milliseconds=round(milliseconds, 3))


def _refusal(order: QuantizeOrder, best: QuantizationReport | None) -> WherryError:
    thing = f"model {Path(order.path).name} in {order.kind}"
    if best is None:
        return BuildError(thing, "could not be made")
    reason = (
        f"keeps {best.agreement:.1%} of the original's answers on {best.samples} samples, "
        f"{order.agreement:.1%} are needed (largest error {best.error:.2g} of the largest value, "
        f"cosine {best.cosine:.4f}; {best.quantized_bytes / 1e6:.1f} MB for {best.original.bytes / 1e6:.1f} MB)"
    )
    samples = (
        "Give typical inputs with --calibration: these were made up" if best.made_up else "Give more typical inputs"
    )
    other = "use --quantize fp16" if order.kind == "int8" else "keep it in fp32"
    accept = ", or accept less with --min-agreement" if best.agreement >= _BEARABLE else ""
    return ModelError(thing, reason, f"{samples}; or {other}{accept}")


def main() -> int:
    """Entry of the child process."""
    return answer_parent(QuantizeOrder, quantize)


if __name__ == "__main__":
    sys.exit(main())
