"""May a release be tried on this device? Decided from signed metadata and measured room, before a byte is fetched."""

from __future__ import annotations

from collections.abc import Mapping

from wherry import __version__
from wherry.errors import AdmissionError, FitError, Rejected, Revoked, WherryError
from wherry.profile import DeviceProfile, HostFacts, misfits
from wherry.release import Signature, TensorSpec, UnknownGate
from wherry_agent.assignment import Marks, TrustedImage
from wherry_agent.entry import Rejection, withdrawn
from wherry_agent.observed import Room

_MB = 1_000_000
_BYTES_PER_FILE = 16_384
"""Fewer than in any image seen: Debian's hold 19 to 36 kB a file."""
_SPARE_FILES = 1_000


def admit(
    image: TrustedImage,
    profile: DeviceProfile | None,
    facts: HostFacts | None,
    room: Room,
    rejected: Mapping[str, Rejection],
    marks: Marks,
    watermark_bytes: int,
    running: TrustedImage | None = None,
) -> WherryError | None:
    """None when the release may be tried, else why not.

    Args:
        image: the release image, trusted already.
        profile: this device's profile; None skips the comparison with the hardware (profile not shipped).
        facts: what was read of the machine.
        room: free disk and memory.
        rejected: digests that failed here.
        marks: they name what the owner withdrew.
        watermark_bytes: free disk that must remain.
        running: what callers of the slot are used to.
    """
    name = f"release {image.image.label()}"
    if withdrawn(image, marks):
        return Revoked(name, "the owner withdrew this image")
    if image.digest in rejected:
        return Rejected(name, f"failed here before: {rejected[image.digest].problem.reason}")
    reasons = misfits(image.image, profile, facts) if profile else []
    if reasons:
        return FitError(name, "; ".join(reasons))
    return _unknown(name, image) or _breaks(name, image, running) or _room(name, image, room, watermark_bytes)


def _unknown(name: str, image: TrustedImage) -> WherryError | None:
    """A gate that cannot be asked is never skipped."""
    kinds = [repr(gate.kind) for gate in image.image.gates if isinstance(gate, UnknownGate)]
    if not kinds:
        return None
    reason = f"asks for gates that this agent ({__version__}) does not know: {', '.join(kinds)}"
    return AdmissionError(name, reason, "Update the agent of this device")


def _breaks(name: str, image: TrustedImage, running: TrustedImage | None) -> WherryError | None:
    """Other inputs or outputs than callers are used to, unless the owner says that they know."""
    if running is None or image.image.breaking or running.image.model != image.image.model:
        return None
    old, new = running.image.signature, image.image.signature
    problems = differences(old, new) if old and new else []
    if not problems:
        return None
    reason = f"breaks callers of version {running.image.version}: {'; '.join(problems)}"
    return AdmissionError(name, reason, "Package it with --breaking when its callers are ready, or give it a new name")


def differences(old: Signature, new: Signature) -> list[str]:
    """What callers of one signature would not find in the other, in words.

    More outputs, and an input whose size becomes free, hurt nobody.
    """
    found = [
        f"input {spec.name!r} is new" for spec in new.inputs if spec.name not in {other.name for other in old.inputs}
    ]
    for side, before, after in (("input", old.inputs, new.inputs), ("output", old.outputs, new.outputs)):
        by_name = {spec.name: spec for spec in after}
        for spec in before:
            other = by_name.get(spec.name)
            if other is None:
                found.append(f"{side} {spec.name!r} is gone")
            elif not _alike(side, spec, other):
                found.append(f"{side} {spec.name!r} is {other.datatype}{other.shape}, was {spec.datatype}{spec.shape}")
    return found


def _alike(side: str, before: TensorSpec, after: TensorSpec) -> bool:
    if (before.datatype, len(before.shape)) != (after.datatype, len(after.shape)):
        return False
    return all(
        old == new or (side == "input" and new == -1) for old, new in zip(before.shape, after.shape, strict=True)
    )


def _room(name: str, image: TrustedImage, room: Room, watermark_bytes: int) -> WherryError | None:
    limit = image.image.run.memory_mb
    if limit > room.memory_total_mb:
        return AdmissionError(name, f"its memory limit is {limit} MB, this device has {room.memory_total_mb} MB")
    if room.image_present:
        return None
    need = image.image.unpacked_bytes + image.image.download_bytes
    if need + watermark_bytes <= room.disk_free_bytes:
        return _files(name, image, room)
    return AdmissionError(
        name,
        f"needs {_mb(need)} of disk ({_mb(image.image.download_bytes)} download, {_mb(image.image.unpacked_bytes)} "
        f"unpacked) and {_mb(watermark_bytes)} must stay free, but {_mb(room.disk_free_bytes)} are free",
        "Free disk on the device; it tries again by itself",
    )


def _files(name: str, image: TrustedImage, room: Room) -> WherryError | None:
    need = image.image.unpacked_bytes // _BYTES_PER_FILE
    if room.inodes_free is None or need + _SPARE_FILES <= room.inodes_free:
        return None
    return AdmissionError(
        name,
        f"needs about {need} inodes (files) and {_SPARE_FILES} must stay free, but {room.inodes_free} are free",
        "Remove what holds many small files on the device; it tries again by itself",
    )


def _mb(number: int) -> str:
    return f"{number / _MB:.1f} MB" if number < 100 * _MB else f"{number / _MB:.0f} MB"
