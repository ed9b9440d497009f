"""`--to`: which devices, as an operator writes it. Pure."""

from __future__ import annotations

from pydantic import ValidationError

from wherry.api.devices import DeviceView
from wherry.api.rollouts import Selector
from wherry.errors import InputError
from wherry_cli.words import labels_text, parse_pairs

TO_HELP = (
    "Which devices: all, label=KEY=VALUE, profile=NAME or device=ID. Repeat it to narrow the choice; "
    "several profile= or several device= are alternatives."
)
_FIX = "Write --to all, --to label=KEY=VALUE, --to profile=NAME or --to device=ID"


def parse_selector(texts: list[str]) -> Selector:
    """Read the values of `--to`.

    Raises:
        InputError: none, one of an unknown form, or `all` beside others.
    """
    if not texts:
        raise InputError("--to", "is missing, so no device is selected", _FIX)
    if "all" in texts:
        if len(texts) > 1:
            raise InputError("--to all", "stands beside other conditions", "Give either all or the conditions")
        return Selector(everything=True)
    parts: dict[str, list[str]] = {"label": [], "profile": [], "device": []}
    for text in texts:
        kind, sign, value = text.partition("=")
        if kind not in parts or not sign or not value:
            raise InputError(f"--to {text}", "names no devices", _FIX)
        parts[kind].append(value)
    labels = parse_pairs(parts["label"], "--to label")
    try:
        return Selector(ids=parts["device"], profiles=parts["profile"], labels=labels)
    except ValidationError as error:
        value = error.errors()[0]["input"]
        raise InputError(f"--to {value}", "is not a usable name", _FIX) from error


def selector_text(selector: Selector) -> str:
    """The selection as people say it."""
    if selector.everything:
        return "all devices"
    parts = []
    if selector.ids:
        parts.append("device " + " or ".join(selector.ids))
    if selector.profiles:
        parts.append("profile " + " or ".join(selector.profiles))
    if selector.labels:
        parts.append("label " + labels_text(selector.labels))
    return ", ".join(parts) or "no device"


def selects(selector: Selector, device: DeviceView) -> bool:
    """Whether the server would choose this device; it has the last word."""
    if device.revoked or (selector.ids and device.id not in selector.ids):
        return False
    if selector.profiles and device.profile not in selector.profiles:
        return False
    return all(device.labels.get(name) == value for name, value in selector.labels.items())


def uncovered(devices: list[DeviceView], profiles: list[str]) -> list[str]:
    """Which chosen devices would get no image, as lines; those of the profiles in hand are left out."""
    found: dict[str, list[str]] = {}
    for device in devices:
        if device.profile not in profiles:
            found.setdefault(device.profile, []).append(device.id)
    return [
        f"{len(names)} of profile {profile} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
        for profile, names in sorted(found.items())
    ]
