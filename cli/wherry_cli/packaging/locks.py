"""The lock files of the model runtimes, read for a target that is not this machine."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from packaging.markers import Marker

import wherry_cli
from wherry.errors import ConfigError, InputError
from wherry.profile import DeviceProfile

_MACHINES = {"linux/amd64": "x86_64", "linux/arm64": "aarch64", "linux/arm/v7": "armv7l"}
_OLDEST_GLIBC = {"x86_64": 5, "aarch64": 17, "armv7l": 17}
_OLD_NAMES = {
    "x86_64": ("manylinux2014", "manylinux2010", "manylinux1"),
    "aarch64": ("manylinux2014",),
    "armv7l": ("manylinux2014",),
}
_REQUIREMENT = re.compile(r"(?P<pin>[A-Za-z0-9._-]+==[^ ;]+)(?: *; *(?P<marker>.*?))?(?P<hashes>(?: +--hash=\S+)+)")


@dataclass(frozen=True, slots=True)
class Target:
    """What wheels must be made for."""

    machine: str
    python: str
    glibc: str

    @classmethod
    def of(cls, profile: DeviceProfile) -> Target:
        """The target that a device profile describes."""
        return cls(_MACHINES[profile.platform], profile.base.python, profile.base.glibc)

    def tags(self) -> list[str]:
        """Wheel platform tags, newest glibc first: pip knows no ordering, so each must be named."""
        major, minor = self.glibc.split(".")
        tags = [f"manylinux_{major}_{n}" for n in range(int(minor), _OLDEST_GLIBC[self.machine] - 1, -1)]
        return [f"{tag}_{self.machine}" for tag in (*tags, *_OLD_NAMES[self.machine])]

    def environment(self) -> dict[str, str]:
        """The values of environment markers on the target, which are not those of this machine."""
        return {
            "implementation_name": "cpython",
            "implementation_version": f"{self.python}.0",
            "os_name": "posix",
            "platform_machine": self.machine,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": f"{self.python}.0",
            "python_version": self.python,
            "sys_platform": "linux",
            "extra": "",
        }


def locks_folder() -> Path:
    """Where the lock files are: in the wheel, or in a checkout."""
    here = Path(wherry_cli.__file__).parent
    packaged = here / "requirements"
    return packaged if packaged.is_dir() else here.parent.parent / "requirements"


def read_lock(runtime: str, folder: Path | None = None) -> str:
    """The text of a runtime's lock file.

    Raises:
        InputError: there is no such runtime.
    """
    place = (folder or locks_folder()) / f"serving-{runtime}.txt"
    try:
        return place.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"runtime {runtime}", f"has no lock file {place} ({error.strerror})") from error


def lock_for(text: str, target: Target) -> str:
    """The part of a universal lock that holds on a target, without markers.

    pip judges markers by the machine it runs on, not by `--platform`, so they are judged here.

    Raises:
        ConfigError: a line is not `NAME==VERSION ; MARKER --hash=…`.
    """
    lines = []
    for line in text.replace("\\\n", " ").splitlines():
        plain = " ".join(line.split("#", 1)[0].split())
        if not plain:
            continue
        match = _REQUIREMENT.fullmatch(plain)
        if match is None:
            raise ConfigError("lock file", f"has a line that is not a pinned package with hashes: {plain[:80]!r}")
        if match["marker"] is None or Marker(match["marker"]).evaluate(dict(target.environment())):
            lines.append(f"{match['pin']}{match['hashes']}")
    return "\n".join(lines) + "\n"
