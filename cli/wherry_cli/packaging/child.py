"""Runs a model once, to know its signature, its precision and its golden cases; see `child_process`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from wherry.elements import tensor_to_golden
from wherry.errors import InputError, MalformedMessage, ModelError
from wherry.release import GoldenCase, LabelledOutput, ModelFile, PictureInput, Precision, Signature
from wherry_cli.packaging.child_process import answer_parent
from wherry_cli.packaging.golden import CASES, check_given, make_cases, repeats
from wherry_cli.packaging.onnx_file import classify, onnx_precision
from wherry_cli.packaging.picture import Declaration, declare
from wherry_cli.packaging.steady import is_steady
from wherry_cli.packaging.tflite_file import tflite_facts
from wherry_serving.arrays import from_array
from wherry_serving.pictures import Pictures
from wherry_serving.runtimes import Runtime, open_runtime

Goldens = Literal["made", "given", "none"]


class Order(BaseModel):
    """What to find out about a model.

    Attributes:
        goldens: make cases, check the given ones, or neither.
        declaration: what the operator says of pictures and labels.
        pictures: picture files that become golden cases, besides the given ones.
        reset: as in model.json; None finds out whether the model keeps state and resets it if so.
    """

    path: str
    runtime: Literal["onnx", "litert", "tflite"]
    precision: Precision | None = None
    goldens: Goldens = "made"
    cases: list[GoldenCase] = []
    shapes: dict[str, list[int]] = {}
    reset: Literal["each", "never"] | None = None
    count: int = CASES
    declaration: Declaration | None = None
    pictures: list[str] = []


class Findings(BaseModel):
    """What was found."""

    signature: Signature
    precision: Precision
    reset: Literal["each", "never"]
    cases: list[GoldenCase]
    picture: PictureInput | None = None
    labelled: LabelledOutput | None = None
    steady: bool = False


def _described(order: Order, reset: Literal["each", "never"], signature: Signature) -> ModelFile:
    return ModelFile(
        name="model",
        version="0",
        file=Path(order.path).name,
        runtime=order.runtime,
        provider="CPUExecutionProvider",
        precision="fp32",
        signature=signature,
        reset=reset,
    )


def _open(order: Order, reset: Literal["each", "never"]) -> Runtime:
    path = Path(order.path)
    file = _described(order, reset, Signature(inputs=[], outputs=[]))
    try:
        return open_runtime(file, path)
    except ModelError as error:
        raise ModelError(f"model {path.name}", error.reason.replace(f" {path.name}", "", 1), error.fix) from error


def _weights(order: Order) -> tuple[Precision, bool]:
    """Precision of the file's weights, and whether it keeps state from one request to the next."""
    path = Path(order.path)
    if order.runtime == "onnx":
        return onnx_precision(path), False
    facts = tflite_facts(path)
    return classify(facts.weights), facts.stateful


def _cases(runtime: Runtime, order: Order, precision: Precision, described: ModelFile) -> list[GoldenCase]:
    if order.goldens == "given":
        return check_given(runtime, [*order.cases, *_picture_cases(order, described)], precision)
    return make_cases(runtime, order.shapes, order.count)


def _picture_cases(order: Order, described: ModelFile) -> list[GoldenCase]:
    """Pictures as cases without answers, prepared as the model server will prepare them."""
    if not order.pictures:
        return []
    if described.picture is None:
        fix = "Declare the picture input with --picture"
        raise InputError("golden cases", "hold pictures, and the model declares no picture input", fix)
    prepare = Pictures(described)
    cases = []
    for place in map(Path, order.pictures):
        try:
            inputs = prepare.inputs(place.read_bytes())
        except (OSError, MalformedMessage) as error:
            reason = error.reason if isinstance(error, MalformedMessage) else f"cannot be read ({error.strerror})"
            raise InputError(f"golden picture {place.name}", reason) from error
        tensors = [tensor_to_golden(from_array(name, array)) for name, array in inputs.items()]
        cases.append(GoldenCase(name=place.stem, inputs=tensors, outputs=[]))
    return cases


def find_out(order: Order) -> Findings:
    """Open the model, judge its precision, and make or check its golden cases.

    Raises:
        ModelError: the file is not a usable model, or does not answer the same twice.
        InputError: a given case or shape does not fit.
    """
    path = Path(order.path)
    found, stateful = _weights(order)
    precision = order.precision or found
    reset = order.reset or ("each" if stateful else "never")
    runtime = _open(order, reset)
    described = _described(order, reset, runtime.signature)
    if order.declaration is not None:
        described = declare(order.declaration, described)
    findings = Findings(
        signature=runtime.signature,
        precision=precision,
        reset=reset,
        cases=[],
        picture=described.picture,
        labelled=described.labelled,
        steady=order.runtime == "onnx" and is_steady(path),
    )
    if order.goldens == "none":
        return findings
    cases = _cases(runtime, order, precision, described)
    if not repeats(runtime, cases, precision):
        fix = "It keeps state or draws at random: package it without golden cases (--no-golden)"
        raise ModelError(f"model {path.name}", "does not answer the same request the same way twice", fix)
    return findings.model_copy(update={"cases": cases})


def main() -> int:
    """Entry of the child process."""
    return answer_parent(Order, find_out)


if __name__ == "__main__":
    sys.exit(main())
