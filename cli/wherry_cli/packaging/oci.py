"""What an OCI registry holds: manifests and blobs, as values."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wherry.errors import RegistryError
from wherry_cli.packaging.store import read_pieces

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"

OCI_CONFIG = "application/vnd.oci.image.config.v1+json"


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest as the registry has it, its digest computed here."""

    data: bytes
    media_type: str
    digest: str

    def json(self) -> dict[str, Any]:
        """The parsed document.

        Raises:
            RegistryError: not a JSON object.
        """
        try:
            document = json.loads(self.data)
        except ValueError as error:
            raise RegistryError(f"manifest {self.digest}", "is not JSON") from error
        if not isinstance(document, dict):
            raise RegistryError(f"manifest {self.digest}", "is not a JSON object")
        return document


@dataclass(frozen=True, slots=True)
class Blob:
    """A blob to send: bytes at hand or a file."""

    digest: str
    size: int
    data: bytes | None = None
    path: Path | None = None

    def pieces(self, offset: int = 0, limit: int | None = None) -> Iterator[bytes]:
        """The bytes from an offset."""
        if self.path is not None:
            return read_pieces(self.path, offset, limit)
        data = self.data or b""
        return iter([data[offset : len(data) if limit is None else offset + limit]])
