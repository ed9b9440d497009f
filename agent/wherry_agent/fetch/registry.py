"""The engine pulls the image by digest from its registry, on our deadlines.

The SDK cannot give up a pull whose registry stalls: cancelled, stalled or late, `engine_stream` closes the call, and
the engine drops the pull.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, closing
from typing import Any
from urllib.parse import quote, urlencode

from wherry.errors import RegistryError, Tampered, WherryError
from wherry_agent.assignment import TrustedImage
from wherry_agent.engine_stream import engine_call, message
from wherry_agent.ports import Cancel, Engine, Progress

_OFFER_SECONDS = 30.0
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
        with closing(self._pull(image, cancel)) as updates:
            for update in updates:
                if "error" in update:
                    raise self._pull_error(image, str(update["error"]))
                tally.add(update)
        if not self._engine.has_image(image):
            raise RegistryError(f"image {image.pull_reference}", "was pulled but is not on the device")

    def offered(self, image: TrustedImage, cancel: Cancel) -> bool:
        """Whether the registry answers now, and has the image."""
        path = f"/distribution/{quote(image.pull_reference)}/json"
        try:
            with self._call("GET", path, image, cancel, _OFFER_SECONDS) as response:
                return response.status == 200
        except RegistryError:
            return False

    def _pull(self, image: TrustedImage, cancel: Cancel) -> Generator[dict[str, Any], None, None]:
        path = f"/images/create?{urlencode({'fromImage': image.image.repository, 'tag': image.digest})}"
        with self._call("POST", path, image, cancel, self._deadline) as response:
            if response.status != 200:
                raise self._pull_error(image, message(response))
            while line := response.readline(1_048_576):
                if line.strip():
                    yield json.loads(line)

    def _call(
        self, method: str, path: str, image: TrustedImage, cancel: Cancel, deadline: float
    ) -> AbstractContextManager[http.client.HTTPResponse]:
        def late(words: str, silent: bool) -> RegistryError:
            return RegistryError(f"registry of {image.image.repository}", words, _SILENT if silent else None)

        login = self._login(image.image.repository)
        headers = {"X-Registry-Auth": login} if login else {}
        thing = f"pull of {image.pull_reference}"
        return engine_call(self._url, method, path, headers, thing, cancel, (self._stall, deadline), late)

    def _pull_error(self, image: TrustedImage, words: str) -> WherryError:
        """The engine's words, as one of our errors."""
        thing = f"release {image.image.label()}"
        if any(sign in words.lower() for sign in _TAMPERED):
            return Tampered(thing, f"the registry sent something else than what was signed ({words[:300]})")
        shut = any(sign in words.lower() for sign in _SHUT)
        fix = self._advice(image.image.repository.partition("/")[0]) if shut else ""
        return RegistryError(f"{thing} from {image.image.repository}", words[:300], fix or None)


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
