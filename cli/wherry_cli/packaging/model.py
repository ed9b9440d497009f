"""A model file and all that packaging needs to know of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from wherry.errors import ModelError
from wherry.release import GoldenCase, LabelledOutput, ModelFile, PictureInput, Precision, Signature
from wherry_cli.packaging.child import Findings, Goldens, Order
from wherry_cli.packaging.child_process import ask_child
from wherry_cli.packaging.picture import Declaration

RunsOn = Literal["onnx", "litert", "tflite"]
_SUFFIXES: dict[str, RunsOn] = {".onnx": "onnx", ".tflite": "litert"}
CHILD = "wherry_cli.packaging.child"
_CHILD_SECONDS = 600


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model, read and run once.

    Attributes:
        path: the file as given; in the image it is called model.onnx or model.tflite.
        cases: golden cases with outputs; empty when none are wanted.
        reset: "each" when the model keeps state that must not leak from one request into the next.
        steady: as in model.json.
    """

    path: Path
    name: str
    version: str
    runtime: RunsOn
    signature: Signature
    precision: Precision
    reset: Literal["each", "never"] = "never"
    cases: tuple[GoldenCase, ...] = ()
    picture: PictureInput | None = None
    labelled: LabelledOutput | None = None
    steady: bool = False

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
            steady=self.steady,
            picture=self.picture,
            labelled=self.labelled,
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
        declaration: what is said of pictures and labels.
        pictures: picture files among the given cases.
    """

    runtime: RunsOn | None = None
    precision: Precision | None = None
    reset: Literal["each", "never"] | None = None
    goldens: Goldens = "made"
    cases: tuple[GoldenCase, ...] = ()
    shapes: dict[str, list[int]] = field(default_factory=dict)
    declaration: Declaration | None = None
    pictures: tuple[Path, ...] = ()


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
        declaration=wanted.declaration,
        pictures=[str(path.resolve()) for path in wanted.pictures],
    )
    slow = "did not answer its golden cases|Give smaller cases with --golden"
    found = ask_child(CHILD, order, Findings, f"model {path.name}", _CHILD_SECONDS, slow)
    return ModelSource(
        path, name, version, runtime, found.signature, found.precision, found.reset, tuple(found.cases),
        found.picture, found.labelled, found.steady,
    )  # fmt: skip
