"""Temperatures, and why the hardware runs slower than it could."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from wherry.profile import Sensor
from wherry_agent.host.files import number, word
from wherry_agent.host.programs import Program

_WARMEST, _COLDEST = 200.0, -60.0
# On Jetson boards this zone always says 50 or 100 degrees: nothing measures there.
_NO_SENSOR = "PMIC-Die"
# The firmware's bits of now; the same sixteen higher say that it happened since boot.
_PI_BITS = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}
_SINCE_BOOT = 16
# Raspberry Pi 4 calls its bus soc, Raspberry Pi 5 soc@107c000000.
_PI_FILE = "sys/devices/platform/soc*/soc*:firmware/get_throttled"
# Cooling by slowing down; fans, and alerts that slow nothing, are other types.
_SLOWING = re.compile(r"cpufreq|devfreq|throttle|-balanced$|^Processor$")


def temperatures(root: Path, sensors: Sequence[Sensor] = ()) -> dict[str, float]:
    """Degrees Celsius by sensor: the kernel's thermal zones and the profile's own."""
    return dict(_temperatures(root, sensors))


def _temperatures(root: Path, sensors: Sequence[Sensor]) -> Iterator[tuple[str, float]]:
    # Zones first: where both know a name, the profile's sensor wins.
    for zone in sorted(root.glob("sys/class/thermal/thermal_zone*")):
        name = word(zone / "type") or zone.name
        if name != _NO_SENSOR:
            yield from _celsius(name, zone / "temp", 0.001)
    for sensor in sensors:
        if sensor.unit == "celsius":
            for path in sorted(root.glob(sensor.path.lstrip("/")))[:1]:
                yield from _celsius(sensor.name, path, sensor.scale)


def _celsius(name: str, path: Path, scale: float) -> Iterator[tuple[str, float]]:
    # Zones of switched-off units answer with an error or with nonsense such as -256 000.
    value = number(path)
    if value is not None and _COLDEST < value * scale < _WARMEST:
        yield name[:64], round(value * scale, 1)


@dataclass(frozen=True, slots=True)
class Slowdown:
    """Why the hardware is slow now, and what happened since boot; None where nothing can tell."""

    now: list[str] | None
    since_boot: list[str]


class Throttling:
    """What holds the hardware back. Remembers the counts of over-current events from one look to the next.

    Args:
        root: where /sys is looked for.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._vcgencmd = Program(root, "vcgencmd", ["get_throttled"], every=60)
        self._events: int | None = None

    def look(self) -> Slowdown:
        """How it is at this moment."""
        bits = self._pi_bits()
        if bits is not None:
            return Slowdown(_words(bits), _words(bits >> _SINCE_BOOT))
        heat, current = self._cooling(), self._over_current()
        if heat is None and current is None:
            return Slowdown(None, [])
        happened = ["over-current"] if self._events else []
        return Slowdown([*(heat or []), *(current or [])], happened)

    def _pi_bits(self) -> int | None:
        for path in sorted(self._root.glob(_PI_FILE)):
            return number(path, 16)
        if not word(self._root / "proc/device-tree/model").startswith("Raspberry Pi"):
            return None
        said = re.search(r"throttled=0x([0-9a-fA-F]+)", self._vcgencmd.text())
        return int(said[1], 16) if said else None

    def _cooling(self) -> list[str] | None:
        devices = [
            number(device / "cur_state") or 0
            for device in self._root.glob("sys/class/thermal/cooling_device*")
            if _SLOWING.search(word(device / "type"))
        ]
        if not devices:
            return None
        return ["temperature"] if any(devices) else []

    def _over_current(self) -> list[str] | None:
        # Jetson counts since boot how often its power monitors cut the clocks; that of now is the difference.
        counts = [number(path) or 0 for path in self._root.glob("sys/class/hwmon/hwmon*/oc*_event_cnt")]
        if not counts:
            return None
        before, self._events = self._events, sum(counts)
        return ["over-current"] if before is not None and self._events > before else []


def _words(bits: int) -> list[str]:
    return [words for bit, words in _PI_BITS.items() if bits >> bit & 1]
