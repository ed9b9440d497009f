"""Which devices a rollout is for, and whether each of them can run the release; with reasons in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from wherry.api.rollouts import Selector
from wherry.errors import FitError
from wherry.messages import Problem
from wherry.profile import DeviceProfile, misfits
from wherry.release import ReleaseImage


@dataclass(frozen=True, slots=True)
class Candidate:
    """A device as a selector sees it."""

    id: str
    profile: str
    labels: Mapping[str, str]


def is_empty(selector: Selector) -> bool:
    """Whether a selector has no condition at all: it selects nothing."""
    return not (selector.everything or selector.ids or selector.profiles or selector.labels)


def selects(selector: Selector, device: Candidate) -> bool:
    """Whether all conditions that are given hold for a device."""
    if is_empty(selector):
        return False
    return all(
        (
            not selector.ids or device.id in selector.ids,
            not selector.profiles or device.profile in selector.profiles,
            all(device.labels.get(name) == value for name, value in selector.labels.items()),
        )
    )


def describe(selector: Selector) -> str:
    """A selector in words, for people."""
    parts = []
    if selector.ids:
        parts.append(" or ".join(selector.ids[:5]) + (" …" if len(selector.ids) > 5 else ""))
    if selector.profiles:
        parts.append("profile " + " or ".join(selector.profiles))
    parts.extend(f"{name}={value}" for name, value in sorted(selector.labels.items()))
    return ", ".join(parts) or ("all devices" if selector.everything else "nothing")


def misfit(
    device: Candidate, release: str, images: Mapping[str, ReleaseImage], profiles: Mapping[str, DeviceProfile]
) -> Problem | None:
    """Why a device cannot run a release, or None when it can.

    Args:
        device: the device.
        release: the release's name, for the message.
        images: the release's images by profile.
        profiles: the device profiles that the server knows.
    """
    image = images.get(device.profile)
    if image is None:
        made = ", ".join(sorted(images)) or "none"
        return _problem(f"{release} on {device.id}", f"has no image for profile {device.profile} (it has: {made})")
    profile = profiles.get(device.profile)
    reasons: Iterable[str] = misfits(image, profile) if profile else ()
    text = "; ".join(reasons)
    return _problem(f"{release} on {device.id}", text) if text else None


def _problem(thing: str, reason: str) -> Problem:
    return Problem.model_validate(FitError(thing, reason).as_dict())
