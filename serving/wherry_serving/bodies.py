"""Reading a request's body from ASGI: bounded in bytes, in time, and over all requests together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Self

from wherry.errors import AdmissionError, MalformedMessage, WherryError
from wherry_serving.codings import ACCEPTED, TooLarge, decompress

Receive = Callable[[], Awaitable[Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of what clients may make the server hold.

    Attributes:
        body_bytes: of one body, packed and unpacked.
        inflight_bytes: of all bodies that are being read or wait in the queue.
        header_seconds: from the first byte of a request to the end of its headers.
        body_seconds: from there to the end of its body.
    """

    body_bytes: int = 64 << 20
    inflight_bytes: int = 128 << 20
    header_seconds: float = 20.0
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


class Hold:
    """What one request holds of the bytes that all requests together may hold."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self._size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bodies.inflight -= self._size
        self._size = 0

    def take(self, size: int) -> None:
        """Hold `size` bytes more. A request that is alone is never refused: it is bounded by itself.

        Raises:
            AdmissionError: all requests together would hold too much.
        """
        bodies = self._bodies
        others = bodies.inflight - self._size
        if others and bodies.inflight + size > bodies.limits.inflight_bytes:
            raise AdmissionError("request body", "does not fit beside the others now", "Send it again later")
        bodies.inflight += size
        self._size += size


class Bodies:
    """Reads bodies within the limits.

    Args:
        limits: the bounds.
        executor: runs decompression, so that the event loop is free meanwhile.
    """

    def __init__(self, limits: Limits, executor: Executor) -> None:
        self.limits = limits
        self.inflight = 0
        self._executor = executor

    async def read(self, headers: Mapping[bytes, bytes], receive: Receive, hold: Hold) -> bytes:
        """The body, unpacked.

        Raises:
            BodyRefused: too large, too slow, or of a coding that is not known.
            AdmissionError: there is no room for it beside the others.
            MalformedMessage: not of the coding that its header says.
            ClientGone: the client left.
        """
        coding = headers.get(b"content-encoding", b"").decode("latin-1").strip().lower()
        if coding and coding not in (*ACCEPTED, "identity"):
            raise BodyRefused(415, f"has Content-Encoding {coding[:40]!r}, expected {' or '.join(ACCEPTED)}")
        length = headers.get(b"content-length", b"")
        if length.isdigit():  # HTTP parsers let no body be longer than it says
            self._check(int(length))
            hold.take(int(length))
        body = await self._receive_all(receive, hold, counted=length.isdigit())
        if coding not in ACCEPTED:
            return body
        loop, limit = asyncio.get_running_loop(), self.limits.body_bytes
        try:
            body = await loop.run_in_executor(self._executor, decompress, body, coding, limit)
        except TooLarge as error:
            raise self._too_large() from error
        hold.take(len(body))
        return body

    async def _receive_all(self, receive: Receive, hold: Hold, counted: bool) -> bytes:
        parts: list[bytes] = []
        size, more = 0, True
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    part, more = message.get("body", b""), message.get("more_body", False)
                    size += len(part)
                    self._check(size)
                    if not counted:
                        hold.take(len(part))
                    parts.append(part)
        except TimeoutError as error:
            raise BodyRefused(408, f"is not complete after {self.limits.body_seconds:g} s") from error
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _check(self, size: int) -> None:
        if size > self.limits.body_bytes:
            raise self._too_large()

    def _too_large(self) -> BodyRefused:
        return BodyRefused(413, f"is larger than {self.limits.body_bytes} bytes, the most that is accepted")


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
