"""The base layer from Debian packages: Python and its libraries, and nothing that a model server does not need.

`mmdebstrap --variant=extract` only unpacks, so it makes an arm64 tree on amd64 without emulation. What maintainer
scripts would have made (users, the certificate bundle) is added here, from the tree itself.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from wherry.errors import BuildError
from wherry_cli.packaging.layers import EPOCH, clean_info
from wherry_cli.packaging.tools import run_tool

RECIPE = 1
"""Part of the base's name: raise it when anything below changes what comes out."""
PACKAGES = "base-files,libc6,python3-minimal,libpython3-stdlib,ca-certificates,libstdc++6,libgomp1,netbase,tzdata"
ARCHITECTURES = {"linux/amd64": "amd64", "linux/arm64": "arm64", "linux/arm/v7": "armhf"}
USER_ID = 65532

_EXCLUDED = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*", "/usr/share/lintian/*")
# What the packages bring and a container without a shell cannot use: package tools, Perl, editors' helpers. The
# package list (var/lib/dpkg/status) stays, vulnerability scanners read it.
_DROPPED = re.compile(
    r"""
    (   bin/tar | dev | boot | home | media | mnt | opt | srv | proc | sys | run | sbin
    |   etc/(apt|cron\.daily|dpkg|init\.d|kernel|logrotate\.d|alternatives|update-motd\.d|skel|profile\.d|fstab)
    |   etc/(resolv\.conf|hostname)  # copies of the building machine's
    |   lib/(systemd|init)
    |   usr/(sbin|games|include|local|share/(perl5|perl|dpkg|debconf|bash-completion|gcc|gdb|pixmaps|python3|bug))
    |   usr/bin/(c_rehash|mawk|openssl|update-alternatives|perl[0-9.]*)
    |   usr/lib/(apt|dpkg|init|systemd|[^/]+/gconv|python3\.[0-9]+/(pydoc_data|lib2to3|turtle\.py))
    |   var/(cache|log|backups|lib/apt|lib/dpkg/(info|alternatives))
    ) (/.*)?
    | usr/bin/(dpkg|debconf|py3).*
    | .*/__pycache__(/.*)?
    """,
    re.VERBOSE,
)
_FOLDERS = {"tmp": 0o1777, "run": 0o755, "proc": 0o555, "sys": 0o555, "dev": 0o755, "var/tmp": 0o1777}
_FILES = {
    "etc/passwd": f"root:x:0:0:root:/root:/nonexistent\nwherry:x:{USER_ID}:{USER_ID}:wherry:/tmp:/nonexistent\n",
    "etc/group": f"root:x:0:\nvideo:x:44:\nwherry:x:{USER_ID}:\n",
    "etc/nsswitch.conf": "hosts: files dns\n",
}
_LINKS = {"usr/lib/ssl/cert.pem": "/etc/ssl/certs/ca-certificates.crt"}
_BUNDLE = "etc/ssl/certs/ca-certificates.crt"
_ADDED = {"", ".", _BUNDLE, *_FILES, *_FOLDERS, *_LINKS}


def debootstrap(suite: str, platform: str, target: Path) -> None:
    """Unpack the packages of a suite into a tar archive.

    Raises:
        BuildError: mmdebstrap is missing or failed.
    """
    thing = f"base layer of Debian {suite} for {platform}"
    command = ["mmdebstrap", "--quiet", "--variant=extract", f"--architectures={ARCHITECTURES[platform]}"]
    command += [f"--include={PACKAGES}"]
    command += [f"--dpkgopt=path-exclude={pattern}" for pattern in _EXCLUDED]
    run_tool(
        [*command, suite, str(target)],
        thing,
        env={"SOURCE_DATE_EPOCH": str(EPOCH), "LC_ALL": "C.UTF-8"},
        install="Run `apt-get install mmdebstrap`, or take the base from a registry that has it",
    )


def _cleaned(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo:
    info = clean_info(path, member.mode & 0o1777)
    info.type, info.size, info.linkname = member.type, member.size, member.linkname
    if member.islnk():
        info.linkname = member.linkname.removeprefix("./")
    return info


def finish_base(source: BinaryIO, target: BinaryIO, python: str) -> None:
    """Turn mmdebstrap's archive into the base layer's: drop, clean, add.

    Args:
        source: the archive to read.
        target: where to write the layer's archive.
        python: the version it must hold ("3.11").

    Raises:
        BuildError: the archive does not hold that Python.
    """
    certificates: dict[str, bytes] = {}
    seen: set[str] = set()
    with (
        tarfile.open(fileobj=source, mode="r|") as given,
        tarfile.open(fileobj=target, mode="w|", format=tarfile.PAX_FORMAT) as layer,
    ):
        for member in given:
            path = member.name.removeprefix("./").rstrip("/")
            if path in _ADDED or _DROPPED.fullmatch(path) or member.isdev():
                continue
            data = _content(given, member)
            if path.startswith("usr/share/ca-certificates/") and path.endswith(".crt") and data is not None:
                certificates[path] = data
            seen.add(path)
            layer.addfile(_cleaned(member, path), io.BytesIO(data) if data is not None else None)
        if f"usr/bin/python{python}" not in seen:
            raise BuildError("base layer", f"these Debian packages do not hold Python {python}", "Correct the profile")
        _add_missing(layer, seen, b"".join(certificates[path] for path in sorted(certificates)))


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | None:
    if not member.isreg():
        return None
    file = archive.extractfile(member)
    return file.read() if file else b""


def _add_missing(layer: tarfile.TarFile, seen: Iterable[str], bundle: bytes) -> None:
    present = set(seen)
    files = {path: text.encode() for path, text in _FILES.items()} | {_BUNDLE: bundle}
    for path, mode in sorted((_FOLDERS | _parents_of([*files, *_LINKS], present)).items()):
        info = clean_info(path, mode)
        info.type = tarfile.DIRTYPE
        layer.addfile(info)
    for path, data in sorted(files.items()):
        info = clean_info(path)
        info.size = len(data)
        layer.addfile(info, io.BytesIO(data))
    for path, link in sorted(_LINKS.items()):
        info = clean_info(path, 0o777)
        info.type, info.linkname = tarfile.SYMTYPE, link
        layer.addfile(info)


def _parents_of(paths: list[str], present: set[str]) -> dict[str, int]:
    found = {str(parent) for path in paths for parent in PurePosixPath(path).parents}
    return dict.fromkeys(found - present - {"."}, 0o755)
