"""The machine the agent runs on: room for a release, and a sample of how it is now."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from wherry.errors import StoreError
from wherry.messages import HostSample
from wherry.profile import Sensor
from wherry_agent.host.files import ROOT, meminfo_kb, word
from wherry_agent.host.flash import FlashMeter
from wherry_agent.host.heat import Throttling, temperatures
from wherry_agent.host.power import PowerReader
from wherry_agent.host.wear import Wear

_IDLE = ("idle", "iowait")
_COUNTED_TWICE = ("guest", "guest_nice")
"""Time of virtual machines, which the kernel counts among user and nice as well."""


def busy_percent(before: Any, after: Any) -> float:
    """How busy all processors were between two readings of `psutil.cpu_times`, 0 to 100."""
    spent = {name: max(0.0, getattr(after, name) - getattr(before, name)) for name in after._fields}
    total = sum(seconds for name, seconds in spent.items() if name not in _COUNTED_TWICE)
    idle = sum(spent.get(name, 0.0) for name in _IDLE)
    return round(100 * (total - idle) / total, 1) if total > 0 else 0.0


class Host:
    """The machine the agent runs on.

    Args:
        data: a folder on the filesystem that holds images and the agent's state.
        sensors: of the device profile, beside what the kernel names itself.
        root: where /proc and /sys are looked for.

    Attributes:
        flash: counts what the agent writes.
    """

    def __init__(self, data: Path, sensors: Sequence[Sensor] = (), root: Path = ROOT) -> None:
        self._data = data
        self._sensors = tuple(sensors)
        self._root = root
        self._throttling = Throttling(root)
        self._power = PowerReader(root, sensors)
        self._wear = Wear(root)
        self.flash = FlashMeter(root)
        self._process = psutil.Process()
        self._cpu = psutil.cpu_times()

    def boot_id(self) -> str:
        """Changes with every boot of the kernel."""
        return word(self._root / "proc/sys/kernel/random/boot_id") or "unknown"

    def memory_available_mb(self) -> int:
        """Memory that a new process could use."""
        return self._memory_kb("MemAvailable") // 1024

    def memory_total_mb(self) -> int:
        """Installed memory."""
        return self._memory_kb("MemTotal") // 1024

    def disk_free_bytes(self) -> int:
        """Free on the filesystem that holds images.

        Raises:
            StoreError: the filesystem does not say.
        """
        try:
            return int(psutil.disk_usage(str(self._data)).free)
        except OSError as error:
            raise StoreError(f"folder {self._data}", f"its filesystem cannot be examined: {error}") from error

    def inodes_free(self) -> int | None:
        """Files that this filesystem can still hold; None where it makes room for them as needed.

        Raises:
            StoreError: the filesystem does not say.
        """
        try:
            found = os.statvfs(self._data)
        except OSError as error:
            raise StoreError(f"folder {self._data}", f"its filesystem cannot be examined: {error}") from error
        return found.f_favail if found.f_files else None

    def temperatures(self) -> dict[str, float]:
        """Degrees Celsius by sensor, as far as there are any."""
        return temperatures(self._root, self._sensors)

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
        """Load, memory, disk, heat, power and wear now; CPU since the sample before.

        Raises:
            StoreError: the filesystem does not say how full it is.
        """
        total, free = self._memory_kb("MemTotal") * 1024, self._memory_kb("MemAvailable") * 1024
        try:
            disk = psutil.disk_usage(str(self._data))
        except OSError as error:
            raise StoreError(f"folder {self._data}", f"its filesystem cannot be examined: {error}") from error
        # psutil.cpu_percent() remembers the sample before per thread, and samples are taken by many.
        before, self._cpu = self._cpu, psutil.cpu_times()
        times, slowdown, power = self._process.cpu_times(), self._throttling.look(), self._power.look()
        return HostSample(
            cpu_percent=busy_percent(before, self._cpu),
            memory_used_bytes=max(0, total - free),
            memory_total_bytes=total,
            disk_used_bytes=disk.used,
            disk_total_bytes=disk.total,
            temperatures=temperatures(self._root, self._sensors),
            watts=power.watts,
            throttled=slowdown.now,
            throttled_since_boot=slowdown.since_boot,
            gpu_percent=power.gpu_percent,
            gpu_memory_used_bytes=power.gpu_memory_bytes,
            wear_percent=self._wear.look(),
            agent_rss_bytes=self._process.memory_info().rss,
            agent_cpu_seconds=round(times.user + times.system, 2),
            agent_written_bytes=self.flash.last_day(),
        )

    def _memory_kb(self, field: str) -> int:
        return meminfo_kb(self._root, field) or 0
