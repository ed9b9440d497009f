"""Quantizing before packaging: what is asked for, and the model that comes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from wherry_cli.packaging.child_process import ask_child
from wherry_cli.packaging.model import runtime_of
from wherry_cli.packaging.package_file import QuantizationReport
from wherry_cli.packaging.picture import Declaration
from wherry_cli.packaging.quantize_child import Kind, QuantizeOrder

_CHILD = "wherry_cli.packaging.quantize_child"
_SECONDS = 1200


@dataclass(frozen=True, slots=True)
class Quantize:
    """How to quantize.

    Attributes:
        calibration: folder of samples; None compares on made-up ones, where no calibration is needed.
        min_agreement: share of the original's answers that must stay, in percent.
    """

    kind: Kind
    calibration: Path | None = None
    min_agreement: float = 99.0


@dataclass(frozen=True, slots=True)
class ModelNotes:
    """What is known of a model before it is read: see `ModelWishes`."""

    declaration: Declaration | None = None
    shapes: Mapping[str, Sequence[int]] | None = None
    reset: Literal["each", "never"] | None = None


def quantize_model(path: Path, wanted: Quantize, notes: ModelNotes, folder: Path) -> tuple[Path, QuantizationReport]:
    """Quantize a model into a folder.

    Returns:
        The file to package, which is the given one when it has that precision already; and what changed.

    Raises:
        InputError: samples are missing or do not fit, or there is nothing to quantize.
        BuildError: the extra `quantize` is missing, or its tools fail on this model.
        ModelError: the quantized model answers too differently, or the file is no model.
    """
    runtime = "onnx" if runtime_of(path) == "onnx" else "litert"
    target = folder / f"{path.stem}-{wanted.kind}{path.suffix}"
    order = QuantizeOrder(
        path=str(path.resolve()),
        target=str(target),
        runtime=runtime,
        kind=wanted.kind,
        calibration=str(wanted.calibration) if wanted.calibration else None,
        declaration=notes.declaration,
        shapes={name: list(shape) for name, shape in (notes.shapes or {}).items()},
        reset=notes.reset or "never",
        agreement=wanted.min_agreement / 100,
    )
    slow = "was not quantized|Give fewer calibration samples"
    report = ask_child(_CHILD, order, QuantizationReport, f"model {path.name}", _SECONDS, slow)
    return (target if report.quantized else path), report
