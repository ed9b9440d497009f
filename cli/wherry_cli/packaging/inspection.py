"""What a model file is, which runtimes take it, and which device profiles an image of it would fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from wherry.errors import ConfigError, ModelError
from wherry.profile import DeviceProfile
from wherry.release import Precision, Signature
from wherry_cli.packaging.child import Findings, Order
from wherry_cli.packaging.child_process import ask_child
from wherry_cli.packaging.fit import ProfileFit, Sketch, fit_profiles
from wherry_cli.packaging.model import CHILD, RunsOn, runtime_of
from wherry_cli.packaging.onnx_file import classify, onnx_facts
from wherry_cli.packaging.store import Store
from wherry_cli.packaging.tflite_file import tflite_facts

_SECONDS = 120
_LONGEST_VALUE = 200


class RuntimeVerdict(BaseModel):
    """Whether a model runtime takes the file: `ok` is None when it is not installed here, so nobody tried."""

    runtime: RunsOn
    ok: bool | None
    reason: str = ""


class Inspection(BaseModel):
    """Everything `wherry inspect` found out.

    Attributes:
        axes: tensor name to the names of its axes, "" for those without.
        operators: name to how often it is used; TFLite's with their version.
        custom: operators that no runtime brings by itself.
        weights: datatype to share of the parameters.
        signature: None when no runtime could load the file.
        stateful: keeps variables from one run to the next.
    """

    file: str
    format: Literal["onnx", "tflite"]
    bytes: int
    producer: str = ""
    version: str = ""
    opsets: dict[str, int] = {}
    operators: dict[str, int] = {}
    custom: list[str] = []
    parameters: int = 0
    weights: dict[str, float] = {}
    precision: Precision
    stateful: bool = False
    metadata: dict[str, str] = {}
    signature: Signature | None = None
    axes: dict[str, list[str]] = {}
    runtimes: list[RuntimeVerdict] = []
    profiles: list[ProfileFit] = []


def inspect_model(path: Path, profiles: Mapping[str, DeviceProfile], store: Store) -> Inspection:
    """Look into a model file: read it, have each runtime load it in a process of its own, compare with the profiles.

    Args:
        path: the model file.
        profiles: the device profiles to compare with.
        store: layers that are in it already give exact sizes.

    Raises:
        ModelError: not a model file, or cut off.
    """
    if not path.is_file():
        raise ModelError(f"model {path}", "is not a file", "Check the path")
    found = _read_onnx(path) if runtime_of(path) == "onnx" else _read_tflite(path)
    runtimes: tuple[RunsOn, ...] = ("onnx",) if found.format == "onnx" else ("litert", "tflite")
    verdicts, signature = [], None
    for runtime in runtimes:
        verdict, loaded = _try_runtime(path, runtime)
        verdicts.append(verdict)
        signature = signature or loaded
    sketch = Sketch([item.runtime for item in verdicts if item.ok], found.precision, found.bytes)
    fits = fit_profiles(sketch, profiles, store)
    return found.model_copy(update={"runtimes": verdicts, "signature": signature, "profiles": fits})


def _read_onnx(path: Path) -> Inspection:
    facts = onnx_facts(path)
    return Inspection(
        file=path.name,
        format="onnx",
        bytes=path.stat().st_size,
        producer=facts.producer,
        version=f"IR {facts.ir_version}",
        opsets=facts.opsets,
        operators=dict(facts.operators.most_common()),
        custom=sorted(facts.custom),
        parameters=facts.weights.total(),
        weights=_shares(facts.weights),
        precision=classify(facts.weights),
        metadata=_short(facts.metadata) | ({"weights": "in other files"} if facts.external else {}),
        axes={name: axes for name, axes in facts.axes.items() if any(axes)},
    )


def _read_tflite(path: Path) -> Inspection:
    facts = tflite_facts(path)
    return Inspection(
        file=path.name,
        format="tflite",
        bytes=path.stat().st_size,
        producer=facts.description,
        operators=dict(facts.operators.most_common()),
        custom=sorted(facts.custom),
        parameters=facts.weights.total(),
        weights=_shares(facts.weights),
        precision=classify(facts.weights),
        stateful=facts.stateful,
        metadata=_short(facts.metadata),
    )


def _shares(weights: Counter[str]) -> dict[str, float]:
    total = weights.total()
    return {name: round(count / total, 4) for name, count in weights.most_common()} if total else {}


def _short(metadata: Mapping[str, str]) -> dict[str, str]:
    return {
        key: value if len(value) <= _LONGEST_VALUE else f"{value[:_LONGEST_VALUE]}… ({len(value)} characters)"
        for key, value in metadata.items()
    }


def _try_runtime(path: Path, runtime: RunsOn) -> tuple[RuntimeVerdict, Signature | None]:
    order = Order(path=str(path.resolve()), runtime=runtime, goldens="none")
    thing = f"model {path.name}"
    try:
        found = ask_child(CHILD, order, Findings, thing, _SECONDS, "was not loaded")
    except ConfigError as error:
        return RuntimeVerdict(runtime=runtime, ok=None, reason=error.reason), None
    except ModelError as error:
        return RuntimeVerdict(runtime=runtime, ok=False, reason=error.reason), None
    return RuntimeVerdict(runtime=runtime, ok=True), found.signature
