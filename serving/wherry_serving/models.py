"""From a folder of an image to a model that has proved that it computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

import numpy as np

from wherry.elements import tensor_from_golden
from wherry.errors import ConfigError, InferenceError, MalformedMessage, ModelError, WherryError
from wherry.release import GOLDEN_SCHEMA, MODEL_SCHEMA, GoldenFile, ModelFile, Signature, TensorSpec
from wherry.schemas import load_json, parse_schema
from wherry_serving.arrays import fits_shape, to_array
from wherry_serving.labels import Labels, check_labelled
from wherry_serving.pace import Pace
from wherry_serving.pictures import Pictures
from wherry_serving.runtimes import DTYPES, Array, Runtime, open_runtime
from wherry_serving.stats import ModelStats

_GOLDEN_LIMIT = 256 << 20
Opener = Callable[[ModelFile, Path], Runtime]


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model's folder, read and checked but not loaded."""

    file: ModelFile
    path: Path
    golden: GoldenFile | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded model."""

    file: ModelFile
    runtime: Runtime
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    pictures: Pictures | None = None
    labels: Labels = field(default_factory=Labels)
    pace: Pace = field(default_factory=Pace)
    stats: ModelStats = field(default_factory=ModelStats)

    @property
    def name(self) -> str:
        """The model's name."""
        return self.file.name


def read_models(folder: Path) -> list[ModelSource]:
    """Every model of a folder: each of its folders that holds a model.json.

    Raises:
        ConfigError: a document or file is missing or wrong, or there is no model at all.
    """
    try:
        found = sorted(path for path in folder.iterdir() if (path / "model.json").is_file())
    except OSError as error:
        raise ConfigError(f"models folder {folder}", f"cannot be read: {error.strerror}") from error
    if not found:
        raise ConfigError(f"models folder {folder}", "has no folder with a model.json")
    sources = [_read_model(path) for path in found]
    names = [source.file.name for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"models folder {folder}", f"holds model {name} twice", "Give each model its own name")
    return sources


def _read_model(folder: Path) -> ModelSource:
    try:
        path = folder / "model.json"
        file = parse_schema(ModelFile, load_json(path.read_bytes(), str(path)), str(path), MODEL_SCHEMA)
        golden = folder / "golden.json"
        cases = None
        if golden.is_file():
            data = load_json(golden.read_bytes(), str(golden), _GOLDEN_LIMIT)
            cases = parse_schema(GoldenFile, data, str(golden), GOLDEN_SCHEMA)
    except OSError as error:
        raise ConfigError(f"model folder {folder}", f"cannot be read: {error.strerror}") from error
    except WherryError as error:
        raise ConfigError(error.thing, error.reason, "Package the model again") from error
    if PurePath(file.file).name != file.file:
        raise ConfigError(str(path), f"field file is {file.file!r}, expected a plain file name")
    if not (folder / file.file).is_file():
        raise ConfigError(f"model {file.name}", f"its file {folder / file.file} is missing", "Package the model again")
    return ModelSource(file, folder / file.file, cases)


def load_model(source: ModelSource, opener: Opener = open_runtime) -> Model:
    """Load a model, and trust it only after it has run once as declared.

    Raises:
        ConfigError: the runtime or provider is missing here, or another provider than declared took the model.
        ModelError: the file cannot be loaded, has another signature than declared, or cannot run.
    """
    file = source.file
    runtime = opener(file, source.path)
    if runtime.provider != file.provider:
        reason = f"is declared for {file.provider}, but the session runs on {runtime.provider}"
        raise ConfigError(f"model {file.name}", reason, "Check the device's drivers, or package for another profile")
    check_signature(file.name, file.signature, runtime.signature)
    model = Model(
        file,
        runtime,
        {spec.name: spec for spec in file.signature.inputs},
        {spec.name: spec for spec in file.signature.outputs},
        Pictures(file) if file.picture else None,
        Labels(check_labelled(file)),
    )
    try:
        runtime.run(warm_inputs(source), list(model.outputs))
        runtime.reset()
    except (MalformedMessage, InferenceError) as error:
        raise ModelError(f"model {file.name}", f"its first inference failed: {error.reason}") from error
    return model


def check_signature(name: str, declared: Signature, found: Signature) -> None:
    """The declared inputs and outputs are those of the model file.

    All inputs must be declared; outputs may be left out. A dynamic dimension agrees with any size.

    Raises:
        ModelError: naming the tensor and both sides.
    """
    for kind, wanted, have in (
        ("input", declared.inputs, found.inputs),
        ("output", declared.outputs, found.outputs),
    ):
        actual = {spec.name: spec for spec in have}
        for spec in wanted:
            other = actual.get(spec.name)
            if other is None:
                raise _differs(name, f"{kind} {spec.name!r} is not among the file's: {', '.join(actual)}")
            if not _agree(spec, other):
                was = f"{other.datatype}{other.shape}"
                raise _differs(name, f"{kind} {spec.name!r} is {was}, expected {spec.datatype}{spec.shape}")
    undeclared = sorted({spec.name for spec in found.inputs} - {spec.name for spec in declared.inputs})
    if undeclared:
        raise _differs(name, f"input {undeclared[0]!r} of the file is not declared")


def _differs(name: str, reason: str) -> ModelError:
    return ModelError(f"model {name}", f"differs from its model.json: {reason}", "Package the model again")


def _agree(declared: TensorSpec, found: TensorSpec) -> bool:
    if declared.datatype != found.datatype:
        return False
    if not found.shape:  # a scalar, or a rank that the file leaves open
        return True
    return len(declared.shape) == len(found.shape) and all(
        -1 in pair or pair[0] == pair[1] for pair in zip(declared.shape, found.shape, strict=True)
    )


def warm_inputs(source: ModelSource) -> dict[str, Array]:
    """Inputs for the first inference: those of the first golden case, else zeros.

    Raises:
        MalformedMessage: the golden case does not fit the signature.
    """
    specs = source.file.signature.inputs
    if source.golden is None or not source.golden.cases:
        return {spec.name: _zeros(spec) for spec in specs}
    case = source.golden.cases[0]
    found = {item.name: tensor_from_golden(item) for item in case.inputs}
    for spec in specs:
        tensor = found.get(spec.name)
        if tensor is None or tensor.datatype != spec.datatype or not fits_shape(tensor.shape, spec.shape):
            raise MalformedMessage(f"golden case {case.name}", f"its input {spec.name!r} does not fit the signature")
    return {spec.name: to_array(found[spec.name]) for spec in specs}


def _zeros(spec: TensorSpec) -> Array:
    shape: Sequence[int] = [1 if size < 0 else size for size in spec.shape]
    if spec.datatype == "BYTES":
        return np.full(shape, b"", dtype=np.object_)
    return np.zeros(shape, dtype=DTYPES[spec.datatype])
