"""May a release be tried on this device? Decided from signed metadata and measured room, before a byte is fetched."""

from __future__ import annotations

from collections.abc import Mapping

from wherry.errors import AdmissionError, FitError, Rejected, Revoked, WherryError
from wherry.profile import DeviceProfile, HostFacts, misfits
from wherry_agent.assignment import Marks, TrustedImage
from wherry_agent.entry import Rejection, withdrawn
from wherry_agent.ports import Room

_MB = 1_000_000


def admit(
    image: TrustedImage,
    profile: DeviceProfile | None,
    facts: HostFacts | None,
    room: Room,
    rejected: Mapping[str, Rejection],
    marks: Marks,
    watermark_bytes: int,
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
    """
    name = f"release {image.image.label()}"
    if withdrawn(image, marks):
        return Revoked(name, "the owner withdrew this image")
    if image.digest in rejected:
        return Rejected(name, f"failed here before: {rejected[image.digest].problem.reason}")
    reasons = misfits(image.image, profile, facts) if profile else []
    if reasons:
        return FitError(name, "; ".join(reasons))
    return _room(name, image, room, watermark_bytes)


def _room(name: str, image: TrustedImage, room: Room, watermark_bytes: int) -> WherryError | None:
    limit = image.image.run.memory_mb
    if limit > room.memory_total_mb:
        return AdmissionError(name, f"its memory limit is {limit} MB, this device has {room.memory_total_mb} MB")
    if room.image_present:
        return None
    need = image.image.unpacked_bytes + image.image.download_bytes
    if need + watermark_bytes <= room.disk_free_bytes:
        return None
    return AdmissionError(
        name,
        f"needs {_mb(need)} of disk ({_mb(image.image.download_bytes)} download, {_mb(image.image.unpacked_bytes)} "
        f"unpacked) and {_mb(watermark_bytes)} must stay free, but {_mb(room.disk_free_bytes)} are free",
        "Free disk on the device; it tries again by itself",
    )


def _mb(number: int) -> str:
    return f"{number / _MB:.1f} MB" if number < 100 * _MB else f"{number / _MB:.0f} MB"
