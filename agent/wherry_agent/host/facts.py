"""What hardware and system this is: read once, when the agent starts."""

from __future__ import annotations

import contextlib
import json
import platform
import re
from collections.abc import Iterator
from pathlib import Path

from wherry.profile import HostFacts
from wherry_agent.host.files import ROOT, meminfo_kb, text, word

_TEGRA = re.compile(r"R(?P<major>\d+)\b[^,]*,\s*REVISION:\s*(?P<minor>[\d.]+)")
# A desktop GPU is no part of any profile yet: its architecture stays unknown.
_SM_OF_CHIP = {"tegra210": "53", "tegra186": "62", "tegra194": "72", "tegra234": "87", "tegra264": "110"}
_PACKAGES = re.compile(r"nvidia-l4t-core|cuda-cudart-\d+-\d+|libnvinfer\d+")
_UPSTREAM = re.compile(r"(?:\d+:)?(?P<version>\d+(?:\.\d+)*)")
_LIBRARIES = ("usr/lib/*-linux-gnu", "usr/lib", "usr/local/cuda*/lib64", "usr/local/cuda*/targets/*/lib")


def read_facts(root: Path = ROOT, architecture: str | None = None) -> HostFacts:
    """What decides which device profile this machine has, and which releases fit it.

    Args:
        root: where /proc, /etc, /var and /usr are looked for.
        architecture: instead of the running kernel's.
    """
    installed = dict(_installed(root / "var/lib/dpkg/status"))
    compatible = text(root / "proc/device-tree/compatible")
    return HostFacts(
        architecture=architecture or platform.machine(),
        memory_mb=(meminfo_kb(root, "MemTotal") or 0) // 1024,
        device_tree_model=word(root / "proc/device-tree/model") or None,
        l4t_release=_l4t(root) or installed.get("nvidia-l4t-core"),
        cuda=_cuda(root) or _newest(installed, "cuda-cudart-") or _library(root, "libcudart.so."),
        tensorrt=_newest(installed, "libnvinfer") or _library(root, "libnvinfer.so."),
        sm=next((sm for chip, sm in _SM_OF_CHIP.items() if chip in compatible), None),
        system=_system(root),
        kernel=word(root / "proc/sys/kernel/osrelease") or None,
    )


def _installed(status: Path) -> Iterator[tuple[str, str]]:
    # Megabytes on a board with JetPack, so line by line; the fields of a package come before its description.
    name, wanted, here = "", False, False
    with contextlib.suppress(OSError), status.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            field, _, value = line.rstrip("\n").partition(": ")
            if field == "Package":
                name, wanted, here = value, _PACKAGES.fullmatch(value) is not None, False
            elif wanted and field == "Status":
                here = value.endswith(" installed")
            elif here and field == "Version" and (version := _UPSTREAM.match(value)):
                yield name, version["version"]


def _newest(installed: dict[str, str], prefix: str) -> str | None:
    found = [version for name, version in installed.items() if name.startswith(prefix)]
    return max(found, key=_order, default=None)


def _order(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def _library(root: Path, prefix: str) -> str | None:
    found = [path.name.removeprefix(prefix) for folder in _LIBRARIES for path in root.glob(f"{folder}/{prefix}*")]
    return max((version for version in found if re.fullmatch(r"\d+(\.\d+)*", version)), key=_order, default=None)


def _l4t(root: Path) -> str | None:
    found = _TEGRA.search(text(root / "etc/nv_tegra_release"))
    return f"{found['major']}.{found['minor']}" if found else None


def _cuda(root: Path) -> str | None:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return str(json.loads(text(root / "usr/local/cuda/version.json"))["cuda"]["version"])
    old = re.search(r"CUDA Version ([\d.]+)", text(root / "usr/local/cuda/version.txt"))
    return old[1] if old else None


def _system(root: Path) -> str | None:
    for path in ("etc/os-release", "usr/lib/os-release"):
        found = re.search(r"^PRETTY_NAME=[\"']?([^\"'\n]+)", text(root / path), re.MULTILINE)
        if found:
            return found[1]
    return None
