"""Releases in the list, and what a release's page says around its images. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from wherry.api.releases import ReleaseImageView, ReleaseView
from wherry_server.dashboard import words
from wherry_server.dashboard.rollout_rows import devices, sentence
from wherry_server.services.preview import Preview

STAGE_TONES = {"prod": "good", "uat": "busy", "qa": "busy", "dev": "warn"}


@dataclass(frozen=True, slots=True)
class ReleaseRow:
    """A release in the list."""

    model: str
    version: str
    stage: str
    stage_tone: str
    published: str
    at: str
    profiles: list[str]
    download: str
    precision: str
    devices: str
    withdrawn: str


@dataclass(frozen=True, slots=True)
class MisfitRow:
    """Devices that cannot run a release, for one reason."""

    count: str
    reason: str
    devices: list[str]
    more: str
    fix: str


@dataclass(frozen=True, slots=True)
class PreviewRows:
    """What a rollout would do.

    Attributes:
        says: in a sentence.
        button: what the button that starts it is called; empty when it would reach no device.
    """

    says: str
    tone: str
    button: str
    profiles: list[tuple[str, str]]
    misfits: list[MisfitRow]
    notes: list[str]


def release_row(view: ReleaseView, serving: int, now: datetime) -> ReleaseRow:
    """A release in the list.

    Args:
        view: the release.
        serving: how many devices serve it now.
        now: the time, for ages.
    """
    images = newest_images(view.images)
    sizes = sorted(image.download_bytes for image in images if image.download_bytes)
    return ReleaseRow(
        model=view.model,
        version=view.version,
        stage=view.stage,
        stage_tone=STAGE_TONES.get(view.stage, "quiet"),
        published=words.age(view.published, now),
        at=f"{view.published:%Y-%m-%d %H:%M:%S} UTC",
        profiles=[image.profile for image in images],
        download=_span(sizes),
        precision=", ".join(sorted({image.precision for image in images})),
        devices=words.number(serving),
        withdrawn=withdrawn_words(images),
    )


def newest_images(images: Sequence[ReleaseImageView]) -> list[ReleaseImageView]:
    """One image a profile, the one with the highest counter: a release may be signed again to go back to it."""
    newest: dict[str, ReleaseImageView] = {}
    for image in images:
        if image.profile not in newest or newest[image.profile].counter < image.counter:
            newest[image.profile] = image
    return [newest[profile] for profile in sorted(newest)]


def withdrawn_words(images: Sequence[ReleaseImageView]) -> str:
    """Whether the owner took a release back: `withdrawn`, `withdrawn for 1 of 3 profiles`, or nothing."""
    taken = sum(image.withdrawn for image in images)
    if not taken:
        return ""
    return "withdrawn" if taken == len(images) else f"withdrawn for {taken} of {len(images)} profiles"


def _span(sizes: Sequence[int]) -> str:
    if not sizes:
        return words.NOTHING
    least, most = words.size(sizes[0]), words.size(sizes[-1])
    return least if least == most else f"{least} to {most}"


def superseded_by(view: ReleaseView, others: Sequence[ReleaseView]) -> list[str]:
    """Versions of the model that were signed later for the same profiles.

    A device that has had one of them refuses this release until it is signed again: nobody who holds the server can
    bring an old flaw back.
    """
    mine = {image.profile: image.counter for image in newest_images(view.images)}
    return [
        other.version
        for other in others
        if other.version != view.version
        and any(image.counter > mine.get(image.profile, image.counter) for image in other.images)
    ]


def preview_rows(preview: Preview) -> PreviewRows:
    """A preview in words."""
    left_out = preview.devices - preview.fit
    if not preview.fit:
        says = (
            f"It fits none of the {devices(preview.devices)}." if preview.devices > 1 else "It does not fit the device."
        )
        tone = "bad"
    elif left_out:
        says, tone = f"{words.number(preview.fit)} of {devices(preview.devices)} will get it.", "warn"
    else:
        says, tone = f"{devices(preview.fit)} will get it.", "good"
    return PreviewRows(
        says=says,
        tone=tone,
        button=f"Start on {devices(preview.fit)}" if preview.fit else "",
        profiles=[(profile, words.number(count)) for profile, count in preview.profiles.items()],
        misfits=[
            MisfitRow(
                count=f"{devices(one.count)} {'does' if one.count == 1 else 'do'} not fit",
                reason=sentence(f"it {one.reason}" if one.reason.startswith(("has ", "needs ")) else one.reason),
                devices=list(one.devices),
                more=f"and {words.number(one.count - len(one.devices))} more" if one.count > len(one.devices) else "",
                fix=sentence(one.fix),
            )
            for one in preview.misfits
        ],
        notes=list(preview.notes),
    )
