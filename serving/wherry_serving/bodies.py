"""Reading a request's body from ASGI: bounded in bytes, in time, and over all requests together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from wherry.errors import AdmissionError, MalformedMessage, WherryError
from wherry_serving.codings import ACCEPTED, TooLarge, decompress

Receive = Callable[[], Awaitable[Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of what clients may make the server hold.

    Attributes:
        body_bytes: of one body, packed and unpacked.
        inflight_bytes: of all bodies that are being read or wait in the queue.
        body_seconds: from the headers of a request to the end of its body.
    """

    body_bytes: int = 64 << 20
    inflight_bytes: int = 128 << 20
    body_seconds: float = 60.0


class BodyRefused(WherryError):
    """A body that is not read; `status` is the HTTP status that says why."""

    code = "serving.body"
    hint = "Send a smaller body, as gzip, deflate or uncompressed"

    def __init__(self, status: int, reason: str) -> None:
        super().__init__("request body", reason)
        self.status = status


class ClientGone(Exception):
    """The client closed the connection before its request was complete."""


class Bodies:
    """Reads bodies within the limits.

    Args:
        limits: the bounds.
        executor: runs decompression, so that the event loop is free meanwhile.
    """

    def __init__(self, limits: Limits, executor: Executor) -> None:
        self._limits = limits
        self._executor = executor
        self._inflight = 0

    @contextmanager
    def reserved(self, size: int) -> Iterator[None]:
        """Count `size` bytes as held while the context lasts.

        Raises:
            AdmissionError: all requests together would hold too much.
        """
        if self._inflight and self._inflight + size > self._limits.inflight_bytes:
            raise AdmissionError("request body", "does not fit beside the others now", "Send it again later")
        self._inflight += size
        try:
            yield
        finally:
            self._inflight -= size

    def expected_size(self, headers: Mapping[bytes, bytes]) -> int:
        """How much to reserve for a request: what it says, or the most it may be.

        Raises:
            BodyRefused: it says more than a body may have.
        """
        coding, length = headers.get(b"content-encoding"), headers.get(b"content-length")
        size = int(length) if length is not None and length.isdigit() else self._limits.body_bytes
        if size > self._limits.body_bytes:
            raise self._too_large()
        return self._limits.body_bytes if coding else size

    async def read(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
        """The body, unpacked.

        Raises:
            BodyRefused: too large, too slow, or of a coding that is not known.
            MalformedMessage: not of the coding that its header says.
            ClientGone: the client left.
        """
        coding = headers.get(b"content-encoding", b"").decode("latin-1").strip().lower()
        if coding and coding not in (*ACCEPTED, "identity"):
            raise BodyRefused(415, f"has Content-Encoding {coding[:40]!r}, expected {' or '.join(ACCEPTED)}")
        body = await self._receive_all(receive)
        if coding not in ACCEPTED:
            return body
        loop, limit = asyncio.get_running_loop(), self._limits.body_bytes
        try:
            return await loop.run_in_executor(self._executor, decompress, body, coding, limit)
        except TooLarge as error:
            raise self._too_large() from error

    async def _receive_all(self, receive: Receive) -> bytes:
        message = await receive()
        if message["type"] == "http.request" and not message.get("more_body"):
            return self._checked(message["body"])  # the common case, without a timer
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                while True:
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > self._limits.body_bytes:
                        raise self._too_large()
                    if not message.get("more_body"):
                        return b"".join(parts)
                    message = await receive()
        except TimeoutError as error:
            raise BodyRefused(408, f"is not complete after {self._limits.body_seconds:g} s") from error

    def _checked(self, body: bytes) -> bytes:
        if len(body) > self._limits.body_bytes:
            raise self._too_large()
        return body

    def _too_large(self) -> BodyRefused:
        return BodyRefused(413, f"is larger than {self._limits.body_bytes} bytes, the most that is accepted")


def header_length(headers: Mapping[bytes, bytes]) -> int | None:
    """The value of the Inference-Header-Content-Length header, None without it.

    Raises:
        MalformedMessage: not a number.
    """
    value = headers.get(b"inference-header-content-length")
    if value is None:
        return None
    if not value.isdigit() or len(value) > 12:
        shown = value[:40].decode("latin-1")
        raise MalformedMessage("header Inference-Header-Content-Length", f"is {shown!r}, expected a whole number")
    return int(value)
