"""What `wherry package` does: model file or ready-made image in, pushed images and package.json out."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from wherry.errors import InputError, StoreError
from wherry.profile import BaseImage, DeviceProfile, get_profile, load_profiles
from wherry.release import LABEL, GoldenCase, Precision, Runtime
from wherry_cli.packaging.app_layer import page_layer, serving_layer
from wherry_cli.packaging.base import Base, base_for, registry_image
from wherry_cli.packaging.build import (
    BuiltImage,
    ImageOptions,
    ProgramLayers,
    build_image,
    check_size,
    size_warning,
)
from wherry_cli.packaging.from_image import ReadyMade, rebuild_image
from wherry_cli.packaging.golden import read_golden, telling
from wherry_cli.packaging.model import ModelSource, ModelWishes, read_model
from wherry_cli.packaging.package_file import PACKAGE_FILE_NAME, PackagedImage, PackageFile, QuantizationReport
from wherry_cli.packaging.picture import Declaration, read_declaration
from wherry_cli.packaging.progress import Progress, Report, silent
from wherry_cli.packaging.push import image_tag, model_repository, push_image, save_oci_layout
from wherry_cli.packaging.quantize import ModelNotes, Quantize, quantize_model
from wherry_cli.packaging.reference import check_registry, parse_reference
from wherry_cli.packaging.registry import RegistryClient
from wherry_cli.packaging.release import ReleaseOptions, Served, check_fit, packaged_image
from wherry_cli.packaging.runtime import picture_layer, runtime_layer
from wherry_cli.packaging.samples import PICTURE_SUFFIXES
from wherry_cli.packaging.store import Store, cache_folder
from wherry_cli.words import size

GOLDEN_FILE_NAME = "golden.json"
_HEAVY_CASES = 8_000_000
"""Bytes of golden cases from which it is said what they weigh."""


@dataclass(frozen=True, slots=True)
class PackageOrder:
    """What to package.

    Attributes:
        profiles: names of device profiles, one image each.
        model: the model file; or
        from_image: a reference to a ready-made image.
        registry: HOST:PORT to push to; without it images are saved in the OCI layout below `output`.
        output: folder for package.json and golden.json.
        golden: file or folder of given cases, or of pictures; without it cases are made, unless `no_golden`.
        shapes: sizes of dynamic inputs for made cases.
        quantize: how to quantize the model first; None packages it as it is.
        picture: declaration file of pictures and labels.
        base: "debian" or an OCI reference, instead of the profile's base.
        cache: folder of the layer cache; default: `cache_folder()`.
    """

    name: str
    version: str
    profiles: tuple[str, ...]
    model: Path | None = None
    from_image: str | None = None
    registry: str | None = None
    output: Path | None = None
    golden: Path | None = None
    no_golden: bool = False
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    runtime: Runtime | None = None
    provider: str | None = None
    precision: Precision | None = None
    reset: Literal["each", "never"] | None = None
    quantize: Quantize | None = None
    picture: Path | None = None
    base: str | None = None
    release: ReleaseOptions = field(default_factory=ReleaseOptions)
    cache: Path | None = None


@dataclass(frozen=True, slots=True)
class _Work:
    """An order with everything opened that it needs."""

    order: PackageOrder
    store: Store
    registry: RegistryClient | None
    report: Report


def parse_shapes(texts: list[str]) -> dict[str, tuple[int, ...]]:
    """`--shape INPUT=1,3,224,224` options. An input's name may hold "=", sizes cannot.

    Raises:
        InputError: not of that form.
    """
    shapes = {}
    for text in texts:
        name, _, sizes = text.rpartition("=")
        try:
            shapes[name] = tuple(int(size) for size in sizes.split(",") if size.strip())
        except ValueError:
            name = ""
        if not name or min(shapes.get(name, (0,)), default=0) < 1:
            raise InputError(f"--shape {text}", "is not INPUT=1,3,224,224", "Name the input and each size from 1 up")
    return shapes


def package(
    order: PackageOrder, report: Report = silent, profiles: Mapping[str, DeviceProfile] | None = None
) -> PackageFile:
    """Make, push and describe one image per device profile.

    Args:
        order: what to package.
        report: told of progress.
        profiles: device profiles by name; default: the shipped ones.

    Raises:
        InputError: the order, the model or its golden cases are not usable.
        FitError: a profile's hardware cannot run the image.
        BuildError: mmdebstrap or pip failed.
        RegistryError: a registry failed.
        StoreError: the cache or the output folder cannot be written.
    """
    _check(order)
    known = profiles if profiles is not None else load_profiles()
    chosen = [get_profile(name, known) for name in order.profiles]
    with ExitStack() as stack:
        registry = None
        if order.registry:
            registry = stack.enter_context(RegistryClient.for_user(check_registry(order.registry)))
            model_repository(order.registry, order.name)
        work = _Work(order, Store(order.cache or cache_folder()), registry, report)
        if order.from_image:
            images, report_of = _from_image(work, chosen), None
        else:
            folder = work.store.scratch()
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            images, report_of = _from_model(work, chosen, folder)
    stage = order.release.stage
    made = PackageFile(model=order.name, version=order.version, stage=stage, quantization=report_of, images=images)
    if order.output is not None:
        _write(order.output / PACKAGE_FILE_NAME, made.to_json().encode())
    return made


def _check(order: PackageOrder) -> None:
    if (order.model is None) == (order.from_image is None):
        raise InputError("package", "needs a model file or --from-image, and not both")
    if order.registry is None and order.output is None:
        raise InputError("package", "has nowhere to go", "Give --registry HOST:PORT, --output DIR, or both")
    if not order.profiles or len(set(order.profiles)) != len(order.profiles):
        raise InputError("--profile", "is missing or names a profile twice")
    if order.golden is not None and order.no_golden:
        raise InputError("--golden and --no-golden", "contradict each other")
    for option, given in (("--quantize", order.quantize), ("--picture", order.picture)):
        if given is not None and order.from_image is not None:
            raise InputError(option, "is for model files", "Leave it out: a ready-made image stays as it is")


def _given_cases(order: PackageOrder) -> tuple[GoldenCase, ...]:
    """The given cases; a folder of pictures alone holds none that are written down."""
    if order.golden is None or (_given_pictures(order) and not any(order.golden.glob("*.json"))):
        return ()
    return tuple(read_golden(order.golden))


def _given_pictures(order: PackageOrder) -> tuple[Path, ...]:
    if order.golden is None or not order.golden.is_dir():
        return ()
    return tuple(sorted(path for path in order.golden.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES))


def _from_model(
    work: _Work, profiles: list[DeviceProfile], folder: Path
) -> tuple[list[PackagedImage], QuantizationReport | None]:
    source, report = _read(work, folder)
    serving = serving_layer(work.store)
    page = page_layer(work.store) if work.order.release.stage == "dev" else None
    images = []
    for profile in profiles:
        base = base_for(_base_of(profile, work.order.base), profile.platform, work.store, work.registry, work.report)
        runtime = None
        if _base_brings(base, source, profile) is False:
            runtime = runtime_layer(source.runtime, profile, work.store, work.report)
        picture = picture_layer(profile, work.store, work.report) if source.picture else None
        options = ImageOptions(provider=work.order.provider, stage=work.order.release.stage)
        programs = ProgramLayers(runtime, serving, picture, page)
        built = build_image(source, profile, base, programs, work.store, options)
        provider = built.labels[f"{LABEL}provider"]
        served = Served(source.name, source.version, source.runtime, provider, source.precision, source.signature)
        images.append(_deliver(work, built, served, profile))
    return images, report


def _read(work: _Work, folder: Path) -> tuple[ModelSource, QuantizationReport | None]:
    order = work.order
    if order.model is None or order.runtime == "custom":
        raise InputError("--runtime custom", "is for --from-image")
    declaration = read_declaration(order.picture) if order.picture else None
    path, quantization = _quantized(work, order.model, declaration, folder)
    stage = f"model {order.model.name}"
    work.report(Progress(stage, 0, 1, "running its golden cases"))
    wishes = ModelWishes(
        runtime=order.runtime,
        precision=order.precision,
        reset=order.reset,
        goldens="none" if order.no_golden else "given" if order.golden else "made",
        cases=_given_cases(order),
        shapes={name: list(shape) for name, shape in order.shapes.items()},
        declaration=declaration,
        pictures=_given_pictures(order),
    )
    source = read_model(path, order.name, order.version, wishes)
    note = f"{source.precision}, {len(source.cases)} golden cases"
    if len(source.cases) > 1 and not telling(source.cases):
        note += "; all give the same answer, so give recorded ones with --golden to prove more"
    weight = sum(len(tensor.raw) for case in source.cases for tensor in (*case.inputs, *case.outputs))
    if weight > _HEAVY_CASES:
        note += f"; they add {weight / 1e6:.0f} MB to each image, fewer would prove as much"
    work.report(Progress(stage, 1, 1, note))
    return source, quantization


def _quantized(
    work: _Work, path: Path, declaration: Declaration | None, folder: Path
) -> tuple[Path, QuantizationReport | None]:
    """The model to package, quantized first where that is asked for."""
    order = work.order
    if order.quantize is None:
        return path, None
    stage = f"model {path.name} in {order.quantize.kind}"
    work.report(Progress(stage, 0, 1, "quantizing it and comparing the answers"))
    notes = ModelNotes(declaration, order.shapes, order.reset)
    found, report = quantize_model(path, order.quantize, notes, folder)
    done = f"{report.agreement:.1%} of the answers stay" if report.quantized else "it is already: nothing was changed"
    work.report(Progress(stage, 1, 1, done))
    return found, report


def _base_of(profile: DeviceProfile, wished: str | None) -> BaseImage:
    if wished is None:
        return profile.base
    if wished == "debian":
        return BaseImage(kind="debian")
    return profile.base.model_copy(update={"kind": "registry", "reference": wished})


def _base_brings(base: Base, source: ModelSource, profile: DeviceProfile) -> bool:
    """Whether the base holds the model runtime itself, as those for Jetson GPUs do.

    Raises:
        InputError: it holds another runtime than the model needs.
    """
    brings = base.labels.get(f"{LABEL}runtime")
    if brings is not None and source.runtime not in brings.split(","):
        reason = f"holds the runtime {brings}, the model needs {source.runtime}"
        raise InputError(f"base image for {profile.name}", reason, "Convert the model, or give --base debian")
    return brings is not None


def _from_image(work: _Work, profiles: list[DeviceProfile]) -> list[PackagedImage]:
    order = work.order
    reference = parse_reference(order.from_image or "", order.registry)
    images = []
    with ExitStack() as stack:
        source = work.registry
        if source is None or source.registry != reference.registry:
            source = stack.enter_context(RegistryClient.for_user(reference.registry))
        for profile in profiles:
            base = registry_image(reference, profile.platform, source, work.store, work.report)
            if source is not work.registry:
                base = Base(base.layers, base.config)  # another registry's repositories cannot be mounted
            ready = ReadyMade(
                order.name, order.version, base, _given_cases(order), order.release.stage,
                order.runtime, order.provider, order.precision,
            )  # fmt: skip
            built, served = rebuild_image(ready, profile, work.store)
            images.append(_deliver(work, built, served, profile))
    return images


def _deliver(work: _Work, built: BuiltImage, served: Served, profile: DeviceProfile) -> PackagedImage:
    """Check that it fits, then push it, or save it where there is no registry."""
    order = work.order
    check_size(built, profile)
    warning = size_warning(built, profile)
    if warning:
        work.report(Progress(f"size for {profile.name}", 1, 1, f"Warning: {warning}"))
    check_fit(packaged_image(built, served, "", order.release), profile)
    if order.output is not None and built.golden is not None:
        _write(order.output / GOLDEN_FILE_NAME, built.golden)
    if work.registry is None:
        if order.output is not None:
            save_oci_layout(built, order.output / profile.name)
        return packaged_image(built, served, "", order.release)
    place = model_repository(work.registry.registry, order.name)
    tag = image_tag(order.version, profile.name, order.release.stage)
    pushed = push_image(built, work.registry, place.repository, tag, work.store, work.report)
    stage = f"image for {profile.name}"
    work.report(Progress(stage, built.download_bytes, built.download_bytes, f"{size(pushed.sent_bytes)} sent"))
    return packaged_image(built, served, place.name, order.release)


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise StoreError(f"output {path}", f"cannot be written ({error.strerror})", "Check --output") from error
