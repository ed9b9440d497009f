"""Layers put together to an image: configuration and manifest, the same bytes for the same input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from wherry.errors import InputError
from wherry.identity import sha256_digest
from wherry.profile import DeviceProfile
from wherry.release import (
    APP_FOLDER,
    LABEL,
    MODELS_FOLDER,
    PICTURE_FOLDER,
    RUNTIME_FOLDER,
    SERVING_PORT,
    STAGE_VARIABLE,
    Stage,
)  # fmt: skip
from wherry_cli.packaging.base import Base, canonical, describe
from wherry_cli.packaging.debian import USER_ID
from wherry_cli.packaging.golden import golden_bytes
from wherry_cli.packaging.layers import EPOCH_TEXT, Entry, make_layer
from wherry_cli.packaging.model import ModelSource
from wherry_cli.packaging.oci import OCI_CONFIG, OCI_MANIFEST
from wherry_cli.packaging.store import Layer, Store

CPU = "CPUExecutionProvider"
_PYTHON = "/usr/bin/python3"
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "PYTHONPATH": f"{APP_FOLDER}:{RUNTIME_FOLDER}",
    # The root file system is read-only, and a layer of .pyc files would differ from machine to machine.
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUNBUFFERED": "1",
    "HOME": "/tmp",  # noqa: S108 - the container's own tmpfs
}
_WARN_PERCENT = 80
_INHERITED = ("PATH", "LD_LIBRARY_PATH", "LD_PRELOAD", "CUDA_HOME", "CUDA_VERSION", "LANG")


@dataclass(frozen=True, slots=True)
class BuiltImage:
    """An image, ready to be pushed or saved.

    Attributes:
        manifest: its bytes; `digest` is their digest.
        config: its bytes; `config_digest` is their digest.
        layers: from the bottom up.
        mounts: repositories of the same registry that may hold layers already.
        golden: golden.json, or None without golden cases.
        labels: the image's labels.
    """

    profile: str
    platform: str
    manifest: bytes
    config: bytes
    layers: tuple[Layer, ...]
    labels: Mapping[str, str]
    golden: bytes | None = None
    mounts: tuple[str, ...] = ()
    digest: str = field(init=False)
    config_digest: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", sha256_digest(self.manifest))
        object.__setattr__(self, "config_digest", sha256_digest(self.config))

    @property
    def unpacked_bytes(self) -> int:
        """Size of all layers unpacked."""
        return sum(layer.unpacked for layer in self.layers)

    @property
    def download_bytes(self) -> int:
        """Size of all layers as transferred."""
        return sum(layer.size for layer in self.layers)


@dataclass(frozen=True, slots=True)
class ImageOptions:
    """What the operator may choose of an image.

    Attributes:
        provider: execution provider; default: the base's label, else the CPU.
        stage: of the image; the same layers, but for the page that only `dev` carries.
    """

    provider: str | None = None
    stage: Stage = "prod"


@dataclass(frozen=True, slots=True)
class ProgramLayers:
    """What runs the model, from the bottom up.

    Attributes:
        runtime: the model runtime's wheels; None when the base holds them.
        serving: the model server.
        picture: Pillow, for models that take pictures.
        page: the interactive page of stage dev.
    """

    runtime: Layer | None
    serving: Layer
    picture: Layer | None = None
    page: Layer | None = None

    def listed(self) -> tuple[Layer, ...]:
        """Those that there are."""
        return tuple(layer for layer in (self.runtime, self.picture, self.serving, self.page) if layer is not None)


def model_folder(name: str) -> str:
    """The model's folder in the image, without leading slash."""
    return f"{MODELS_FOLDER.strip('/')}/{name}"


def model_layer(source: ModelSource, provider: str, store: Store) -> tuple[Layer, bytes | None]:
    """The layer with the model, model.json and golden.json; and golden.json's bytes.

    It is plain tar: gzip saves 7 % on weights and costs every device the time to unpack.

    Raises:
        StoreError: the store cannot be written.
    """
    folder = model_folder(source.name)
    golden = golden_bytes(source.name, source.cases) if source.cases else None
    described = source.model_file(provider).model_dump_json(by_alias=True).encode()
    entries = [
        Entry(f"{folder}/{source.file_name}", source=source.path),
        Entry(f"{folder}/model.json", data=described),
    ]
    if golden is not None:
        entries.append(Entry(f"{folder}/golden.json", data=golden))
    return make_layer("model", entries, store, compress=False), golden


def build_image(
    source: ModelSource,
    profile: DeviceProfile,
    base: Base,
    programs: ProgramLayers,
    store: Store,
    options: ImageOptions | None = None,
) -> BuiltImage:
    """Put a model's image together for a device profile.

    Args:
        source: the model.
        profile: the hardware class.
        base: what the image stands on.
        programs: layers of the model server and what it needs.
        store: where layers are kept.
        options: choices.

    Raises:
        StoreError: the store cannot be written.
    """
    chosen = options or ImageOptions()
    provider = chosen.provider or base.labels.get(f"{LABEL}provider") or CPU
    model, golden = model_layer(source, provider, store)
    layers = (*base.layers, *programs.listed(), model)
    labels = release_labels(source.name, source.version, profile, source.runtime, provider, source.precision)
    labels = _hardware_labels(base.labels) | labels | {f"{LABEL}stage": chosen.stage}
    config = image_config(profile.platform, base.config, layers, labels, base.labels.get(f"{LABEL}python", _PYTHON))
    mounts = (base.source.repository,) if base.source else ()
    return assemble(profile, config, layers, labels, golden, mounts)


def release_labels(
    name: str, version: str, profile: DeviceProfile, runtime: str, provider: str, precision: str
) -> dict[str, str]:
    """The labels that say what an image is, whatever its stage."""
    return {
        f"{LABEL}model": name,
        f"{LABEL}version": version,
        f"{LABEL}profile": profile.name,
        f"{LABEL}runtime": runtime,
        f"{LABEL}provider": provider,
        f"{LABEL}precision": precision,
    }


def _hardware_labels(labels: Mapping[str, str]) -> dict[str, str]:
    keys = (f"{LABEL}{name}" for name in ("l4t", "sm", "cuda", "tensorrt"))
    return {key: labels[key] for key in keys if key in labels}


def image_config(
    platform: str, base: Mapping[str, Any], layers: Sequence[Layer], labels: Mapping[str, str], python: str
) -> dict[str, Any]:
    """The OCI image configuration of a model's image."""
    given = dict(item.partition("=")[::2] for item in (base.get("config") or {}).get("Env") or [])
    environment = _ENVIRONMENT | {key: given[key] for key in _INHERITED if key in given}
    environment[STAGE_VARIABLE] = labels.get(f"{LABEL}stage", "prod")
    if any(layer.kind == "picture" for layer in layers):
        environment["PYTHONPATH"] += f":{PICTURE_FOLDER}"
    return platform_fields(platform) | {
        "created": EPOCH_TEXT,
        "config": {
            "User": f"{USER_ID}:{USER_ID}",
            "Env": [f"{key}={value}" for key, value in sorted(environment.items())],
            "Entrypoint": [python, "-m", "wherry_serving"],
            "Cmd": ["--models", MODELS_FOLDER, "--port", str(SERVING_PORT)],
            "ExposedPorts": {f"{SERVING_PORT}/tcp": {}},
            "WorkingDir": "/",
            "StopSignal": "SIGTERM",
            "Labels": dict(labels),
        },
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        "history": [{"created": EPOCH_TEXT, "created_by": f"wherry package ({layer.kind})"} for layer in layers],
    }


def platform_fields(platform: str) -> dict[str, Any]:
    """What an image configuration says of `linux/arm64`."""
    system, architecture, *variant = platform.split("/")
    return {"os": system, "architecture": architecture} | ({"variant": variant[0]} if variant else {})


def assemble(
    profile: DeviceProfile,
    config: Mapping[str, Any],
    layers: Sequence[Layer],
    labels: Mapping[str, str],
    golden: bytes | None,
    mounts: tuple[str, ...] = (),
) -> BuiltImage:
    """Configuration and layers as an image with its manifest."""
    data = canonical(config)
    manifest = canonical(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": sha256_digest(data), "size": len(data)},
            "layers": [describe(layer) for layer in layers],
        }
    )
    return BuiltImage(profile.name, profile.platform, manifest, data, tuple(layers), labels, golden, mounts)


def check_size(built: BuiltImage, profile: DeviceProfile) -> None:
    """Refuse an image that the profile's devices cannot hold.

    Raises:
        InputError: larger unpacked than the profile's limit.
    """
    size, limit = built.unpacked_bytes // (1 << 20), profile.capabilities.image_limit_mb
    if size > limit:
        raise InputError(
            f"image for {profile.name}",
            f"has {size} MB unpacked, the profile's limit is {limit} MB",
            f"{way_out(built)}; or raise image_limit_mb in the profile",
        )


def size_warning(built: BuiltImage, profile: DeviceProfile) -> str:
    """What to say of an image that takes most of what the profile allows; empty for smaller ones."""
    size, limit = built.unpacked_bytes // (1 << 20), profile.capabilities.image_limit_mb
    if size * 100 <= limit * _WARN_PERCENT:
        return ""
    return f"{size} MB unpacked, of {limit} MB that {profile.name} allows. {way_out(built)}."


def way_out(built: BuiltImage) -> str:
    """How to make an image smaller, by what weighs most in it."""
    sizes: dict[str, int] = {}
    for layer in built.layers:
        sizes[layer.kind] = sizes.get(layer.kind, 0) + layer.unpacked
    heaviest = max(sizes, key=lambda kind: sizes[kind])
    advice = {
        "model": "Make the model smaller: --quantize fp16 halves its weights, --quantize int8 quarters them",
        "runtime": "Take a smaller runtime: TFLite's (litert, tflite) weigh less than ONNX Runtime",
        "base": "Take a slimmer base: --base debian has about 45 MB",
    }
    share = f"Its {heaviest} layer alone has {sizes[heaviest] // (1 << 20)} MB"
    return f"{share}. {advice.get(heaviest, 'Leave out of the image what the model does not need')}"
