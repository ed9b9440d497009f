"""The container engine's images: which are there, and whether its disk still holds what was signed.

The engine's store is not safe against a loss of power: a layer's file may be zeroed while the engine runs the image
and calls a pull up to date. Only what it saves shows it.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import quote

from wherry.errors import EngineError, Tampered
from wherry_agent.assignment import TrustedImage
from wherry_agent.engine_client import docker, wrapped
from wherry_agent.engine_stream import engine_call, message
from wherry_agent.ports import Cancel
from wherry_agent.saved_image import NotAnArchive, missing

_log = logging.getLogger(__name__)
_STALL_SECONDS = 900.0
"""The engine puts the whole image together before it sends the first byte."""
_DEADLINE_SECONDS = 3600.0
_DAMAGED = (
    "checksum", "no such file", "input/output error", "structure needs cleaning", "bad message", "unexpected eof",
    "invalid character", "gzip", "zlib", "does not exist", "corrupt", "bad file",
)  # fmt: skip
"""Signs that the engine fell over its own files, and not over a full disk or a restart."""


class Images:
    """The image half of `containers.DockerEngine`.

    Args:
        client: the SDK's client, connected when it is first needed.
        url: the engine's address.
    """

    def __init__(self, client: Callable[[], Any], url: str) -> None:
        self._client = client
        self._url = url

    def id_of(self, image: TrustedImage) -> str | None:
        """The engine's id of the image: config digest, or manifest digest on a containerd store.

        Raises:
            Tampered: something else answers to its name.
        """
        for reference in (image.pull_reference, image.image.config_digest):
            with wrapped(f"image {reference}"):
                try:
                    found = self._client().inspect_image(reference)
                except docker.errors.NotFound:
                    continue
            if found["Id"] not in (image.image.config_digest, image.digest):
                raise Tampered(
                    f"release {image.image.label()}",
                    f"the engine holds image {found['Id'][:19]} under its digest, "
                    f"signed is {image.image.config_digest[:19]}",
                )
            return str(found["Id"])
        return None

    def remove(self, image: TrustedImage) -> None:
        """Remove the reference by digest; nothing when absent or in use."""
        with wrapped(f"image {image.pull_reference}"):
            try:
                self._client().remove_image(image.pull_reference)
            except docker.errors.NotFound:
                return
            except docker.errors.APIError as error:
                if error.status_code != 409:
                    raise
                _log.info("image %s stays: %s", image.pull_reference, error.explanation)

    def verify(self, image: TrustedImage, cancel: Cancel) -> None:
        """Compare every layer with the signed configuration; streamed, nothing of it is kept.

        Raises:
            Tampered: the engine's disk does not hold what was signed.
            EngineError: it cannot be told.
            StepCancelled: asked to give way.
        """
        thing, image_id = f"release {image.image.label()}", self.id_of(image)
        if image_id is None:
            raise EngineError(f"image of {thing}", "is not on the device (any more)")
        if image_id != image.image.config_digest:
            _log.info("%s: this engine keeps images packed, what it unpacked cannot be verified", thing)
            return

        def late(words: str, _silent: bool) -> EngineError:
            return EngineError(f"image of {thing}", f"the engine {words} when it was to save it")

        path = f"/images/{quote(image_id, safe=':')}/get"
        limits = (_STALL_SECONDS, _DEADLINE_SECONDS)
        with engine_call(self._url, "GET", path, {}, f"image of {thing}", cancel, limits, late) as response:
            if response.status != 200:
                raise _refused(thing, message(response))
            try:
                lost = missing(cast(io.RawIOBase, response), image.image.config_digest, cancel)
            except NotAnArchive as error:
                raise _refused(thing, str(error)) from error
        if lost:
            raise _damaged(thing, f"what the engine has of {', '.join(lost)} is not what was signed")


def _refused(thing: str, words: str) -> EngineError | Tampered:
    """The engine could not put the image together."""
    if any(sign in words.lower() for sign in _DAMAGED):
        return _damaged(thing, f"the engine cannot read it ({words[:200]})")
    return EngineError(f"image of {thing}", f"the engine cannot say whether it is whole ({words[:200]})")


def _damaged(thing: str, words: str) -> Tampered:
    reason = f"its copy on this device's disk is damaged: {words}"
    return Tampered(thing, reason, "Nothing to do if it is fetched again; if this comes back, look at the disk")
