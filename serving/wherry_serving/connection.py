"""HTTP connections: uvicorn's, with a deadline for a request's headers. Bodies have theirs in `bodies`."""

from __future__ import annotations

from asyncio import AbstractEventLoop, TimerHandle
from functools import partial
from typing import Any

from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

_TOO_SLOW = b'{"error":"request headers: are not complete in time"}'
_ANSWER = (
    b"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n" % len(_TOO_SLOW)
) + _TOO_SLOW


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
        super().connection_made(transport)
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
