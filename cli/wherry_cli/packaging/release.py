"""From an image to what its release says: run spec, needs, gates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wherry.errors import FitError
from wherry.profile import DeviceProfile, misfits
from wherry.release import (
    LABEL,
    Gate,
    Needs,
    Precision,
    ReleaseImage,
    RunSpec,
    Runtime,
    Signature,
    Stage,
)
from wherry_cli.packaging.build import BuiltImage
from wherry_cli.packaging.gates import gates
from wherry_cli.packaging.package_file import PackagedImage, PackagedLayer

_SERVER_MB = 256
_MODEL_TIMES = 6
"""Memory for a model: the server, and the weights with what the runtime unpacks and computes from them."""
_PICTURE_MB = 128
"""The largest picture that the server takes, decoded (see `wherry_serving.decoding`)."""
_ENGINE_BUILD_SECONDS = 900
"""TensorRT builds its engine at the first start on a device, which takes minutes."""


@dataclass(frozen=True, slots=True)
class ReleaseOptions:
    """What the operator may choose of a release; None and empty leave it to packaging.

    Attributes:
        health_path: for images that do not speak the Open Inference Protocol.
        gates: asked besides the usual ones, or instead of those of their kind.
        breaking: callers of the version before must change.
        needs_slots: other slots of the device that the model calls.
        drains: see `wherry.release.RunSpec`.
    """

    stage: Stage = "prod"
    memory_mb: int | None = None
    cpus: str = "0"
    start_seconds: int | None = None
    drain_seconds: int = 5
    health_path: str | None = None
    gates: tuple[Gate, ...] = ()
    breaking: bool = False
    needs_slots: tuple[str, ...] = ()
    drains: bool | None = None


@dataclass(frozen=True, slots=True)
class Served:
    """What an image serves, as far as it is known."""

    model: str
    version: str
    runtime: Runtime
    provider: str
    precision: Precision
    signature: Signature | None


def memory_estimate(model_bytes: int) -> int:
    """MiB that a container needs to serve a model of that size, in steps of 64."""
    return -(-(_SERVER_MB + _MODEL_TIMES * (model_bytes // (1 << 20))) // 64) * 64


def run_spec(built: BuiltImage, served: Served, options: ReleaseOptions) -> RunSpec:
    """How the engine runs the image."""
    estimate = memory_estimate(sum(layer.unpacked for layer in built.layers if layer.kind == "model"))
    if any(layer.kind == "picture" for layer in built.layers):
        estimate += _PICTURE_MB
    seconds = _ENGINE_BUILD_SECONDS if served.provider == "TensorrtExecutionProvider" else 60
    return RunSpec(
        memory_mb=options.memory_mb or (512 if served.runtime == "custom" else estimate),
        cpus=options.cpus,
        start_seconds=options.start_seconds or seconds,
        drain_seconds=options.drain_seconds,
        drains=options.drains,
    )


def needs(built: BuiltImage, run: RunSpec, options: ReleaseOptions) -> Needs:
    """What the image needs: memory, the hardware that its base was made for, and other slots."""

    def listed(label: str) -> list[str]:
        return [part.strip() for part in built.labels.get(LABEL + label, "").split(",") if part.strip()]

    return Needs(
        memory_mb=run.memory_mb,
        l4t=listed("l4t"),
        sm=listed("sm"),
        cuda=listed("cuda"),
        tensorrt=listed("tensorrt"),
        slots=sorted(set(options.needs_slots)),
    )


def of_built(built: BuiltImage, repository: str) -> dict[str, Any]:
    """The fields of a PackagedImage that its bytes decide; `repository` as in `packaged_image`."""
    return {
        "profile": built.profile,
        "platform": built.platform,
        "repository": repository,
        "digest": built.digest,
        "manifest_bytes": len(built.manifest),
        "config_digest": built.config_digest,
        "unpacked_bytes": built.unpacked_bytes,
        "download_bytes": built.download_bytes,
        "layers": [
            PackagedLayer(kind=layer.kind, digest=layer.digest, size=layer.size, unpacked=layer.unpacked)
            for layer in built.layers
        ],
    }


def packaged_image(built: BuiltImage, served: Served, repository: str, options: ReleaseOptions) -> PackagedImage:
    """Everything a release needs of an image but its counter.

    Args:
        built: the image.
        served: what it serves.
        repository: registry and repository it was pushed to; empty when it was only saved.
        options: the operator's choices.
    """
    run = run_spec(built, served, options)
    return PackagedImage(
        model=served.model,
        version=served.version,
        stage=options.stage,
        **of_built(built, repository),
        runtime=served.runtime,
        provider=served.provider,
        precision=served.precision,
        signature=served.signature,
        needs=needs(built, run, options),
        run=run,
        gates=gates(built.golden, served, run, options.health_path, options.gates),
        breaking=options.breaking,
    )


def release_image(image: PackagedImage, counter: int, revoked: Sequence[str] = ()) -> ReleaseImage:
    """The signed form of an image under a counter.

    Raises:
        InputError: the image was not pushed.
    """
    return image.to_release_image(counter, revoked=list(revoked))


def check_fit(image: PackagedImage, profile: DeviceProfile) -> None:
    """Refuse an image that the profile it is made for cannot run.

    Raises:
        FitError: with every reason in words.
    """
    trial = image.model_copy(update={"repository": image.repository or "unpushed"}).to_release_image(1)
    # Memory is judged by each device itself: boards of one profile differ.
    reasons = misfits(trial.model_copy(update={"needs": trial.needs.model_copy(update={"memory_mb": 0})}), profile)
    if reasons:
        raise FitError(f"image for {profile.name}", "; ".join(reasons), "Choose another runtime, provider or profile")
