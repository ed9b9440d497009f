"""Runs a model in a process of its own: a file that crashes its runtime must not take the operator's tool along.

`python -m wherry_cli.packaging.child` reads one `Order` as JSON from stdin and writes one `Findings` or an error to
stdout.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel

from wherry.errors import ModelError, WherryError
from wherry.release import GoldenCase, ModelFile, Precision, Signature
from wherry_cli.packaging.golden import CASES, check_given, make_cases, repeats
from wherry_cli.packaging.onnx_file import classify, onnx_precision
from wherry_serving.runtimes import Runtime, first_line, open_runtime

Goldens = Literal["made", "given", "none"]


class Order(BaseModel):
    """What to find out about a model.

    Attributes:
        goldens: make cases, check the given ones, or neither.
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


class Findings(BaseModel):
    """What was found."""

    signature: Signature
    precision: Precision
    reset: Literal["each", "never"]
    cases: list[GoldenCase]


class Failure(BaseModel):
    """An error of this process, for the one that started it."""

    kind: Literal["model", "input"]
    thing: str
    reason: str
    fix: str


def _open(order: Order, reset: Literal["each", "never"]) -> Runtime:
    path = Path(order.path)
    empty = Signature(inputs=[], outputs=[])
    file = ModelFile(
        name="model",
        version="0",
        file=path.name,
        runtime=order.runtime,
        provider="CPUExecutionProvider",
        precision="fp32",
        signature=empty,
        reset=reset,
    )
    try:
        return open_runtime(file, path)
    except ModelError as error:
        raise ModelError(f"model {path.name}", error.reason.replace(f" {path.name}", "", 1), error.fix) from error


def _tflite_facts(path: str) -> tuple[Precision, bool]:
    """Precision of a TFLite file's tensors, and whether it keeps state from one request to the next."""
    from ai_edge_litert.interpreter import Interpreter

    try:
        interpreter = Interpreter(model_path=path)
        tensors, steps = interpreter.get_tensor_details(), interpreter._get_ops_details()
    except Exception as error:  # ValueError or RuntimeError, by what is wrong with the file
        raise ModelError(f"model {Path(path).name}", f"litert cannot load it: {first_line(error)}") from error
    counts: Counter[str] = Counter()
    for item in tensors:
        kind = np.dtype(item["dtype"])
        name = {"f2": "fp16", "f4": "fp32", "i1": "int8", "u1": "int8"}.get(kind.str[1:], "")
        if name:
            counts[name] += int(np.prod(item["shape"]))
    return classify(counts), any(step["op_name"] == "VAR_HANDLE" for step in steps)


def _cases(runtime: Runtime, order: Order, precision: Precision) -> list[GoldenCase]:
    if order.goldens == "given":
        return check_given(runtime, order.cases, precision)
    return make_cases(runtime, order.shapes, order.count)


def find_out(order: Order) -> Findings:
    """Open the model, judge its precision, and make or check its golden cases.

    Raises:
        ModelError: the file is not a usable model, or does not answer the same twice.
        InputError: a given case or shape does not fit.
    """
    path = Path(order.path)
    found, stateful = (onnx_precision(path), False) if order.runtime == "onnx" else _tflite_facts(order.path)
    precision = order.precision or found
    reset = order.reset or ("each" if stateful else "never")
    runtime = _open(order, reset)
    findings = Findings(signature=runtime.signature, precision=precision, reset=reset, cases=[])
    if order.goldens == "none":
        return findings
    cases = _cases(runtime, order, precision)
    if not repeats(runtime, cases, precision):
        fix = "It keeps state or draws at random: package it without golden cases (--no-golden)"
        raise ModelError(f"model {path.name}", "does not answer the same request the same way twice", fix)
    return findings.model_copy(update={"cases": cases})


def main() -> int:
    """Entry of the child process."""
    order = Order.model_validate_json(sys.stdin.buffer.read())
    # Runtimes print to stdout too: the answer gets the real one, they get stderr.
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        reply: Any = find_out(order)
    except WherryError as error:
        kind: Literal["model", "input"] = "model" if isinstance(error, ModelError) else "input"
        reply = Failure(kind=kind, thing=error.thing, reason=error.reason, fix=error.fix)
    with answer:
        answer.write(reply.model_dump_json(by_alias=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
