"""Which device profiles a model would fit, and how large its images would be, before anything is built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel

from wherry.profile import DeviceProfile, misfits
from wherry.release import Needs, Precision, ReleaseImage
from wherry_cli.packaging.app_layer import serving_layer
from wherry_cli.packaging.base import base_key
from wherry_cli.packaging.model import RunsOn
from wherry_cli.packaging.release import memory_estimate
from wherry_cli.packaging.runtime import known_runtime_layer
from wherry_cli.packaging.store import Store

_TYPICAL_BASE = (15_000_000, 45_000_000)
_TYPICAL_RUNTIME: Mapping[str, tuple[int, int]] = {
    "onnx": (38_000_000, 120_000_000),
    "litert": (26_000_000, 88_000_000),
    "tflite": (22_000_000, 72_000_000),
}
"""Bytes to download and unpacked of layers that are not in the cache; measured, they differ by architecture."""
_MIB = 1 << 20
_NO_DIGEST = "sha256:" + "0" * 64


@dataclass(frozen=True, slots=True)
class Sketch:
    """What is known of a model before it is packaged.

    Attributes:
        runtimes: those that take it, best first.
    """

    runtimes: Sequence[RunsOn]
    precision: Precision
    bytes: int


class ProfileFit(BaseModel):
    """Whether an image of the model would run on devices of a profile.

    Attributes:
        reasons: why it would not.
        remarks: what to know or do beforehand.
        layers: bytes to download by layer; `exact` when all of them are in the cache already.
        unpacked_bytes: all layers unpacked, for the profile's limit; 0 when the base is not known here.
    """

    profile: str
    title: str
    fits: bool
    reasons: list[str] = []
    remarks: list[str] = []
    runtime: str = ""
    memory_mb: int = 0
    layers: dict[str, int] = {}
    unpacked_bytes: int = 0
    exact: bool = False


def fit_profiles(sketch: Sketch, profiles: Mapping[str, DeviceProfile], store: Store) -> list[ProfileFit]:
    """One verdict a profile, in the profiles' order.

    Raises:
        StoreError: the cache cannot be written.
    """
    serving = serving_layer(store)
    return [_fit(sketch, profile, (serving.size, serving.unpacked), store) for profile in profiles.values()]


def _fit(sketch: Sketch, profile: DeviceProfile, serving: tuple[int, int], store: Store) -> ProfileFit:
    able = profile.capabilities
    runtime = next((name for name in sketch.runtimes if name in able.runtimes), None)
    memory = memory_estimate(sketch.bytes)
    trial = ReleaseImage(
        model="trial", version="0", profile=profile.name, platform=profile.platform, counter=1, repository="none",
        config_digest=_NO_DIGEST, unpacked_bytes=0, runtime=runtime or "custom", provider=able.providers[-1],
        precision=sketch.precision, needs=Needs(memory_mb=memory),
    )  # fmt: skip
    reasons = misfits(trial, profile)
    if runtime is None:
        reasons.append("no runtime takes this file")
        return ProfileFit(profile=profile.name, title=profile.title, fits=False, reasons=reasons, memory_mb=memory)
    sizes, exact = _layers(runtime, profile, store)
    sizes |= {"serving": serving, "model": (sketch.bytes, sketch.bytes)}
    unpacked = sum(size for _, size in sizes.values()) if "base" in sizes else 0
    if unpacked // _MIB > able.image_limit_mb:
        reasons.append(f"its image has about {unpacked // _MIB} MB unpacked, the limit is {able.image_limit_mb} MB")
    return ProfileFit(
        profile=profile.name,
        title=profile.title,
        fits=not reasons,
        reasons=reasons,
        remarks=_remarks(runtime, profile),
        runtime=runtime,
        memory_mb=memory,
        layers={kind: size for kind, (size, _) in sizes.items()},
        unpacked_bytes=unpacked,
        exact=exact,
    )


def _layers(runtime: str, profile: DeviceProfile, store: Store) -> tuple[dict[str, tuple[int, int]], bool]:
    """Sizes of base and runtime layer, packed and unpacked, and whether they are known exactly."""
    if profile.base.kind == "registry":
        return {}, False  # somebody else's base, which brings the runtime along
    base = store.recall("base", base_key(profile.base, profile.platform))
    wheels = known_runtime_layer(runtime, profile, store)
    sizes = {
        "base": (base.size, base.unpacked) if base else _TYPICAL_BASE,
        "runtime": (wheels.size, wheels.unpacked) if wheels else _TYPICAL_RUNTIME[runtime],
    }
    return sizes, base is not None and wheels is not None


def _remarks(runtime: str, profile: DeviceProfile) -> list[str]:
    if profile.base.kind != "registry":
        return []
    if runtime != "onnx":
        return ["the GPU base serves ONNX alone: package with --base debian, to serve on the CPU"]
    return ["its base image comes from your registry; what it weighs and needs is known when it is packaged"]
