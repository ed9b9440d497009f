"""Ways to run an image: bare on this machine, and in a container as the agent runs it."""

from __future__ import annotations

import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from wherry.errors import BuildError, EngineError
from wherry.release import SERVING_PORT
from wherry_cli.costs.layout import Image, engine_archive
from wherry_cli.packaging.tools import run_tool

_USER = "65532"
_DRAIN = {"WHERRY_DRAIN_SECONDS": "0"}
_START_SECONDS = 120.0


class Way(Protocol):
    """One way to run the same files.

    Attributes:
        name: what the table calls it.
        note: how exactly it runs.
        host, port: where it answers while it runs.
        emulated: every instruction is translated, so that little of it is measured.
    """

    name: str
    note: str
    emulated: bool
    host: str
    port: int

    def start(self) -> None:
        """Begin to run; returns at once."""

    def stop(self) -> None:
        """End it and take its traces away; also when it does not run."""

    def processes(self) -> Iterable[int]:
        """The processes it takes on this machine, without their children."""


def free_port() -> int:
    """A loopback port that nothing uses now, below those that the kernel gives to outgoing connections.

    Whoever asks a port above again and again until somebody answers may be given that port to ask from: it reaches
    itself, and the server that is to listen there cannot.
    """
    while True:
        port = random.randrange(20_000, 32_000)  # noqa: S311  not a secret
        with socket.socket() as one:
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def end(process: subprocess.Popen[bytes] | None) -> None:
    """End a process group, patiently first."""
    if process is None or process.poll() is not None:
        return
    for sent in (signal.SIGTERM, signal.SIGKILL):
        os.killpg(process.pid, sent)
        try:
            process.wait(10)
            return
        except subprocess.TimeoutExpired:
            continue


class Bare:
    """The image's own files, run on this machine's kernel with nothing around them but a changed root folder.

    Same Python, same libraries, same model: what differs from the container is the container.
    """

    name = "bare"
    note = "the same files, chroot, no container"
    emulated = False
    host = "127.0.0.1"

    def __init__(self, image: Image, root: Path, log: Path) -> None:
        self.port = free_port()
        self._root, self._log = root, log
        arguments = [str(self.port) if item == str(SERVING_PORT) else item for item in image.command]
        variables = [f"{name}={value}" for name, value in (image.environment | _DRAIN).items()]
        # The mounts live in a namespace of their own and go with the process.
        mounts = " && ".join(f'mount --rbind /{name} "$0/{name}"' for name in ("proc", "sys", "dev"))
        given = " ".join(shlex.quote(variable) for variable in variables)
        script = f'{mounts} && exec env -i {given} chroot --userspec={_USER}:{_USER} "$0" "$@"'
        self._command = ["unshare", "--mount", "sh", "-c", script, str(root), *arguments]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin to run; returns at once."""
        for folder in ("proc", "sys", "dev", "tmp"):
            (self._root / folder).mkdir(exist_ok=True)
            (self._root / folder).chmod(0o1777 if folder == "tmp" else 0o755)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def stop(self) -> None:
        """End it."""
        end(self._process)
        self._process = None

    def processes(self) -> list[int]:
        """The model server."""
        return [self._process.pid] if self._process else []


class Container:
    """In a container with the agent's hardening, published on a loopback port as the agent does it."""

    name = "container"
    emulated = False
    host = "127.0.0.1"

    def __init__(self, image: Image, scratch: Path) -> None:
        self.port = free_port()
        version = run_tool(["docker", "version", "--format", "{{.Server.Version}}"], "Docker engine").strip()
        self.note = f"Docker {version}, published port"
        self._tag = f"wherry-bench:{image.config_blob.name[:12]}"
        self._label = f"wherry-bench-{os.getpid()}"
        archive = scratch / "engine.tar"
        engine_archive(image, self._tag, archive)
        run_tool(["docker", "load", "--quiet", "--input", str(archive)], "image under test")
        archive.unlink()

    def start(self) -> None:
        """Begin to run; returns when the engine has started it."""
        run_tool(
            [
                "docker", "run", "--detach", "--name", self._label, "--read-only", "--cap-drop", "ALL", "--init",
                "--security-opt", "no-new-privileges:true", "--pids-limit", "128", "--memory", "1g",
                "--env", "WHERRY_DRAIN_SECONDS=0",
                "--tmpfs", "/tmp:rw,noexec,nosuid,nodev,size=8m,mode=1777",  # noqa: S108  the container's own
                "--publish", f"{self.host}:{self.port}:{SERVING_PORT}", self._tag,
            ],
            "container under test",
        )  # fmt: skip

    def stop(self) -> None:
        """Remove the container."""
        subprocess.run(["docker", "rm", "--force", self._label], capture_output=True, check=False, timeout=60)

    def remove(self) -> None:
        """Remove the image, too."""
        self.stop()
        subprocess.run(["docker", "rmi", "--force", self._tag], capture_output=True, check=False, timeout=60)

    def processes(self) -> list[int]:
        """The shim above the container's processes, and the proxies of its port."""
        first = int(run_tool(["docker", "inspect", "--format", "{{.State.Pid}}", self._label], "container").strip())
        try:
            shim = int(Path(f"/proc/{first}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError) as error:
            raise EngineError("container under test", "ended while it was measured") from error
        port = f"\0-host-port\0{self.port}\0".encode()
        proxies = [
            int(path.parent.name)
            for path in Path("/proc").glob("[0-9]*/cmdline")
            if b"docker-proxy" in (line := _read(path)) and port in line
        ]
        return [shim, *proxies]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def start_deadline() -> float:
    """When a way that was started now must have answered (monotonic clock)."""
    return time.monotonic() + _START_SECONDS


def need_root() -> None:
    """Refuse early what would fail late.

    Raises:
        BuildError: not root, or unshare is missing.
    """
    if os.geteuid() != 0:
        raise BuildError("wherry bench", "needs root: it changes the root folder and reads other processes' memory",
                         "Run it with sudo")  # fmt: skip
    if shutil.which("unshare") is None:
        raise BuildError("wherry bench", "unshare is not installed", "Install util-linux")
