"""By which way a slot's callers reach its image. Pure: every choice comes with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wherry.release import HttpGate, ReadyGate, ReleaseImage, TcpGate
from wherry_agent.observed import Way

Setting = Literal["auto", "kernel", "haproxy"]


@dataclass(frozen=True, slots=True)
class Choice:
    """A way and why; `poor` when a request may be lost by it that the other way would not lose."""

    way: Way
    why: str
    poor: bool = False


def drains(image: ReleaseImage) -> bool:
    """Whether, told to end, it answers what is under way and lets kept connections end in peace."""
    return image.runtime != "custom" if image.run.drains is None else image.run.drains


def speaks_http(image: ReleaseImage) -> bool:
    """Whether a proxy of HTTP may stand before it: its signed gates tell."""
    if image.runtime != "custom":
        return True
    kinds = {type(gate) for gate in image.gates}
    return bool(kinds & {HttpGate, ReadyGate}) and TcpGate not in kinds


def choose(image: ReleaseImage, setting: Setting, lacks_haproxy: str) -> Choice:
    """The way for an image.

    Args:
        image: what is to answer.
        setting: the device's.
        lacks_haproxy: why haproxy cannot be used; empty when it can.
    """
    label = image.label()
    if setting == "kernel":
        return Choice("kernel", "the setting `route` says so", poor=not drains(image))
    if setting == "auto" and drains(image):
        return Choice("kernel", f"{label} drains when it is told to end")
    if not speaks_http(image):
        return Choice("kernel", f"{label} has no gate that shows that it speaks HTTP", poor=not drains(image))
    if lacks_haproxy:
        return Choice("kernel", f"haproxy {lacks_haproxy}", poor=not drains(image))
    why = "the setting `route` says so" if setting == "haproxy" else f"{label} cannot drain"
    return Choice("haproxy", why)
