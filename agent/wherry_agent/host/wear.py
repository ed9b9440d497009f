"""How much of the flash storage's life is used up, where the device tells."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from wherry_agent.host.files import word
from wherry_agent.host.programs import Program

_HOUR = 3600.0
# JEDEC eMMC: life in steps of ten percent, 0x0b above all; pre-EOL 0x02 and 0x03 are 80 and 90 % of the reserve.
_STEP, _UNKNOWN = 10.0, 0
_RESERVE_USED = {2: 80.0, 3: 90.0}


class Wear:
    """Looks once an hour: flash wears in months.

    SD cards tell nothing through the kernel. NVMe drives tell it to the `nvme` tool, which is asked when it is there;
    it must be let at the drive, which neither the agent's unit nor its container do by themselves.

    Args:
        root: where /sys is looked for.
        steady: a clock that nobody sets.
    """

    def __init__(self, root: Path, steady: Callable[[], float] = time.monotonic) -> None:
        self._root = root
        self._steady = steady
        self._due = float("-inf")
        self._seen: dict[str, float] = {}

    def look(self) -> dict[str, float]:
        """Percent used up, by device."""
        now = self._steady()
        if now >= self._due:
            self._due = now + _HOUR
            self._seen = dict(self._read())
        return self._seen

    def _read(self) -> Iterator[tuple[str, float]]:
        for disk in sorted(self._root.glob("sys/block/mmcblk*")):
            used = emmc_used(word(disk / "device/life_time"), word(disk / "device/pre_eol_info"))
            if used is not None:
                yield disk.name, used
        for drive in sorted(self._root.glob("sys/class/nvme/nvme*")):
            arguments = ["smart-log", f"/dev/{drive.name}", "--output-format=json"]
            used = nvme_used(Program(self._root, "nvme", arguments, every=_HOUR).text())
            if used is not None:
                yield drive.name, used


def emmc_used(life_time: str, pre_eol_info: str) -> float | None:
    """Percent of an eMMC's life used up: the worse of its two kinds of cells, and of its spare blocks.

    Args:
        life_time: sysfs' file, such as "0x02 0x01".
        pre_eol_info: sysfs' file, such as "0x01".
    """
    try:
        steps = max((int(step, 16) for step in life_time.split()), default=_UNKNOWN)
        reserve = int(pre_eol_info or "0", 16)
    except ValueError:
        return None
    if steps == _UNKNOWN and reserve not in _RESERVE_USED:
        return None
    return max(min(100.0, steps * _STEP), _RESERVE_USED.get(reserve, 0.0))


def nvme_used(smart_log: str) -> float | None:
    """Percent of an NVMe drive's life used up, from `nvme smart-log` in JSON; both names that versions of it use."""
    try:
        found = json.loads(smart_log)
        return min(100.0, float(found.get("percent_used", found.get("percentage_used"))))
    except (ValueError, TypeError, AttributeError):
        return None
