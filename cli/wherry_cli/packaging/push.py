"""An image on its way: to a registry, moving only what it lacks, or to a folder in the OCI layout."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from wherry.errors import InputError, StoreError
from wherry.release import Stage
from wherry_cli.packaging.base import BASE_REPOSITORY, canonical, layer_blob
from wherry_cli.packaging.build import BuiltImage
from wherry_cli.packaging.oci import OCI_MANIFEST, Blob
from wherry_cli.packaging.progress import Progress, Report, silent
from wherry_cli.packaging.reference import Reference, parse_reference
from wherry_cli.packaging.registry import Outcome, RegistryClient
from wherry_cli.packaging.store import Store

_PREFIX = "wherry"


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a push did.

    Attributes:
        outcomes: blob digest to what was done, the configuration's included.
        sent_bytes: bytes of blobs that were transferred.
    """

    repository: str
    tag: str
    outcomes: dict[str, Outcome]
    sent_bytes: int


def model_repository(registry: str, model: str) -> Reference:
    """The repository of a model's images.

    Raises:
        InputError: the model's name cannot be part of a repository's name.
    """
    try:
        return parse_reference(f"{registry}/{_PREFIX}/{model}")
    except InputError as error:
        raise InputError(
            f"model name {model!r}",
            "cannot be part of an OCI repository's name",
            "Put letters or digits around each dot, dash and underscore",
        ) from error


def image_tag(version: str, profile: str, stage: Stage = "prod") -> str:
    """The tag under which an image is found by people; devices pull by digest."""
    suffix = "" if stage == "prod" else f"-{stage}"
    return re.sub(r"[^A-Za-z0-9_.-]", "-", f"{version}-{profile}")[: 128 - len(suffix)] + suffix


def push_image(
    built: BuiltImage,
    registry: RegistryClient,
    repository: str,
    tag: str,
    store: Store | None = None,
    report: Report = silent,
) -> Pushed:
    """Push an image. What the registry already has, here or in a repository known to hold it, is not sent.

    Args:
        built: the image.
        registry: where to.
        repository: its repository there.
        tag: its tag, besides its digest.
        store: remembers which repository holds which layer.
        report: told of progress.

    Raises:
        RegistryError: the registry failed or refused something.
    """
    outcomes: dict[str, Outcome] = {}
    sent = 0
    for layer in built.layers:
        known = store.known_places(registry.registry, layer.digest) if store else ()
        stage = f"{layer.kind} layer to {registry.registry}/{repository}"
        sources = tuple(dict.fromkeys((*built.mounts, *known, BASE_REPOSITORY)))
        outcome = registry.push_blob(repository, layer_blob(layer), sources, report, stage)
        outcomes[layer.digest] = outcome
        sent += layer.size if outcome == "sent" else 0
        report(Progress(stage, layer.size, layer.size, outcome))
        if store and repository not in known:
            store.note_place(registry.registry, layer.digest, repository)
    config = Blob(built.config_digest, len(built.config), built.config)
    outcomes[built.config_digest] = registry.push_blob(repository, config)
    sent += config.size if outcomes[built.config_digest] == "sent" else 0
    registry.put_manifest(repository, built.digest, built.manifest)
    registry.put_manifest(repository, tag, built.manifest)
    return Pushed(repository, tag, outcomes, sent)


def save_oci_layout(built: BuiltImage, folder: Path) -> None:
    """Save an image as an OCI image layout, which skopeo, podman and others read.

    Raises:
        StoreError: the folder cannot be written.
    """
    blobs = folder / "blobs" / "sha256"
    index = canonical(
        {
            "schemaVersion": 2,
            "manifests": [{"mediaType": OCI_MANIFEST, "digest": built.digest, "size": len(built.manifest)}],
        }
    )
    try:
        blobs.mkdir(parents=True, exist_ok=True)
        for layer in built.layers:
            target = blobs / layer.digest.removeprefix("sha256:")
            if not target.exists():
                shutil.copyfile(layer.path, target)
        (blobs / built.config_digest.removeprefix("sha256:")).write_bytes(built.config)
        (blobs / built.digest.removeprefix("sha256:")).write_bytes(built.manifest)
        (folder / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}), encoding="utf-8")
        (folder / "index.json").write_bytes(index)
    except OSError as error:
        raise StoreError(f"image folder {folder}", f"cannot be written ({error.strerror})") from error
