"""Power rails, and what the GPU does. No NVML: Jetson boards have none, or one that answers little."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wherry.profile import Sensor
from wherry_agent.host.files import meminfo_kb, number, text, word
from wherry_agent.host.programs import Program

_CHANNELS = (1, 2, 3)
# Per mille. The name of the first moved with kernels, its file did not; the GPU of r34 and newer is a devfreq device.
_GPU_LOAD = (
    "sys/devices/gpu.0/load",
    "sys/devices/platform/gpu.0/load",
    "sys/class/devfreq/*.g[apv]1[01]b/device/load",
    "sys/class/devfreq/*.gpu/device/load",
)
_NVMAP_CLIENTS = "sys/kernel/debug/nvmap/iovmm/clients"
_RAIL = re.compile(r"\b(?P<name>(?:VDD|VIN|POM|VDDQ|CPU|GPU|SOC|CV|VDDRQ|SYS5V)\w*) (?P<now>\d+)(?:mW)?/\d+(?:mW)?")
_LOAD = re.compile(r"\bGR3D_FREQ (\d+)%")


@dataclass(frozen=True, slots=True)
class Power:
    """Watts by rail, and the GPU's load and memory where the kernel tells."""

    watts: dict[str, float] = field(default_factory=dict)
    gpu_percent: float | None = None
    gpu_memory_bytes: int | None = None


class PowerReader:
    """Reads rails and GPU.

    Args:
        root: where /sys and /proc are looked for.
        sensors: of the device profile; those in watt and percent count here.
    """

    def __init__(self, root: Path, sensors: Sequence[Sensor] = ()) -> None:
        self._root = root
        self._sensors = tuple(sensors)
        self._tegrastats = Program(root, "tegrastats", ["--interval", "200"], every=60, one_line=True)

    def look(self) -> Power:
        """How it is at this moment."""
        watts = dict(self._rails())
        load = self._gpu_load()
        if (not watts or load is None) and "tegra" in text(self._root / "proc/device-tree/compatible"):
            line = next(iter(self._tegrastats.text().splitlines()), "")
            said_watts, said_load = read_tegrastats(line)
            watts, load = watts or said_watts, said_load if load is None else load
        return Power(watts, load, self._gpu_memory())

    def _rails(self) -> Iterator[tuple[str, float]]:
        for monitor in sorted(self._root.glob("sys/class/hwmon/hwmon*")):
            name = word(monitor / "name")
            if name == "ina3221":
                yield from _ina3221(monitor)
            elif name.startswith("ina2"):
                yield from _watts(word(monitor / "label") or name, number(monitor / "power1_input"), 1e-6)
        # JetPack 4 has a driver of its own, under iio.
        for monitor in sorted(self._root.glob("sys/bus/i2c/drivers/ina3221x/*/iio:device*")):
            for channel in (0, 1, 2):
                power = number(monitor / f"in_power{channel}_input")
                yield from _watts(word(monitor / f"rail_name_{channel}"), power, 1e-3)
        for sensor in self._sensors:
            if sensor.unit == "watt":
                for path in sorted(self._root.glob(sensor.path.lstrip("/")))[:1]:
                    yield from _watts(sensor.name, number(path), sensor.scale)

    def _gpu_load(self) -> float | None:
        files = [(sensor.path.lstrip("/"), sensor.scale) for sensor in self._sensors if sensor.unit == "percent"]
        for pattern, scale in [*files, *((pattern, 0.1) for pattern in _GPU_LOAD)]:
            for path in sorted(self._root.glob(pattern)):
                value = number(path)
                if value is not None:
                    return round(min(100.0, value * scale), 1)
        return None

    def _gpu_memory(self) -> int | None:
        # Jetsons have one memory for CPU and GPU: this is the part of it that the GPU's buffers take.
        used = meminfo_kb(self._root, "NvMapMemUsed")
        if used is None:
            total = re.search(r"^total\s+(\d+)K", text(self._root / _NVMAP_CLIENTS), re.MULTILINE)
            used = int(total[1]) if total else None
        return None if used is None else used * 1024


def _ina3221(monitor: Path) -> Iterator[tuple[str, float]]:
    for channel in _CHANNELS:
        millivolts, milliamperes = number(monitor / f"in{channel}_input"), number(monitor / f"curr{channel}_input")
        if millivolts is not None and milliamperes is not None:
            yield from _watts(word(monitor / f"in{channel}_label"), millivolts * milliamperes, 1e-6)


def _watts(rail: str, value: int | None, scale: float) -> Iterator[tuple[str, float]]:
    # NC is NVIDIA's name of a channel that measures nothing; an idle rail reads a little below zero.
    if rail not in ("", "NC") and value is not None:
        yield rail[:64], round(max(0.0, value * scale), 3)


def read_tegrastats(line: str) -> tuple[dict[str, float], float | None]:
    """Watts by rail and the GPU's load in percent, of one line that NVIDIA's tegrastats prints."""
    watts = {found["name"]: int(found["now"]) / 1000 for found in _RAIL.finditer(line)}
    load = _LOAD.search(line)
    return watts, float(load[1]) if load else None
