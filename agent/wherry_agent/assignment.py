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
    """What this device is to run: slot name to image. A slot that is absent is to be emptied.

    Attributes:
        together: groups of slots that take their images together or not at all; no slot is in two of them.
    """

    device: str
    sequence: int
    expires: datetime
    slots: Mapping[str, TrustedImage]
    together: tuple[frozenset[str], ...] = ()


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


def model_key(image: TrustedImage) -> str:
    """Under what the counters of a model are marked."""
    return f"{image.image.model}/{image.image.profile}"


def slot_key(slot: str, image: TrustedImage) -> str:
    """Under what a slot's own counter of a model is marked."""
    return f"{slot}:{model_key(image)}"


def mark_above(slot: str, image: TrustedImage, counters: Mapping[str, int]) -> int:
    """The counter that a slot has had, if an image would take it back below that; else 0.

    A slot that has a mark of its own may keep its release while another slot moves ahead.
    """
    mark = counters.get(slot_key(slot, image), counters.get(model_key(image), 0))
    return mark if image.image.counter < mark else 0
