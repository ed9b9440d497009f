"""What an engine saves of an image, held against the image's signed configuration. Reads a stream, keeps nothing."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from typing import IO

from wherry_agent.ports import Cancel

_CONFIG_LIMIT = 1_048_576
_PIECE = 262_144


class NotAnArchive(Exception):
    """The stream broke off or is no archive; the text says how."""


def missing(stream: io.RawIOBase, config_digest: str, cancel: Cancel) -> list[str]:
    """What the archive lacks of an image: its configuration, or layers by the digest of their content.

    It does not matter how the archive is laid out: every file in it is hashed, and the configuration, which its own
    digest proves, names the layers that must be among them.

    Args:
        stream: the archive.
        config_digest: the image's, signed.
        cancel: asks to give way.

    Raises:
        NotAnArchive: it cannot be read.
        StepCancelled: asked to give way.
    """
    seen: set[str] = set()
    config: bytes | None = None
    try:
        with tarfile.open(fileobj=stream, mode="r|", bufsize=_PIECE) as archive:
            for member in archive:
                file = archive.extractfile(member) if member.isfile() else None
                if file is None:
                    continue
                digest, body = _digest(file, member.size <= _CONFIG_LIMIT, cancel)
                seen.add(digest)
                config = body if digest == config_digest else config
    except (tarfile.TarError, OSError, EOFError) as error:
        raise NotAnArchive(str(error)) from error
    if config is None:
        return ["the configuration"]
    layers = json.loads(config)["rootfs"]["diff_ids"]
    return [f"layer {layer[:19]}" for layer in dict.fromkeys(layers) if layer not in seen]


def _digest(file: IO[bytes], keep: bool, cancel: Cancel) -> tuple[str, bytes]:
    """Digest of a file, and its content if it is to be kept."""
    found, kept = hashlib.sha256(), bytearray()
    while piece := file.read(_PIECE):
        cancel.check()
        found.update(piece)
        if keep:
            kept += piece
    return f"sha256:{found.hexdigest()}", bytes(kept)
