"""The engine pulls the image by digest from its registry, on our deadlines.

The SDK cannot give up a pull whose registry stalls, so this speaks the engine's one HTTP call itself, over a
socket that is watched: cancelled, stalled or late, it is closed, and the engine drops the pull.
"""

from __future__ import annotations

import http.client
import io
import json
import select
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlencode, urlsplit

from wherry.errors import EngineError, RegistryError, Tampered, WherryError
from wherry_agent.assignment import TrustedImage
from wherry_agent.ports import Cancel, Engine, Progress

_LOOK_SECONDS = 0.25
_SILENT = (
    "Check the registry and the network; if both answer by now, the engine still waits for its old connection to the "
    "registry and has every later pull of that layer wait, too: restart the container engine"
)
_SHUT = ("no basic auth credentials", "unauthorized", "denied")
_TAMPERED = ("verification failed", "does not match", "digest mismatch", "invalid checksum", "invalid rootfs")


class RegistryFetcher:
    """Implements `ports.Fetcher`: a plain pull.

    Args:
        engine: to look whether the image is there, and is the one signed.
        url: the engine's address.
        stall_seconds: longest silence of the engine during a pull.
        deadline_seconds: longest pull.
        login: what a repository's registry is to be shown, as the engine wants it; empty for nothing.
        advice: how a person gives this device a login for a registry.
    """

    def __init__(
        self,
        engine: Engine,
        url: str,
        stall_seconds: float = 60,
        deadline_seconds: float = 1800,
        login: Callable[[str], str] = lambda _: "",
        advice: Callable[[str], str] = lambda _: "",
    ) -> None:
        self._login, self._advice = login, advice
        self._engine = engine
        self._url = url
        self._stall = stall_seconds
        self._deadline = deadline_seconds

    def fetch(self, image: TrustedImage, cancel: Cancel, progress: Progress) -> None:
        """Make `Engine.has_image` true."""
        if self._engine.has_image(image):
            return
        cancel.check()
        tally = _Tally(image.image.download_bytes, progress)
        watched = _Watched(cancel, self._stall, self._deadline, image.image.repository)
        try:
            for update in self._pull(image, watched):
                if "error" in update:
                    raise self._pull_error(image, str(update["error"]))
                tally.add(update)
        finally:
            watched.close()
        if not self._engine.has_image(image):
            raise RegistryError(f"image {image.pull_reference}", "was pulled but is not on the device")

    def _pull(self, image: TrustedImage, watched: _Watched) -> Iterator[dict[str, Any]]:
        query = urlencode({"fromImage": image.image.repository, "tag": image.digest})
        login = self._login(image.image.repository)
        headers = {"Content-Length": "0"} | ({"X-Registry-Auth": login} if login else {})
        connection = http.client.HTTPConnection("engine")
        try:
            connection.sock = watched.connect(self._url)
            connection.request("POST", f"/images/create?{query}", headers=headers)
            response = connection.getresponse()
            if response.status != 200:
                raise self._pull_error(image, _message(response.read(65536)))
            while line := response.readline(1_048_576):
                if line.strip():
                    yield json.loads(line)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise EngineError(f"pull of {image.pull_reference}", f"the engine broke off ({error})") from error

    def _pull_error(self, image: TrustedImage, words: str) -> WherryError:
        """The engine's words, as one of our errors."""
        thing = f"release {image.image.label()}"
        if any(sign in words.lower() for sign in _TAMPERED):
            return Tampered(thing, f"the registry sent something else than what was signed ({words[:300]})")
        shut = any(sign in words.lower() for sign in _SHUT)
        fix = self._advice(image.image.repository.partition("/")[0]) if shut else ""
        return RegistryError(f"{thing} from {image.image.repository}", words[:300], fix or None)


class _Watched(io.RawIOBase):
    """Reads the engine's socket while looking at cancellation, silence and the deadline."""

    def __init__(self, cancel: Cancel, stall: float, deadline: float, repository: str) -> None:
        self._cancel = cancel
        self._stall = stall
        self._until = time.monotonic() + deadline
        self._deadline = deadline
        self._repository = repository
        self._socket: socket.socket | None = None

    def connect(self, url: str) -> Any:
        """Open the engine's socket; what is returned is enough of a socket for http.client."""
        parts = urlsplit(url)
        if parts.scheme == "unix":
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.settimeout(10)
            self._socket.connect(parts.path)
        else:
            self._socket = socket.create_connection((parts.hostname or "127.0.0.1", parts.port or 2375), timeout=10)
        return _Socket(self._socket, self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        quiet_since = time.monotonic()
        assert self._socket is not None  # noqa: S101 - connect() came first
        while True:
            self._cancel.check()
            now = time.monotonic()
            if now > self._until:
                raise RegistryError(f"registry of {self._repository}", f"took more than {self._deadline:.0f} s")
            if now - quiet_since > self._stall:
                raise RegistryError(f"registry of {self._repository}", f"sent nothing for {self._stall:.0f} s", _SILENT)
            if select.select([self._socket], [], [], _LOOK_SECONDS)[0]:
                return self._socket.recv_into(buffer)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        super().close()


class _Socket:
    """What http.client asks of a socket."""

    def __init__(self, real: socket.socket, reader: _Watched) -> None:
        self._real = real
        self._reader = reader

    def sendall(self, data: bytes) -> None:
        self._real.sendall(data)

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self._reader)

    def close(self) -> None:
        self._real.close()


class _Tally:
    """Adds up a pull's progress lines and passes it on, at most once a second."""

    def __init__(self, total: int, progress: Progress) -> None:
        self._total = total
        self._progress = progress
        self._layers: dict[str, int] = {}
        self._told = 0.0

    def add(self, update: dict[str, Any]) -> None:
        """Take in one line of the engine's stream."""
        if update.get("status") == "Downloading":
            self._layers[str(update.get("id"))] = int((update.get("progressDetail") or {}).get("current", 0))
        now = time.monotonic()
        if now - self._told >= 1.0:
            self._told = now
            self._progress(min(sum(self._layers.values()), self._total), self._total)


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode("utf-8", "replace")
