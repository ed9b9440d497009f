"""A ready-made image becomes a release: its layers stay, golden cases and labels are added."""

from __future__ import annotations

import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import cast, get_args

from wherry.errors import ContractError, InputError
from wherry.profile import DeviceProfile
from wherry.release import (
    LABEL,
    MODEL_SCHEMA,
    MODELS_FOLDER,
    STAGE_VARIABLE,
    GoldenCase,
    ModelFile,
    Precision,
    Runtime,
    Stage,
)  # fmt: skip
from wherry.schemas import load_json, parse_schema
from wherry_cli.packaging.base import Base
from wherry_cli.packaging.build import CPU, BuiltImage, assemble, model_folder, release_labels
from wherry_cli.packaging.golden import FILE_LIMIT, golden_bytes
from wherry_cli.packaging.layers import EPOCH_TEXT, Entry, make_layer
from wherry_cli.packaging.release import Served
from wherry_cli.packaging.store import Layer, Store

_FILES = ("model.json", "golden.json")


@dataclass(frozen=True, slots=True)
class ReadyMade:
    """A ready-made image and the operator's word on it.

    Attributes:
        cases: golden cases to add; empty keeps those in the image.
        runtime, provider, precision: for images that do not say it themselves.
    """

    name: str
    version: str
    base: Base
    cases: tuple[GoldenCase, ...] = ()
    stage: Stage = "prod"
    runtime: Runtime | None = None
    provider: str | None = None
    precision: Precision | None = None


def read_models(layers: tuple[Layer, ...]) -> dict[str, dict[str, bytes]]:
    """model.json and golden.json by model, as a container of these layers would see them.

    Raises:
        InputError: a layer is no tar archive.
    """
    found: dict[str, dict[str, bytes]] = {}
    for layer in layers:
        try:
            _read_layer(layer, found)
        except (tarfile.TarError, OSError, EOFError) as error:
            raise InputError(f"layer {layer.digest}", f"is not a tar archive ({error})") from error
    return found


def _read_layer(layer: Layer, found: dict[str, dict[str, bytes]]) -> None:
    root = PurePosixPath(MODELS_FOLDER.strip("/"))
    with tarfile.open(layer.path, "r|*") as archive:
        for member in archive:
            path = PurePosixPath(member.name.removeprefix("./").lstrip("/"))
            if path.parent.parent != root:
                continue
            if path.name.startswith(".wh."):
                found.get(path.parent.name, {}).pop(path.name.removeprefix(".wh."), None)
            elif path.name in _FILES and member.isreg() and member.size <= FILE_LIMIT:
                file = archive.extractfile(member)
                found.setdefault(path.parent.name, {})[path.name] = file.read() if file else b""


def _model_file(ready: ReadyMade, files: Mapping[str, Mapping[str, bytes]]) -> ModelFile | None:
    """The image's own model.json, which must be of this model and version."""
    described = {name: files[name]["model.json"] for name in files if "model.json" in files[name]}
    if not described:
        return None
    thing = f"image for {ready.name} {ready.version}"
    if ready.name not in described:
        raise InputError(thing, f"serves {', '.join(sorted(described))}", "Give that name with --name")
    try:
        document = load_json(described[ready.name], "model.json")
        found = parse_schema(ModelFile, document, "model.json", MODEL_SCHEMA)
    except ContractError as error:
        raise InputError(thing, f"has a model.json that cannot be read ({error.reason})") from error
    if found.version != ready.version:
        raise InputError(thing, f"serves version {found.version}", "Give that version with --version")
    return found


def _served(ready: ReadyMade, file: ModelFile | None) -> Served:
    labels = ready.base.labels
    if file is not None:
        return Served(ready.name, ready.version, file.runtime, file.provider, file.precision, file.signature)
    runtime = ready.runtime or labels.get(f"{LABEL}runtime", "custom")
    precision = ready.precision or labels.get(f"{LABEL}precision", "fp32")
    for value, allowed, what in ((runtime, Runtime, "runtime"), (precision, Precision, "precision")):
        if value not in get_args(allowed):
            raise InputError(f"image for {ready.name}", f"has the label {LABEL}{what} = {value!r}")
    provider = ready.provider or labels.get(f"{LABEL}provider", CPU)
    return Served(
        ready.name, ready.version, cast(Runtime, runtime), provider, cast(Precision, precision), signature=None
    )


def _names_stage(item: str) -> bool:
    return item.partition("=")[0] == STAGE_VARIABLE


def rebuild_image(ready: ReadyMade, profile: DeviceProfile, store: Store) -> tuple[BuiltImage, Served]:
    """The ready-made image with golden cases and labels, and what it serves.

    The cases are not run here: the image may be for other hardware. A device's golden gate runs them.

    Raises:
        InputError: the image serves another model or version than the operator says.
        StoreError: the store cannot be written.
    """
    files = read_models(ready.base.layers)
    served = _served(ready, _model_file(ready, files))
    present = files.get(ready.name, {}).get("golden.json")
    golden = golden_bytes(ready.name, ready.cases) if ready.cases else present
    layers = ready.base.layers
    config = dict(ready.base.config)
    if golden is not None and golden != present:
        entry = Entry(f"{model_folder(ready.name)}/golden.json", data=golden)
        added = make_layer("golden", [entry], store, compress=False)
        layers = (*layers, added)
        note = {"created": EPOCH_TEXT, "created_by": "wherry package (golden)"}
        config["history"] = [*config["history"], note] if config.get("history") else []
        config["rootfs"] = {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]}
    labels = ready.base.labels | release_labels(
        ready.name, ready.version, profile, served.runtime, served.provider, served.precision
    )
    labels[f"{LABEL}stage"] = ready.stage
    run = dict(config.get("config") or {}) | {"Labels": labels}
    if run.get("Env"):  # an image that was made here for another stage
        run["Env"] = [f"{STAGE_VARIABLE}={ready.stage}" if _names_stage(item) else item for item in run["Env"]]
    config["config"] = run
    mounts = (ready.base.source.repository,) if ready.base.source else ()
    return assemble(profile, config, layers, labels, golden, mounts), served
