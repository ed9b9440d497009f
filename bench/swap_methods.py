"""Ways to bring a new version of a model server to a port: by hand, with docker compose, with Docker Swarm.

Each does what its users do, with the images that Wherry packaged, on the same engine, behind one fixed port.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from lab import Lab
from ports import free_port
from swap_load import MODEL, sample

from wherry.tensors import HEADER_LENGTH, decode_response, encode_request

READY_SECONDS = 90


class Unavailable(Exception):
    """A peer cannot run on this machine; the text says why."""


class Method(Protocol):
    """One way to swap versions.

    Attributes:
        name: its key in the report.
        how: what it does, in words.
        port: where the model answers, whatever version.
        settle: seconds after a swap that still belong to it: the old version ends in them.
    """

    name: str
    how: str
    port: int
    settle: float

    def up(self, version: str) -> None:
        """Serve a version, with nobody asking yet."""

    def swap(self, version: str) -> None:
        """Do what an operator does for a new version, until the tool says that it is done."""

    def answers(self, version: str) -> bool:
        """Whether callers get that version now."""

    def bad(self, version: str) -> float | None:
        """The same with a bad release; when the tool found it to be bad (monotonic), None if it never does."""

    def down(self) -> None:
        """Remove everything that `up` and `swap` made."""


def answering(port: int) -> str | None:
    """The version that answers now."""
    body, header = encode_request([sample()])
    headers = {HEADER_LENGTH: str(header)} if header else {}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v2/models/{MODEL}/infer", data=body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=2) as reply:
            length = reply.headers.get(HEADER_LENGTH)
            return decode_response(reply.read(), int(length) if length else None).version
    except (OSError, urllib.error.URLError):
        return None


def wait_until(holds: Callable[[], bool], otherwise: str, seconds: float = READY_SECONDS) -> None:
    """Wait, looking often.

    Raises:
        RuntimeError: it did not come true in time.
    """
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{otherwise} (waited {seconds:.0f} s)")
        time.sleep(0.05)


class Peer:
    """What the peers have in common: images by reference, and their removal.

    Args:
        lab: runs commands, with the tools' environment.
        images: image reference by version.
        port: where the model answers.
        unique: begins the names of everything that is made.
    """

    name = how = ""
    settle = 1.0  # the tool returns when the old version has ended

    def __init__(self, lab: Lab, images: Mapping[str, str], port: int, unique: str) -> None:
        self.port = port
        self._lab, self._images = lab, images
        self._title = f"{unique}-{self.name}".replace("_", "-")

    def swap(self, version: str) -> None:
        """What each peer does for a new version."""
        raise NotImplementedError

    def up(self, version: str) -> None:
        """By default a first start is like any other."""
        self.swap(version)
        wait_until(lambda: self.answers(version), f"{self.name}: version {version} does not answer")

    def answers(self, version: str) -> bool:
        """By the version in an answer."""
        return answering(self.port) == version

    def bad(self, version: str) -> float | None:
        """No peer looks at answers: to them the swap went well."""
        self.swap(version)
        return None

    def down(self) -> None:
        """Untag the images, so that the next method starts with as few of them."""
        for image in self._images.values():
            self._lab.run("docker", "rmi", image, check=False)


class StopAndRun(Peer):
    """`docker stop`, `docker rm`, `docker run`."""

    name = "stop_and_run"
    how = "docker pull, docker stop, docker rm, docker run"

    def swap(self, version: str) -> None:
        """Pull first, as a careful operator does, then replace the container."""
        self._lab.run("docker", "pull", "-q", self._images[version])
        self._lab.run("docker", "stop", self._title, check=False)
        self._lab.run("docker", "rm", self._title, check=False)
        self._lab.run(
            "docker", "run", "-d", "--init", "--read-only", "--restart", "unless-stopped", "--name", self._title,
            "-p", f"127.0.0.1:{self.port}:8080", self._images[version],
        )  # fmt: skip

    def down(self) -> None:
        """Remove the container."""
        self._lab.run("docker", "rm", "-f", self._title, check=False)
        super().down()


class StartBeside(StopAndRun):
    """No swap at all: what it costs callers that a second model server starts and ends beside theirs.

    Every way that keeps the old version answering must do at least this: it is the floor for them.
    """

    name = "start_beside"
    how = "docker run of the next version beside the one that answers, until ready; docker stop of it: no swap"

    def up(self, version: str) -> None:
        """What answers throughout."""
        super().swap(version)
        wait_until(lambda: self.answers(version), f"{self.name}: version {version} does not answer")

    def swap(self, version: str) -> None:
        """Start the next version on another port, wait for it, stop it."""
        beside, port = f"{self._title}-next", free_port()
        self._lab.run("docker", "pull", "-q", self._images[version])
        try:
            self._lab.run(
                "docker", "run", "-d", "--init", "--read-only", "--name", beside,
                "-p", f"127.0.0.1:{port}:8080", self._images[version],
            )  # fmt: skip
            wait_until(lambda: answering(port) == version, f"{self.name}: version {version} does not answer")
            self._lab.run("docker", "stop", beside)
        finally:
            self._lab.run("docker", "rm", "-f", beside, check=False)

    def answers(self, version: str) -> bool:  # noqa: ARG002 - whatever was started beside, the first one answers
        """Whether anything answers."""
        return answering(self.port) is not None


class Compose(Peer):
    """A compose file whose image changes."""

    name = "docker_compose"
    how = "docker-compose up -d with a changed image"

    def _service(self, version: str) -> dict[str, Any]:
        return {
            "image": self._images[version],
            "init": True,
            "read_only": True,
            "restart": "unless-stopped",
            "ports": [f"127.0.0.1:{self.port}:8080"],
        }

    def _file(self, version: str) -> Path:
        path = self._lab.folder / f"{self._title}.yml"
        path.write_text(json.dumps({"version": "3.8", "services": {MODEL: self._service(version)}}))
        return path

    def _compose(self, version: str, *argv: str, check: bool = True) -> None:
        self._lab.run("docker-compose", "-p", self._title, "-f", str(self._file(version)), *argv, check=check)

    def up(self, version: str) -> None:
        """Only where the tool is installed.

        Raises:
            Unavailable: it is not.
        """
        try:
            self._lab.run("docker-compose", "version")
        except OSError as error:
            raise Unavailable("docker-compose is not installed") from error
        super().up(version)

    def swap(self, version: str) -> None:
        """It pulls what it lacks before it stops what runs."""
        self._compose(version, "up", "-d")

    def down(self) -> None:
        """Remove container and network."""
        if (self._lab.folder / f"{self._title}.yml").exists():
            self._compose(next(iter(self._images)), "down", "--timeout", "1", check=False)
        super().down()
