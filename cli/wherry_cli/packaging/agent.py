"""The agent itself becomes an image for each device profile: its code, and what it needs for the devices' Python.

Nothing in it ever runs as a container: a device unpacks two folders of it. Layers, from seldom to often changed:
packages for each Python, then the agent.
"""

from __future__ import annotations

import re
import shutil
import zipfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from wherry.agent_release import AGENT_FOLDER, AGENT_MODEL, AGENT_RUNTIME, APP_PART, python_part
from wherry.errors import InputError, StoreError
from wherry.profile import DeviceProfile, get_profile, load_profiles, profiles_folder
from wherry.release import LABEL, Needs, RunSpec
from wherry_cli.packaging.build import CPU, BuiltImage, assemble, check_size, platform_fields
from wherry_cli.packaging.layers import EPOCH_TEXT, Entry, built_once, folder_entries, make_layer
from wherry_cli.packaging.locks import Target, lock_for, locks_folder
from wherry_cli.packaging.package_file import PACKAGE_FILE_NAME, PackagedImage, PackageFile
from wherry_cli.packaging.progress import Progress, Report, silent
from wherry_cli.packaging.push import image_tag, model_repository, push_image, save_oci_layout
from wherry_cli.packaging.reference import check_registry
from wherry_cli.packaging.registry import RegistryClient
from wherry_cli.packaging.release import of_built
from wherry_cli.packaging.runtime import install_wheels, is_needed
from wherry_cli.packaging.store import Layer, Store, cache_folder
from wherry_cli.words import size

_PACKAGES = ("wherry", "wherry_agent")
_LOCK = "agent.txt"
_RECIPE = 1
_MEMORY_MB = 64
_VERSION = re.compile(r"""^__version__ = ["']([A-Za-z0-9][A-Za-z0-9._-]{0,63})["']$""", re.MULTILINE)
_PYTHON = re.compile(r"3\.[0-9]{1,2}")


@dataclass(frozen=True, slots=True)
class AgentOrder:
    """What to package.

    Attributes:
        profiles: names of device profiles, one image each.
        wheel: wheel of the wherry distribution to take the agent from; None takes the one installed here.
        pythons: of the devices ("3.11"); empty takes the profile's.
        registry: HOST:PORT to push to; without it images are saved in the OCI layout below `output`.
        output: folder for images that are not pushed.
        start_seconds: time that the agent may take on a device to prove itself.
        cache: folder of the layer cache; default: `cache_folder()`.
    """

    profiles: tuple[str, ...]
    wheel: Path | None = None
    pythons: tuple[str, ...] = ()
    registry: str | None = None
    output: Path | None = None
    start_seconds: int = 120
    cache: Path | None = None


@dataclass(frozen=True, slots=True)
class _Source:
    """An agent's code and the lock file of what it needs."""

    version: str
    entries: tuple[Entry, ...]
    lock: str


def package_agent(order: AgentOrder, report: Report = silent) -> PackageFile:
    """Make one image per device profile, push or save it, and describe them all.

    Args:
        order: what to package.
        report: told of progress.

    Raises:
        InputError: the order or the wheel is not usable.
        BuildError: pip failed, or a package has no wheel for a device's Python.
        RegistryError: the registry failed.
        StoreError: the cache or the output folder cannot be written.
    """
    _check(order)
    known = load_profiles()
    store = Store(order.cache or cache_folder())
    with ExitStack() as stack:
        registry = None
        if order.registry:
            registry = stack.enter_context(RegistryClient.for_user(check_registry(order.registry)))
        scratch = store.scratch()
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        source = _from_wheel(order.wheel, scratch) if order.wheel else _installed()
        code = make_layer("agent", source.entries, store)
        images = []
        for name in order.profiles:
            profile = get_profile(name, known)
            pythons = order.pythons or (profile.base.python,)
            packages = [_packages_layer(source.lock, profile, python, store, report) for python in pythons]
            built = _build(source.version, profile, (*packages, code))
            check_size(built, profile)
            place = _deliver(order, source.version, built, registry, store, report)
            images.append(_packaged(source.version, built, place, pythons, order.start_seconds))
    return PackageFile(model=AGENT_MODEL, version=source.version, images=images)


def _check(order: AgentOrder) -> None:
    if order.registry is None and order.output is None:
        raise InputError("package", "has nowhere to go", "Give --registry HOST:PORT, --output DIR, or both")
    if not order.profiles or len(set(order.profiles)) != len(order.profiles):
        raise InputError("--profile", "is missing or names a profile twice")
    for python in order.pythons:
        if not _PYTHON.fullmatch(python):
            raise InputError(f"--python {python}", "is not a version such as 3.11")


def _installed() -> _Source:
    """The agent that is installed beside this tool; found, not imported."""
    entries: list[Entry] = []
    for name in _PACKAGES:
        spec = find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise InputError("the agent", "is not installed beside this tool", "Give the wheel with --from")
        entries += _package(Path(next(iter(spec.submodule_search_locations))), name)
    if not any(entry.path.endswith(".toml") for entry in entries):  # a checkout: the profiles lie beside the packages
        entries += folder_entries(profiles_folder(), f"{AGENT_FOLDER}/{APP_PART}/wherry/device_profiles", _is_kept)
    return _source(entries, (locks_folder() / _LOCK).read_text(encoding="utf-8"), "the agent installed here")


def _from_wheel(wheel: Path, folder: Path) -> _Source:
    """The agent in a wheel of the distribution, with the lock file that came with it."""
    thing = f"wheel {wheel}"
    try:
        with zipfile.ZipFile(wheel) as archive:
            wanted = (*(f"{name}/" for name in _PACKAGES), f"wherry_cli/requirements/{_LOCK}")
            archive.extractall(folder, [name for name in archive.namelist() if name.startswith(wanted)])
        lock = (folder / "wherry_cli/requirements" / _LOCK).read_text(encoding="utf-8")
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(thing, f"is no wheel of wherry ({error})", "Name wherry-VERSION-py3-none-any.whl") from error
    return _source([entry for name in _PACKAGES for entry in _package(folder / name, name)], lock, thing)


def _package(folder: Path, name: str) -> list[Entry]:
    return folder_entries(folder, f"{AGENT_FOLDER}/{APP_PART}/{name}", _is_kept)


def _is_kept(path: PurePosixPath) -> bool:
    return "__pycache__" not in path.parts


def _source(entries: list[Entry], lock: str, thing: str) -> _Source:
    """The source with the version that it says of itself."""
    paths = {entry.path: entry.source for entry in entries}
    about = paths.get(f"{AGENT_FOLDER.strip('/')}/{APP_PART}/wherry/__init__.py")
    found = _VERSION.search(about.read_text(encoding="utf-8")) if about else None
    if found is None or f"{AGENT_FOLDER.strip('/')}/{APP_PART}/wherry_agent/__main__.py" not in paths:
        raise InputError(thing, "holds no agent with a version")
    return _Source(found[1], tuple(entries), lock)


def _packages_layer(lock: str, profile: DeviceProfile, python: str, store: Store, report: Report) -> Layer:
    """What the agent needs, for one Python; of the store when the same lock was unpacked before."""
    target = replace(Target.of(profile), python=python)
    pinned = lock_for(lock, target)
    key, stage = f"{_RECIPE}\n{target}\n{pinned}", f"packages of the agent for Python {python} on {target.machine}"

    def build(folder: Path) -> Layer:
        install_wheels(pinned, target, folder, stage)
        entries = folder_entries(folder / "wheels", f"{AGENT_FOLDER}/{python_part(python)}", is_needed)
        return make_layer("packages", entries, store)

    return built_once(store, "packages", key, build, report, stage, "fetching wheels")


def _build(version: str, profile: DeviceProfile, layers: tuple[Layer, ...]) -> BuiltImage:
    labels = {
        f"{LABEL}model": AGENT_MODEL,
        f"{LABEL}version": version,
        f"{LABEL}profile": profile.name,
        f"{LABEL}runtime": AGENT_RUNTIME,
    }
    config = platform_fields(profile.platform) | {
        "created": EPOCH_TEXT,
        # An engine makes no container without a command; this one says what the image is for.
        "config": {"Entrypoint": ["unpack-me-do-not-run"], "Labels": labels},
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        "history": [{"created": EPOCH_TEXT, "created_by": f"wherry agent ({layer.kind})"} for layer in layers],
    }
    return assemble(profile, config, layers, labels, None)


def _deliver(
    order: AgentOrder, version: str, built: BuiltImage, registry: RegistryClient | None, store: Store, report: Report
) -> str:
    """Push the image, or save it where there is no registry; the repository it is in."""
    if registry is None:
        if order.output is not None:
            save_oci_layout(built, order.output / built.profile)
        return ""
    place = model_repository(registry.registry, AGENT_MODEL)
    pushed = push_image(built, registry, place.repository, image_tag(version, built.profile), store, report)
    stage = f"image for {built.profile}"
    report(Progress(stage, built.download_bytes, built.download_bytes, f"{size(pushed.sent_bytes)} sent"))
    return place.name


def _packaged(
    version: str, built: BuiltImage, repository: str, pythons: tuple[str, ...], start_seconds: int
) -> PackagedImage:
    return PackagedImage(
        model=AGENT_MODEL,
        version=version,
        **of_built(built, repository),
        runtime="agent",
        provider=CPU,
        precision="fp32",
        needs=Needs(python=list(pythons)),
        run=RunSpec(memory_mb=_MEMORY_MB, start_seconds=start_seconds),
    )


def write_package(made: PackageFile, folder: Path) -> Path:
    """Write package.json into a folder; its path.

    Raises:
        StoreError: it cannot be written.
    """
    path = folder / PACKAGE_FILE_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(made.to_json(), encoding="utf-8")
    except OSError as error:
        raise StoreError(f"output {path}", f"cannot be written ({error.strerror})", "Check --output") from error
    return path
