"""HTTP connections: uvicorn's, with a deadline for a request's headers and one write an answer.

Bodies have their deadline in `wherry_serving.bodies`.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, TimerHandle, Transport
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

_TOO_SLOW = b'{"error":"request headers: are not complete in time"}'
_ANSWER = (
    b"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n" % len(_TOO_SLOW)
) + _TOO_SLOW


class OneWrite:
    """A transport that sends the head of an answer together with its body: each write wakes the client once.

    Args:
        transport: the connection's.
        answering: whether what is written now is the head of an answer, which more follows.
    """

    def __init__(self, transport: Any, answering: Callable[[], bool]) -> None:
        self._transport = transport
        self._answering = answering
        self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send, or hold what more follows."""
        if self._head:
            head, self._head = self._head, b""
            self._transport.writelines((head, data))
        elif self._answering():
            self._head = data
        else:
            self._transport.write(data)

    def flush(self) -> None:
        """Send what is held: nothing more followed."""
        if self._head:
            self.write(b"")

    def close(self) -> None:
        """Send what is held and close."""
        self.flush()
        self._transport.close()


class Connection(HttpToolsProtocol):
    """One client's connection.

    A request that arrives whole, as nearly all do, sets no timer. One that arrives in parts has `header_seconds`
    from its first byte to the end of its headers, however it drips; so has a new connection for its first byte.
    """

    def __init__(
        self,
        header_seconds: float,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._header_seconds = header_seconds
        self._deadline: TimerHandle | None = None
        self._in_headers = True

    def connection_made(self, transport: Any) -> None:
        """See `asyncio.Protocol`."""
        self._out = OneWrite(transport, lambda: self.cycle is not None and self.cycle.response_started)
        super().connection_made(cast(Transport, self._out))
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._in_headers = False
        self._watch()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        super().data_received(data)
        if self._in_headers or self._deadline is not None:
            self._watch()

    def on_message_begin(self) -> None:
        """The parser met the first byte of a request."""
        self._in_headers = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The parser met the end of a request's headers."""
        self._in_headers = False
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """An answer has been written."""
        self._out.flush()
        super().on_response_complete()

    def _watch(self) -> None:
        if not self._in_headers and self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        elif self._in_headers and self._deadline is None:
            self._deadline = self.loop.call_later(self._header_seconds, self._too_slow)

    def _too_slow(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(_ANSWER)
            self.transport.close()


def connections(header_seconds: float) -> Any:
    """What uvicorn is given to make connections with; its type says a class, it calls it with names."""
    return partial(Connection, header_seconds)
