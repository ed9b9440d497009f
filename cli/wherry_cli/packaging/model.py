"""A model file and all that packaging needs to know of it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from wherry.errors import InputError, ModelError
from wherry.release import GoldenCase, ModelFile, Precision, Signature
from wherry_cli.packaging.child import Failure, Findings, Goldens, Order

RunsOn = Literal["onnx", "litert", "tflite"]
_SUFFIXES: dict[str, RunsOn] = {".onnx": "onnx", ".tflite": "litert"}
_CHILD_SECONDS = 600


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model, read and run once.

    Attributes:
        path: the file as given; in the image it is called model.onnx or model.tflite.
        cases: golden cases with outputs; empty when none are wanted.
        reset: "each" when the model keeps state that must not leak from one request into the next.
    """

    path: Path
    name: str
    version: str
    runtime: RunsOn
    signature: Signature
    precision: Precision
    reset: Literal["each", "never"] = "never"
    cases: tuple[GoldenCase, ...] = ()

    @property
    def file_name(self) -> str:
        """The model file's name in the image."""
        return f"model{'.onnx' if self.runtime == 'onnx' else '.tflite'}"

    def model_file(self, provider: str) -> ModelFile:
        """`model.json` for an execution provider."""
        return ModelFile(
            name=self.name,
            version=self.version,
            file=self.file_name,
            runtime=self.runtime,
            provider=provider,
            precision=self.precision,
            signature=self.signature,
            reset=self.reset,
        )


@dataclass(frozen=True, slots=True)
class ModelWishes:
    """What the operator says of a model; what is left open is found out.

    Attributes:
        runtime: default: by the file's suffix.
        precision: default: by the weights.
        reset: default: "each" when the model keeps state.
        goldens: "made" from the signature, "given", or "none".
        cases: the given ones.
        shapes: sizes of dynamic inputs for made cases, by input name.
    """

    runtime: RunsOn | None = None
    precision: Precision | None = None
    reset: Literal["each", "never"] | None = None
    goldens: Goldens = "made"
    cases: tuple[GoldenCase, ...] = ()
    shapes: dict[str, list[int]] = field(default_factory=dict)


def runtime_of(path: Path, wished: RunsOn | None = None) -> RunsOn:
    """Which runtime serves a file.

    Raises:
        ModelError: neither .onnx nor .tflite, or the wished runtime is for the other format.
    """
    native = _SUFFIXES.get(path.suffix.lower())
    if native is None:
        fix = "Convert it to ONNX or TFLite, or bring your own image with --from-image"
        raise ModelError(f"model {path.name}", "is neither .onnx nor .tflite", fix)
    if wished is not None and (wished == "onnx") != (native == "onnx"):
        raise ModelError(f"model {path.name}", f"cannot be served by {wished}", "Leave out --runtime")
    return wished or native


def read_model(path: Path, name: str, version: str, wishes: ModelWishes | None = None) -> ModelSource:
    """Load a model in a process of its own, run it, and say what it is.

    Raises:
        ModelError: the file is missing, incomplete, or uses what the runtime does not have.
        InputError: a given golden case or shape does not fit the model.
    """
    wanted = wishes or ModelWishes()
    if not path.is_file():
        raise ModelError(f"model {path}", "is not a file", "Check the path")
    runtime = runtime_of(path, wanted.runtime)
    order = Order(
        path=str(path.resolve()),
        # Both TFLite runtimes compute the same; this machine has the newer one.
        runtime="onnx" if runtime == "onnx" else "litert",
        precision=wanted.precision,
        goldens=wanted.goldens,
        cases=list(wanted.cases),
        shapes=wanted.shapes,
        reset=wanted.reset,
    )
    found = _ask_child(order, path)
    return ModelSource(path, name, version, runtime, found.signature, found.precision, found.reset, tuple(found.cases))


def _ask_child(order: Order, path: Path) -> Findings:
    thing = f"model {path.name}"
    command = [sys.executable, "-m", "wherry_cli.packaging.child"]
    try:
        done = subprocess.run(
            command, input=order.model_dump_json().encode(), capture_output=True, timeout=_CHILD_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        reason = f"did not answer its golden cases within {_CHILD_SECONDS} s"
        raise ModelError(thing, reason, "Give smaller cases with --golden") from error
    if done.returncode < 0:
        reason = f"made its runtime crash ({signal.Signals(-done.returncode).name})"
        raise ModelError(thing, reason, "Check the file; with --shape the inputs may be too large") from None
    reply = _parse(done.stdout)
    if isinstance(reply, Failure):
        raise (ModelError if reply.kind == "model" else InputError)(reply.thing, reply.reason, reply.fix)
    if reply is None:
        raise ModelError(thing, f"could not be run: {_last_line(done.stderr)}")
    return reply


def _parse(output: bytes) -> Findings | Failure | None:
    try:
        document = json.loads(output)
    except ValueError:
        return None
    return (Failure if "kind" in document else Findings).model_validate(document)


def _last_line(text: bytes) -> str:
    lines = text.decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:300] if lines else "it said nothing"
