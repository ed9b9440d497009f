"""The verified desired state, and the high-water marks that guard it. Pure values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from wherry.messages import ReleaseRef
from wherry.release import ReleaseImage

EPOCH = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True)
class TrustedImage:
    """An image that the owner signed, as found in verified targets metadata.

    Attributes:
        path: its TUF target path.
        digest: digest of the OCI image manifest.
        manifest_bytes: length of the manifest.
        image: the signed custom field.
    """

    path: str
    digest: str
    manifest_bytes: int
    image: ReleaseImage

    @property
    def ref(self) -> ReleaseRef:
        """The release's name as messages carry it."""
        image = self.image
        return ReleaseRef(model=image.model, version=image.version, counter=image.counter, digest=self.digest)

    @property
    def pull_reference(self) -> str:
        """What the engine pulls: repository@digest."""
        return f"{self.image.repository}@{self.digest}"


@dataclass(frozen=True, slots=True)
class Assignment:
    """What this device is to run: slot name to image. A slot that is absent is to be emptied."""

    device: str
    sequence: int
    expires: datetime
    slots: Mapping[str, TrustedImage]


@dataclass(frozen=True, slots=True)
class Marks:
    """High-water marks. They live in the journal and never fall, whatever happens to the files in tuf/.

    Attributes:
        root, timestamp, snapshot, targets: metadata versions seen.
        sequence: of the newest assignment accepted.
        counters: "model/profile" to the highest counter accepted in an assignment, and "slot:model/profile" to
            the same for one slot that is in use. Keys are text and opaque to everything but `trust`.
        min_counters: "model/profile" to the highest signed min_counter seen.
        revoked: manifest digests the owner withdrew.
        floor: no time before this is believed.
        keys: role to the ids of the keys that signed under its mark. When the owner replaced all of them, the mark
            is dropped: so a fleet recovers from a stolen key that was used to sign absurdly high versions.
    """

    root: int = 0
    timestamp: int = 0
    snapshot: int = 0
    targets: int = 0
    sequence: int = 0
    counters: Mapping[str, int] = field(default_factory=dict)
    min_counters: Mapping[str, int] = field(default_factory=dict)
    revoked: frozenset[str] = frozenset()
    floor: datetime = EPOCH
    keys: Mapping[str, str] = field(default_factory=dict)
