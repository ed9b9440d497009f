"""A packaged image on disk, made ready for each way to run it: a folder, an archive for the engine, a disk."""

from __future__ import annotations

import io
import json
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wherry.errors import StoreError
from wherry_cli.packaging.tools import run_tool

_MOST_BYTES = 8 << 30
_HEADER = 512
"""Counted for each file, so that there cannot be endless empty ones."""
_SLACK = 32 << 20
"""Room on the virtual machine's disk for the file system's own tables."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image in the OCI layout that `wherry package` writes without a registry.

    Attributes:
        config: its parsed configuration.
        layers: (what it holds, its blob), from the bottom up.
    """

    folder: Path
    config_blob: Path
    config: dict[str, Any]
    layers: tuple[tuple[str, Path], ...]

    @property
    def command(self) -> list[str]:
        """The program the image starts, with its arguments."""
        return [*self.config["config"]["Entrypoint"], *self.config["config"]["Cmd"]]

    @property
    def environment(self) -> dict[str, str]:
        """The environment it starts in."""
        return dict(item.partition("=")[::2] for item in self.config["config"]["Env"])

    @property
    def download_bytes(self) -> int:
        """Bytes that a device without any of its layers fetches."""
        return sum(blob.stat().st_size for _, blob in self.layers)

    @property
    def model_bytes(self) -> int:
        """Bytes that a device fetches for the next version of the model."""
        return self.layers[-1][1].stat().st_size


def read_image(folder: Path) -> Image:
    """Read an OCI layout with one image.

    Raises:
        StoreError: the folder does not hold one.
    """
    try:
        index = json.loads((folder / "index.json").read_bytes())
        manifest = json.loads(_blob(folder, index["manifests"][0]["digest"]).read_bytes())
        config_blob = _blob(folder, manifest["config"]["digest"])
        config = json.loads(config_blob.read_bytes())
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise StoreError(f"image folder {folder}", f"holds no image ({error})") from error
    kinds = [str(step.get("created_by", "")).partition("(")[2].rstrip(")") for step in config["history"]]
    blobs = [_blob(folder, layer["digest"]) for layer in manifest["layers"]]
    return Image(folder, config_blob, config, tuple(zip(kinds, blobs, strict=True)))


def _blob(folder: Path, digest: str) -> Path:
    return folder / "blobs" / "sha256" / digest.removeprefix("sha256:")


def _inside(member: tarfile.TarInfo, root: str) -> tarfile.TarInfo | None:
    """What may be unpacked, as root, of a layer that nobody vouches for: nothing outside the folder, no device.

    Programs stay executable. Links from the image's own root, which Debian has, are written as they are meant:
    relative, so that nothing follows them out of the folder.
    """
    if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
        return None
    if member.issym() and member.linkname.startswith("/"):
        top = Path(root).resolve()
        folder = (top / member.name.lstrip("/")).parent.resolve()  # /lib itself may be a link
        member = member.replace(linkname=os.path.relpath(f"{top}{member.linkname}", folder), deep=False)
    tarfile.data_filter(member, root)  # refuses; what it would return has lost its owner
    return tarfile.tar_filter(member, root)


def unpack(image: Image, target: Path, most: int = _MOST_BYTES) -> int:
    """Unpack all layers into a folder, as an engine would; the bytes of its files.

    Raises:
        StoreError: a layer cannot be unpacked, leads out of the folder, or all hold more than `most` bytes.
    """
    room = most

    def inside(member: tarfile.TarInfo, root: str) -> tarfile.TarInfo | None:
        nonlocal room
        room -= member.size + _HEADER
        if room < 0:
            raise StoreError(f"image folder {image.folder}", f"holds more than {most >> 20} MiB unpacked",
                             "Take a smaller model or base image")  # fmt: skip
        return _inside(member, root)

    try:
        target.mkdir(parents=True)
        target.chmod(0o755)  # the model server is not root, whatever umask this program was started with
        for _, blob in image.layers:
            with tarfile.open(blob) as archive:
                archive.extractall(target, filter=inside)  # noqa: S202  the filter judges every member
        return sum(path.stat().st_size for path in target.rglob("*") if path.is_file() and not path.is_symlink())
    except (OSError, tarfile.TarError) as error:
        raise StoreError(f"image folder {target}", f"cannot be unpacked ({error})") from error


def engine_archive(image: Image, tag: str, target: Path) -> None:
    """Write the image as an archive that `docker load` reads, also old engines.

    Raises:
        StoreError: it cannot be written.
    """
    names = [f"{blob.name}.tar" for _, blob in image.layers]
    document = [{"Config": f"{image.config_blob.name}.json", "RepoTags": [tag], "Layers": names}]
    data = json.dumps(document).encode()
    try:
        with tarfile.open(target, "w") as archive:
            archive.add(image.config_blob, f"{image.config_blob.name}.json")
            for name, (_, blob) in zip(names, image.layers, strict=True):
                archive.add(blob, name)
            about = tarfile.TarInfo("manifest.json")
            about.size = len(data)
            archive.addfile(about, io.BytesIO(data))
    except (OSError, tarfile.TarError) as error:
        raise StoreError(f"archive {target}", f"cannot be written ({error})") from error


def make_disk(root: Path, size: int, target: Path) -> None:
    """Write a folder as an ext4 disk, no larger than it must be.

    Raises:
        BuildError: mke2fs failed or is missing.
    """
    megabytes = (int(size * 1.1) + _SLACK) >> 20
    command = ["/sbin/mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d", str(root), str(target)]
    run_tool([*command, f"{megabytes}M"], "disk of the virtual machine", install="Install e2fsprogs")
