"""Images that were saved elsewhere and carried here: from their folders to a registry, nothing trusted on the way."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wherry.errors import InputError, StoreError
from wherry.identity import sha256_digest
from wherry_cli.packaging.build import BuiltImage
from wherry_cli.packaging.package_file import PackagedImage, PackageFile
from wherry_cli.packaging.progress import Report, silent
from wherry_cli.packaging.push import image_tag, model_repository, push_image
from wherry_cli.packaging.registry import RegistryClient
from wherry_cli.packaging.store import Layer

_MANIFEST_LIMIT = 4 * 1024 * 1024
_FIX = "Carry the folder here once more, or package the model again"


def is_carried(package: PackageFile) -> bool:
    """Whether an image of a package was saved to a folder and never pushed."""
    return any(not image.repository for image in package.images)


def push_carried(
    package: PackageFile, folder: Path, open_registry: Callable[[], RegistryClient], report: Report = silent
) -> PackageFile:
    """Push a package's images that lie in folders beside its file, `FOLDER/PROFILE`; the package as it is then.

    All of them are read and checked against the package before the registry is asked.

    Args:
        package: what was packaged.
        folder: where package.json is.
        open_registry: makes the client of the registry.
        report: told of progress.

    Raises:
        InputError: an image was neither pushed nor is it there.
        StoreError: a folder is damaged, or holds another image than the package says.
        RegistryError: the registry failed or refused something.
    """
    waiting = {
        image.profile: read_carried(folder / image.profile, image) for image in package.images if not image.repository
    }
    images = []
    with open_registry() as registry:
        place = model_repository(registry.registry, package.model)
        for image in package.images:
            if built := waiting.get(image.profile):
                tag = image_tag(package.version, image.profile, package.stage)
                push_image(built, registry, place.repository, tag, report=report)
                image = image.model_copy(update={"repository": place.name})
            images.append(image)
    return package.model_copy(update={"images": images})


def read_carried(folder: Path, image: PackagedImage) -> BuiltImage:
    """The image of an OCI layout, every byte of it checked against the digests in the package.

    Raises:
        InputError: there is no such folder.
        StoreError: it is damaged, or holds another image.
    """
    if not (folder / "index.json").exists():
        raise InputError(
            f"image of {image.model} {image.version} for {image.profile}",
            f"was not pushed to a registry, and is not in {folder}",
            "Bring the folder of `wherry package --no-push`, or package it again with --registry HOST:PORT",
        )
    manifest = _read(folder, image.digest)
    config = _read(folder, image.config_digest)
    try:
        described: list[dict[str, Any]] = json.loads(manifest)["layers"]
        document = json.loads(config)
        diff_ids: list[str] = document["rootfs"]["diff_ids"]
        known = {layer.digest: layer for layer in image.layers}
        layers = tuple(
            Layer(
                known[layer["digest"]].kind, layer["mediaType"], layer["digest"], diff_id, layer["size"],
                known[layer["digest"]].unpacked, str(_checked(folder, layer["digest"], layer["size"])),
            )
            for layer, diff_id in zip(described, diff_ids, strict=True)
        )  # fmt: skip
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"image folder {folder}", "does not hold the image that package.json names", _FIX) from error
    labels = (document.get("config") or {}).get("Labels") or {}
    return BuiltImage(image.profile, image.platform, manifest, config, layers, labels)


def _path(folder: Path, digest: str) -> Path:
    return folder / "blobs" / "sha256" / digest.removeprefix("sha256:")


def _read(folder: Path, digest: str) -> bytes:
    path = _path(folder, digest)
    try:
        with path.open("rb") as file:
            data = file.read(_MANIFEST_LIMIT)
    except OSError as error:
        raise StoreError(f"image folder {folder}", f"lacks {digest[:19]}… ({error.strerror})", _FIX) from error
    if sha256_digest(data) != digest:
        raise StoreError(f"image folder {folder}", f"{path.name[:12]}… is damaged: its digest differs", _FIX)
    return data


def _checked(folder: Path, digest: str, size: int) -> Path:
    """A layer's file, read once: what a bad medium changed is found before anything is sent."""
    path = _path(folder, digest)
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
            length = path.stat().st_size
    except OSError as error:
        raise StoreError(f"image folder {folder}", f"lacks layer {digest[:19]}… ({error.strerror})", _FIX) from error
    if (f"sha256:{found}", length) != (digest, size):
        raise StoreError(f"image folder {folder}", f"layer {digest[:19]}… is damaged: its digest differs", _FIX)
    return path
