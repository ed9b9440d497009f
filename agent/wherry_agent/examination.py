"""Looks at the device for `wherry-agent doctor`: facts out, no opinion. Every look has a deadline of its own.

The engine is asked over its socket by hand: the doctor must not need what it examines.
"""

from __future__ import annotations

import grp
import http.client
import json
import os
import re
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from wherry.errors import IdentityError, RouteError
from wherry.profile import DeviceProfile
from wherry_agent.identity_store import Identity, IdentityStore
from wherry_agent.ports import Clock
from wherry_agent.route.haproxy import HaproxyRoute
from wherry_agent.route.haproxy_config import HAPROXY_FOLDER
from wherry_agent.route.haproxy_process import lacks, program, runs_by_unit
from wherry_agent.route.kernel import KernelRoute
from wherry_agent.state_folder import running_agent
from wherry_agent.verdicts import AcceleratorFacts, DiskFacts, EngineFacts, IdentityFacts, PeerFacts, ServiceFacts

LOOK_SECONDS = 4.0
UNIT = "wherry-agent.service"
_ALERT_SECONDS = 0.7
_OLDEST_PROXY = (2, 4)
_MOST_BYTES = 1_048_576


def look_at_engine(url: str) -> EngineFacts:
    """The engine's own words, over its socket."""
    parts = urlsplit(url)
    reach = ""
    if parts.scheme == "unix":
        if not Path(parts.path).exists():
            return EngineFacts(url, "absent")
        reach = "usable" if os.access(parts.path, os.R_OK | os.W_OK) else "forbidden"
        if reach == "forbidden":
            return EngineFacts(url, reach)
    try:
        version, info = ask_engine(url, "/version"), ask_engine(url, "/info")
        return EngineFacts(
            url,
            reach,
            version=str(version["Version"]),
            api=tuple(int(part) for part in str(version["ApiVersion"]).split(".")),
            driver=str(info.get("Driver", "")),
            root=str(info.get("DockerRootDir", "")),
            memory_limits=bool(info.get("MemoryLimit", True)),
            runtimes=frozenset(info.get("Runtimes") or ()),
        )
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError, AttributeError) as error:
        return EngineFacts(url, reach, problem=error_words(error))


def ask_engine(url: str, path: str, headers: Mapping[str, str] | None = None) -> Any:
    """What the engine answers to a GET, whatever its status.

    Raises:
        OSError, HTTPException, ValueError: it cannot be asked in time, or its answer is no JSON.
    """
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "engine", parts.port or 2375, timeout=LOOK_SECONDS / 2)
    with closing(connection):
        if parts.scheme == "unix":
            connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.sock.settimeout(LOOK_SECONDS / 2)
            connection.sock.connect(parts.path)
        connection.request("GET", path, headers=dict(headers or {}))
        return json.loads(connection.getresponse().read(_MOST_BYTES))


def look_at_disk(path: Path, write: bool = False) -> DiskFacts:
    """The filesystem that holds a folder, or will hold it.

    Args:
        path: the folder; the nearest one that exists is looked at.
        write: see whether a file can be written there.
    """
    there = next((folder for folder in (path, *path.parents) if folder.exists()), Path("/"))
    try:
        found = os.statvfs(there)
        if write:
            with tempfile.TemporaryFile(dir=there) as file:
                file.write(b"x" * 4096)
    except OSError as error:
        return DiskFacts(str(path), problem=error_words(error), writable=False)
    return DiskFacts(
        str(path),
        free_bytes=found.f_bavail * found.f_frsize,
        total_bytes=found.f_blocks * found.f_frsize,
        free_inodes=found.f_favail,
        inodes=found.f_files,
        kind=_filesystem(there),
    )


def _filesystem(path: Path) -> str:
    """Its type, by the mount that is nearest above the path."""
    best, kind = "", ""
    with suppress(OSError):
        real = str(path.resolve())
        for line in Path("/proc/self/mountinfo").read_text("utf-8", "replace").splitlines():
            left, _, right = line.partition(" - ")
            mount = left.split()[4]
            inside = real == mount or real.startswith(mount.rstrip("/") + "/")
            if inside and len(mount) >= len(best):
                best, kind = mount, right.split()[0]
    return kind


def look_at_identity(state: Path) -> tuple[IdentityFacts | None, Identity | None]:
    """The device's identity; (None, None) when it is not enrolled."""
    if not (state / "identity/device.json").exists():
        return None, None
    try:
        identity = IdentityStore(state).load()
    except (IdentityError, OSError) as error:
        return IdentityFacts("", problem=str(error)), None
    return IdentityFacts(identity.device, identity.profile, identity.begins, identity.expires), identity


def look_at_broker(identity: Identity) -> PeerFacts:
    """TLS with the device's certificate. No MQTT: a second session of one device would end the agent's."""
    address = f"{identity.broker_host}:{identity.broker_port}"
    try:
        context = ssl.create_default_context(cafile=str(identity.ca_file))
        context.load_cert_chain(identity.credentials_file)
        with (
            socket.create_connection((identity.broker_host, identity.broker_port), LOOK_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=identity.broker_host) as secure,
        ):
            # A refused certificate shows after the handshake only, as an alert.
            secure.settimeout(_ALERT_SECONDS)
            with suppress(TimeoutError):
                if not secure.recv(1):
                    return PeerFacts(address, "closed the connection: it refuses this device's certificate")
    except (OSError, ValueError) as error:
        return PeerFacts(address, error_words(error))
    return PeerFacts(address)


def look_at_server(identity: Identity, clock: Clock) -> PeerFacts:
    """The server's health page, and what time it is there."""
    parts = urlsplit(identity.server_url)
    address = f"{parts.hostname}:{parts.port or 443}"
    try:
        context = ssl.create_default_context(cafile=str(identity.ca_file))
        connection = http.client.HTTPSConnection(
            parts.hostname or "", parts.port or 443, timeout=LOOK_SECONDS, context=context
        )
        with closing(connection):
            connection.request("GET", "/healthz")
            answer = connection.getresponse()
            status, date = answer.status, answer.getheader("Date", "")
    except (OSError, http.client.HTTPException, ValueError) as error:
        return PeerFacts(address, error_words(error))
    ahead = None
    with suppress(ValueError, TypeError):
        ahead = clock() - parsedate_to_datetime(date)
    problem = "" if status == 200 else f"answers with status {status}"
    return PeerFacts(address, problem, ahead=ahead)


def look_at_packet_filter() -> str:
    """Why a table of our own cannot be made; empty when it can."""
    try:
        KernelRoute(f"wherry_doctor_{os.getpid()}", timeout=LOOK_SECONDS).try_out()
    except RouteError as error:
        return error.reason
    return ""


def look_at_proxy(state: Path) -> tuple[str, str, list[int]]:
    """Why haproxy cannot be used, its version, and the stable ports that it is to lead."""
    why = lacks(runs_by_unit())
    if why:
        return why, "", []
    done = subprocess.run([program(), "-v"], capture_output=True, text=True, timeout=LOOK_SECONDS, check=False)
    found = re.search(r"version (\d+)\.(\d+)\S*", done.stdout)
    if found is None or (int(found[1]), int(found[2])) < _OLDEST_PROXY:
        return f"is too old or does not start ({done.stdout[:80].strip()!r}): 2.4 is needed", "", []
    return "", found[0], sorted(HaproxyRoute(state / HAPROXY_FOLDER).written())


def look_at_accelerator(profile: DeviceProfile) -> AcceleratorFacts:
    """What of the profile's device nodes and groups is missing here."""
    return AcceleratorFacts(
        [node for node in profile.run.devices if not Path(node).exists()],
        [name for name in profile.run.groups if not _is_group(name)],
    )


def _is_group(name: str) -> bool:
    try:
        grp.getgrnam(name)
    except KeyError:
        return False
    return True


def look_at_service(state: Path) -> ServiceFacts:
    """Whether an agent holds the state folder, and what systemd says of its unit."""
    unit = ""
    if Path("/run/systemd/system").is_dir():
        unit = _output(["systemctl", "is-active", UNIT])
    return ServiceFacts(running_agent(state) is not None, unit)


def _output(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LOOK_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()[:40]


def not_before(now: datetime) -> datetime:
    """No clock that is right says less: this program was made later."""
    return datetime(2026, 1, 1, tzinfo=now.tzinfo)


def error_words(error: BaseException) -> str:
    """Why something was not reached, in few words."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not believed ({error.verify_message})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[:200]
    return str(error)[:200] or type(error).__name__
