"""The runtime layer: wheels of a model runtime for the target's architecture, pinned and hashed, unpacked."""

from __future__ import annotations

import re
import sys
from pathlib import Path, PurePosixPath
from typing import Literal

from wherry.errors import BuildError
from wherry.profile import DeviceProfile
from wherry.release import PICTURE_FOLDER, RUNTIME_FOLDER
from wherry_cli.packaging.layers import built_once, folder_entries, make_layer
from wherry_cli.packaging.locks import Target, lock_for, read_lock
from wherry_cli.packaging.progress import Report, silent
from wherry_cli.packaging.store import Layer, Store
from wherry_cli.packaging.tools import run_tool

RECIPE = 2
"""Part of the cache's key: raise it when the choice of files below changes."""

_FOLDERS = {"runtime": RUNTIME_FOLDER, "picture": PICTURE_FOLDER}

# Never used by a model server. Licences (in dist-info) stay.
_DROPPED = re.compile(
    r"""
    bin/.* | .*\.dist-info/(RECORD|INSTALLER|REQUESTED|direct_url\.json) | .*/__pycache__/.*
    | .*\.(pyi|pyx|pxd|a|h|c|cpp) | (.*/)?(tests|testing)/.* | .*/include/.*
    | onnxruntime/(transformers|quantization|tools|datasets|backend)/.* | numpy/f2py/.*
    | onnxruntime/capi/libonnxruntime\.so.*  # for C++ programs; Python has its own copy inside its extension
    """,
    re.VERBOSE,
)
_KEPT = re.compile(r"numpy/testing/.*\.py")


def is_needed(path: PurePosixPath) -> bool:
    """Whether a file of an unpacked wheel is of any use on a device."""
    text = str(path)
    if _KEPT.fullmatch(text) and "/tests/" not in text:
        return True  # numpy.lib imports numpy.testing in some versions
    return _DROPPED.fullmatch(text) is None


def runtime_layer(runtime: str, profile: DeviceProfile, store: Store, report: Report = silent) -> Layer:
    """The layer of a runtime for a profile; of the store when the same lock was unpacked before.

    Args:
        runtime: "onnx", "litert" or "tflite".
        profile: whose architecture, Python and glibc the wheels must fit.
        store: where layers are kept.
        report: told of progress.

    Raises:
        BuildError: pip failed, or a pinned package has no wheel for the target.
        InputError: no such runtime.
        StoreError: the store cannot be written.
    """
    return _wheel_layer("runtime", runtime, profile, store, report)


def picture_layer(profile: DeviceProfile, store: Store, report: Report = silent) -> Layer:
    """The layer with Pillow, for models that take pictures; as `runtime_layer`.

    Raises:
        BuildError, InputError, StoreError: as `runtime_layer`.
    """
    return _wheel_layer("picture", "picture", profile, store, report)


def _wheel_layer(
    kind: Literal["runtime", "picture"], name: str, profile: DeviceProfile, store: Store, report: Report
) -> Layer:
    target, lock, key = _recipe(name, profile)
    stage = f"{kind} layer, {name} for {target.machine}"

    def build(folder: Path) -> Layer:
        install_wheels(lock, target, folder, stage)
        return make_layer(kind, folder_entries(folder / "wheels", _FOLDERS[kind], is_needed), store)

    return built_once(store, kind, key, build, report, stage, "fetching wheels")


def known_runtime_layer(runtime: str, profile: DeviceProfile, store: Store) -> Layer | None:
    """The same if it is in the store already.

    Raises:
        InputError: no such runtime.
    """
    return store.recall("runtime", _recipe(runtime, profile)[2])


def _recipe(runtime: str, profile: DeviceProfile) -> tuple[Target, str, str]:
    """Target, its part of the lock, and the store's key for both."""
    target = Target.of(profile)
    lock = lock_for(read_lock(runtime), target)
    return target, lock, f"{RECIPE}\n{target}\n{lock}"


def install_wheels(lock: str, target: Target, folder: Path, stage: str) -> None:
    """Unpack the pinned packages for a target into `folder`/wheels.

    Raises:
        BuildError: pip failed, or a package has no wheel for the target.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(lock, encoding="utf-8")
    # No --abi: pip then also takes abi3 and pure wheels.
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--target", str(folder / "wheels"), "--no-compile", "--no-deps", "--require-hashes"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", target.python]
    for tag in target.tags():
        command += ["--platform", tag]
    try:
        run_tool([*command, "--requirement", str(requirements)], stage)
    except BuildError as error:
        if "No module named pip" in error.reason:
            raise BuildError(stage, "this Python has no pip", f"Run `{sys.executable} -m ensurepip`") from error
        raise
