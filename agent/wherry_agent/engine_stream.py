"""One HTTP call to the engine over a socket that is watched: cancelled, silent or late, it is closed.

The SDK cannot give up a call whose answer takes minutes; the engine drops what nobody waits for any more.
"""

from __future__ import annotations

import http.client
import io
import json
import select
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from wherry.errors import EngineError, WherryError
from wherry_agent.ports import Cancel

_LOOK_SECONDS = 0.25
Late = Callable[[str, bool], WherryError]
"""Makes the error of a call that is silent, or (False) takes too long."""


@contextmanager
def engine_call(
    url: str,
    method: str,
    path: str,
    headers: Mapping[str, str],
    thing: str,
    cancel: Cancel,
    limits: tuple[float, float],
    late: Late,
) -> Iterator[http.client.HTTPResponse]:
    """The answer of a call, whatever its status; its body is read while the socket is watched.

    Args:
        url: the engine's address.
        method: of HTTP.
        path: with its query.
        headers: besides the usual.
        thing: what is asked for, to name it in errors.
        cancel: asks to give way.
        limits: seconds of the longest silence, and of the longest call.
        late: makes the error when one of the two has passed.

    Raises:
        EngineError: the engine cannot be reached, or broke off.
        StepCancelled: asked to give way.
    """
    cancel.check()
    watched = _Watched(cancel, *limits, late)
    length = {"Content-Length": "0"} if method == "POST" else {}
    connection = http.client.HTTPConnection("engine")
    try:
        connection.sock = watched.connect(url)
        connection.request(method, path, headers={**length, **headers})
        yield connection.getresponse()
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise EngineError(thing, f"the engine broke off ({error})") from error
    finally:
        watched.close()


def message(response: http.client.HTTPResponse) -> str:
    """The engine's words when it refuses."""
    body = response.read(65_536)
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode("utf-8", "replace")


class _Watched(io.RawIOBase):
    """Reads the engine's socket while looking at cancellation, silence and the deadline."""

    def __init__(self, cancel: Cancel, stall: float, deadline: float, late: Late) -> None:
        self._cancel = cancel
        self._stall = stall
        self._until = time.monotonic() + deadline
        self._deadline = deadline
        self._late = late
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
                raise self._late(f"took more than {self._deadline:.0f} s", False)
            if now - quiet_since > self._stall:
                raise self._late(f"sent nothing for {self._stall:.0f} s", True)
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
