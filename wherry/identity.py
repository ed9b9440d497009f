"""Names of things, checked once at the edge: devices, slots, models, versions, digests."""

from __future__ import annotations

import hashlib
from typing import Annotated

from pydantic import StringConstraints

_NAME = r"^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$"

DeviceId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?$")]
"""A device's name and certificate CN: `[a-z0-9-]`, 1 to 64 characters."""

SlotName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$")]
"""A named place on a device where one model serves."""

ModelName = Annotated[str, StringConstraints(pattern=_NAME)]
"""A model's name; also a path component of its OCI repository."""

ModelVersion = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?$")]
"""A model's version as its owner writes it; ordering comes from the counter, never from this."""

ProfileName = Annotated[str, StringConstraints(pattern=_NAME)]
"""A hardware class, the file name in device_profiles/."""

Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
"""A content digest as OCI writes it."""


def sha256_digest(data: bytes) -> str:
    """The OCI digest (`sha256:<hex>`) of some bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()
