"""The base of an image: Debian packages unpacked once and kept by digest, or an image of a registry.

The registry comes first: packages change from day to day, and every machine that packages for one registry must get
the same bytes. A base that was built here is put there for the others.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from wherry.errors import InputError, RegistryError
from wherry.identity import sha256_digest
from wherry.profile import BaseImage
from wherry_cli.packaging.debian import ARCHITECTURES, RECIPE, debootstrap, finish_base
from wherry_cli.packaging.layers import EPOCH_TEXT, built_once
from wherry_cli.packaging.oci import DOCKER_INDEX, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, Blob, Manifest
from wherry_cli.packaging.package_file import LayerKind
from wherry_cli.packaging.progress import Report, silent
from wherry_cli.packaging.reference import Reference, parse_reference
from wherry_cli.packaging.registry import RegistryClient
from wherry_cli.packaging.store import GZIP_LAYER, PLAIN_LAYER, Layer, Store

BASE_REPOSITORY = "wherry/base"
_DOCKER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"
_LAYER_TYPES = (GZIP_LAYER, PLAIN_LAYER, _DOCKER_GZIP)


@dataclass(frozen=True, slots=True)
class Base:
    """What images stand on.

    Attributes:
        layers: from the bottom up.
        config: the base image's configuration; empty for one from Debian packages.
        source: registry and repository that hold the layers' blobs; empty when only the store does.
    """

    layers: tuple[Layer, ...]
    config: dict[str, Any] = field(default_factory=dict)
    source: Reference | None = None

    @property
    def labels(self) -> dict[str, str]:
        """The base image's own labels."""
        return dict((self.config.get("config") or {}).get("Labels") or {})


def base_key(base: BaseImage, platform: str) -> str:
    """The tag under which a Debian base is kept: suite, architecture, recipe."""
    return f"debian-{base.suite}-{ARCHITECTURES[platform]}-py{base.python}-r{RECIPE}"


def canonical(document: Any) -> bytes:
    """JSON that is the same for the same content."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def describe(layer: Layer) -> dict[str, Any]:
    """A layer's descriptor in a manifest; the annotation says what is in it."""
    return {
        "mediaType": layer.media_type,
        "digest": layer.digest,
        "size": layer.size,
        "annotations": {"io.wherry.layer": layer.kind, "io.wherry.unpacked": str(layer.unpacked)},
    }


def debian_base(
    base: BaseImage, platform: str, store: Store, registry: RegistryClient | None, report: Report = silent
) -> Base:
    """The base layer from Debian packages: of the registry, else of the store, else built now.

    Raises:
        BuildError: mmdebstrap is missing or failed.
        RegistryError: the registry failed.
        InputError: Debian has no packages for this platform here.
        StoreError: the store cannot be written.
    """
    if platform not in ARCHITECTURES:
        raise InputError(f"platform {platform}", "has no Debian base", f"Use one of: {', '.join(ARCHITECTURES)}")
    key = base_key(base, platform)
    if registry is not None:
        place = Reference(registry.registry, BASE_REPOSITORY, key)
        found = registry.manifest(BASE_REPOSITORY, key)
        if found is not None:
            return pulled_base(registry, place, found, store, report)
        layer = _debian_layer(base, platform, key, store, report)
        _publish(registry, key, layer, platform, report)
        return Base((layer,), source=place)
    return Base((_debian_layer(base, platform, key, store, report),))


def _debian_layer(base: BaseImage, platform: str, key: str, store: Store, report: Report) -> Layer:
    stage = f"base layer, Debian {base.suite} for {platform}"

    def build(folder: Path) -> Layer:
        archive = folder / "packages.tar"
        debootstrap(base.suite, platform, archive)
        with archive.open("rb") as source:
            return store.add_tar("base", lambda target: finish_base(source, target, base.python), compress=True)

    return built_once(store, "base", key, build, report, stage, "unpacking Debian packages")


def _publish(registry: RegistryClient, key: str, layer: Layer, platform: str, report: Report) -> None:
    system, architecture, *variant = platform.split("/")
    config = canonical(
        {
            "architecture": architecture,
            "os": system,
            **({"variant": variant[0]} if variant else {}),
            "created": EPOCH_TEXT,
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id]},
        }
    )
    digest = sha256_digest(config)
    manifest = canonical(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": digest, "size": len(config)},
            "layers": [describe(layer)],
        }
    )
    registry.push_blob(BASE_REPOSITORY, layer_blob(layer), report=report, stage=f"base layer to {registry.registry}")
    registry.push_blob(BASE_REPOSITORY, Blob(digest, len(config), config))
    registry.put_manifest(BASE_REPOSITORY, key, manifest)


def layer_blob(layer: Layer) -> Blob:
    """A layer in the store as something to send."""
    return Blob(layer.digest, layer.size, path=Path(layer.path))


def pulled_base(
    registry: RegistryClient, place: Reference, found: Manifest, store: Store, report: Report = silent
) -> Base:
    """The layers and configuration of an image in a registry; the blobs are brought into the store.

    Raises:
        RegistryError: the registry failed, or the image is not one that engines take.
        StoreError: the store cannot be written.
    """
    document = found.json()
    try:
        config = json.loads(registry.read_blob(place.repository, document["config"]["digest"]))
        diff_ids = config["rootfs"]["diff_ids"]
        layers = []
        for item, diff_id in zip(document["layers"], diff_ids, strict=True):
            layers.append(_pulled_layer(registry, place, item, diff_id, store, report))
    except (KeyError, TypeError, ValueError) as error:
        raise RegistryError(f"image {place}", f"has a manifest that cannot be read ({error})") from error
    return Base(tuple(layers), config, place)


def _pulled_layer(
    registry: RegistryClient, place: Reference, item: dict[str, Any], diff_id: str, store: Store, report: Report
) -> Layer:
    if item["mediaType"] not in _LAYER_TYPES:
        raise RegistryError(
            f"image {place}",
            f"has a layer of type {item['mediaType']}",
            "Push the image again with gzip layers: Docker 20.10 reads no other",
        )
    stage = f"base layer from {place.name}"
    path = registry.pull_blob(place.repository, item["digest"], store, report, stage)
    notes = item.get("annotations") or {}
    unpacked = store.unpacked_size(item["digest"], diff_id, compressed=item["mediaType"] != PLAIN_LAYER)
    kind = notes.get("io.wherry.layer", "base")
    media_type = GZIP_LAYER if item["mediaType"] == _DOCKER_GZIP else item["mediaType"]
    return Layer(
        kind if kind in get_args(LayerKind) else "other",
        media_type,
        item["digest"],
        diff_id,
        int(item["size"]),
        unpacked,
        str(path),
    )


def registry_image(
    reference: Reference, platform: str, registry: RegistryClient, store: Store, report: Report = silent
) -> Base:
    """An image of a registry, for a platform: of an index the fitting entry.

    Raises:
        RegistryError: it is not there, has nothing for the platform, or the registry failed.
        StoreError: the store cannot be written.
    """
    found = registry.manifest(reference.repository, reference.version)
    if found is None:
        raise RegistryError(f"image {reference}", "is not in the registry", "Push it there, or correct the reference")
    if found.media_type in (OCI_INDEX, DOCKER_INDEX):
        digest = _entry_for(found, platform, reference)
        inner = registry.manifest(reference.repository, digest)
        if inner is None:
            raise RegistryError(f"image {reference}", f"its index names {digest}, which the registry lacks")
        found = inner
    image = pulled_base(registry, reference, found, store, report)
    made_for = "/".join(
        part for part in (image.config.get("os"), image.config.get("architecture"), image.config.get("variant")) if part
    )
    if made_for.removesuffix("/v8") != platform:
        raise RegistryError(f"image {reference}", f"is for {made_for}, needed is {platform}", "Push one for it")
    return image


def _entry_for(index: Manifest, platform: str, reference: Reference) -> str:
    offered = []
    for item in index.json().get("manifests", []):
        has = item.get("platform", {})
        name = "/".join(part for part in (has.get("os"), has.get("architecture"), has.get("variant")) if part)
        if name.removesuffix("/v8") == platform:
            return str(item["digest"])
        offered.append(name)
    raise RegistryError(f"image {reference}", f"is not for {platform} but {', '.join(offered) or 'nothing'}")


def base_for(
    base: BaseImage, platform: str, store: Store, registry: RegistryClient | None, report: Report = silent
) -> Base:
    """The base that a profile asks for.

    Raises:
        InputError: a registry base without a registry to find it in.
        BuildError, RegistryError, StoreError: as `debian_base` and `registry_image`.
    """
    if base.kind == "debian":
        return debian_base(base, platform, store, registry, report)
    reference = parse_reference(base.reference or "", registry.registry if registry else None)
    if registry is not None and registry.registry == reference.registry:
        return _made_base(reference, platform, registry, store, report)
    with RegistryClient.for_user(reference.registry) as other:
        found = _made_base(reference, platform, other, store, report)
    return Base(found.layers, found.config)  # another registry's repositories cannot be mounted


def _made_base(reference: Reference, platform: str, registry: RegistryClient, store: Store, report: Report) -> Base:
    if registry.manifest(reference.repository, reference.version) is None:
        raise RegistryError(
            f"base image {reference}",
            "is not in the registry",
            "Make it with Dockerfile.jetson and push it there, or give --base debian to serve on the CPU",
        )
    return registry_image(reference, platform, registry, store, report)
