"""The device itself: what hardware it is, and how busy and warm it is. Reads files and psutil, decides nothing.

Every path hangs below a root folder, so that recordings of other boards can be read too.
"""

from __future__ import annotations

import contextlib
import json
import platform
import re
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from wherry.errors import StoreError
from wherry.messages import HostSample
from wherry.profile import HostFacts, Sensor

_TEGRA = re.compile(r"R(?P<major>\d+)\b[^,]*,\s*REVISION:\s*(?P<minor>[\d.]+)")
_SM_OF_CHIP = {"tegra210": "53", "tegra186": "62", "tegra194": "72", "tegra234": "87", "tegra264": "110"}
_WARMEST, _COLDEST = 200.0, -60.0
_ROOT = Path("/")


def read_facts(root: Path = _ROOT, architecture: str | None = None) -> HostFacts:
    """What decides which device profile this machine has.

    Args:
        root: where /proc, /etc and /usr are looked for.
        architecture: instead of the running kernel's.
    """
    l4t = _TEGRA.search(_text(root / "etc/nv_tegra_release"))
    compatible = _text(root / "proc/device-tree/compatible")
    return HostFacts(
        architecture=architecture or platform.machine(),
        memory_mb=_meminfo_kb(root, "MemTotal") // 1024,
        device_tree_model=_text(root / "proc/device-tree/model").strip("\0 \n") or None,
        l4t_release=f"{l4t['major']}.{l4t['minor']}" if l4t else None,
        cuda=_cuda(root),
        sm=next((sm for chip, sm in _SM_OF_CHIP.items() if chip in compatible), None),
    )


class Host:
    """The machine the agent runs on.

    Args:
        data: a folder on the filesystem that holds images and the agent's state.
        sensors: of the device profile; the kernel's thermal zones are read as well.
        root: where /proc and /sys are looked for.
    """

    def __init__(self, data: Path, sensors: Sequence[Sensor] = (), root: Path = _ROOT) -> None:
        self._data = data
        self._sensors = tuple(sensors)
        self._root = root
        self._process = psutil.Process()
        psutil.cpu_percent(interval=None)  # the first call only begins the measurement

    def boot_id(self) -> str:
        """Changes with every boot of the kernel."""
        return _text(self._root / "proc/sys/kernel/random/boot_id").strip() or "unknown"

    def memory_available_mb(self) -> int:
        """Memory that a new process could use."""
        return _meminfo_kb(self._root, "MemAvailable") // 1024

    def memory_total_mb(self) -> int:
        """Installed memory."""
        return _meminfo_kb(self._root, "MemTotal") // 1024

    def disk_free_bytes(self) -> int:
        """Free on the filesystem that holds images.

        Raises:
            StoreError: the filesystem does not say.
        """
        try:
            return int(psutil.disk_usage(str(self._data)).free)
        except OSError as error:
            raise StoreError(f"folder {self._data}", f"its filesystem cannot be examined: {error}") from error

    def port_free(self, port: int) -> bool:
        """Whether nothing listens on this loopback port."""
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return False
        return True

    def sample(self) -> HostSample:
        """Load, memory, disk and temperatures now; CPU since the sample before.

        Raises:
            StoreError: the filesystem does not say how full it is.
        """
        total = _meminfo_kb(self._root, "MemTotal") * 1024
        free = _meminfo_kb(self._root, "MemAvailable") * 1024
        try:
            disk = psutil.disk_usage(str(self._data))
        except OSError as error:
            raise StoreError(f"folder {self._data}", f"its filesystem cannot be examined: {error}") from error
        times = self._process.cpu_times()
        return HostSample(
            cpu_percent=min(100.0, max(0.0, psutil.cpu_percent(interval=None))),
            memory_used_bytes=max(0, total - free),
            memory_total_bytes=total,
            disk_used_bytes=disk.used,
            disk_total_bytes=disk.total,
            temperatures=dict(self._temperatures()),
            agent_rss_bytes=self._process.memory_info().rss,
            agent_cpu_seconds=round(times.user + times.system, 2),
        )

    def _temperatures(self) -> Iterator[tuple[str, float]]:
        # Zones first: where both know a name, the profile's sensor wins.
        for zone in sorted(self._root.glob("sys/class/thermal/thermal_zone*")):
            name = _text(zone / "type").strip() or zone.name
            yield from _celsius(name, zone / "temp", 0.001)
        for sensor in self._sensors:
            if sensor.unit == "celsius":
                for path in sorted(self._root.glob(sensor.path.lstrip("/")))[:1]:
                    yield from _celsius(sensor.name, path, sensor.scale)


def _celsius(name: str, path: Path, scale: float) -> Iterator[tuple[str, float]]:
    # Zones of switched-off units answer with an error or with nonsense such as -256 000.
    with contextlib.suppress(ValueError):
        degrees = int(_text(path)) * scale
        if _COLDEST < degrees < _WARMEST:
            yield name[:64], round(degrees, 1)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(65_536).decode("utf-8", errors="replace")
    except OSError:
        return ""


def _meminfo_kb(root: Path, field: str) -> int:
    match = re.search(rf"^{field}:\s+(\d+) kB", _text(root / "proc/meminfo"), re.MULTILINE)
    return int(match[1]) if match else 0


def _cuda(root: Path) -> str | None:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return str(json.loads(_text(root / "usr/local/cuda/version.json"))["cuda"]["version"])
    old = re.search(r"CUDA Version ([\d.]+)", _text(root / "usr/local/cuda/version.txt"))
    return old[1] if old else None
