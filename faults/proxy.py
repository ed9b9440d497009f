"""A relay between two programs that can stall, cut, drip, corrupt, refuse, or answer by itself."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

Address = int | Path
_RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Trouble:
    """What a relay does to a connection.

    Attributes:
        when: bytes that the request must contain for the trouble to befall its connection; empty for all.
        times: how many connections it befalls; later ones pass.
        refuse: reset at once.
        stall: nothing passes any more, in either direction, and nothing is closed (half-open).
        cut: bytes of answer after which the connection is reset.
        bytes_per_second: 0 for as fast as it goes.
        flip: offset of the answer's byte in which one bit is turned over.
        edit: changes each piece of a request.
        answer: gives the answer's bytes instead of the program behind the relay.
    """

    when: bytes = b""
    times: int = 1_000_000
    refuse: bool = False
    stall: bool = False
    cut: int | None = None
    bytes_per_second: int = 0
    flip: int | None = None
    edit: Callable[[bytes], bytes] | None = None
    answer: Callable[[bytes], Iterable[bytes]] | None = None


def _open(address: Address, listen: bool) -> socket.socket:
    if isinstance(address, Path):
        one = socket.socket(socket.AF_UNIX)
        place: tuple[str, int] | str = str(address)
        if listen:
            address.unlink(missing_ok=True)
    else:
        one = socket.socket()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place = ("127.0.0.1", address)
    if listen:
        one.bind(place)
        one.listen(256)
    else:
        one.connect(place)
    return one


class Proxy:
    """Relays connections from one address to another.

    Attributes:
        hits: connections that met trouble.
    """

    def __init__(self, listen: Address, target: Address) -> None:
        self._target = target
        self._trouble: Trouble | None = None
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self.hits = 0
        self._listener = _open(listen, listen=True)
        threading.Thread(target=self._accept, daemon=True).start()

    def trouble(self, trouble: Trouble | None) -> None:
        """From now on new connections, and stalls also old ones, meet this; None heals."""
        with self._lock:
            self._trouble, self.hits = trouble, 0

    def break_all(self) -> None:
        """Reset every connection that is open now."""
        with self._lock:
            found, self._connections = list(self._connections), set()
        for one in found:
            _reset(one)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with self._lock:
            self._connections.add(client)
        try:
            self._relay(client)
        except _EndError:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_WR)
        except (OSError, ValueError):  # it was closed under us by `break_all`
            _reset(client)
        finally:
            with self._lock:
                self._connections.discard(client)
            with contextlib.suppress(OSError):
                client.close()

    def _hit(self, request: bytes) -> Trouble | None:
        """The trouble that befalls a connection with this request, counted."""
        with self._lock:
            found = self._trouble
            if found is None or found.when not in request or self.hits >= found.times:
                return None
            self.hits += 1
            return found

    def _stalls(self) -> bool:
        found = self._trouble
        return found is not None and found.stall and not found.when and self.hits < found.times

    def _relay(self, client: socket.socket) -> None:
        immediate = self._trouble
        if immediate is not None and immediate.refuse and not immediate.when and self._hit(b""):
            raise OSError("refused")
        server = _open(self._target, listen=False)
        with server:
            _Relay(client, server, self._hit, self._stalls).run()


class _Relay:
    """One connection."""

    def __init__(
        self,
        client: socket.socket,
        server: socket.socket,
        hit: Callable[[bytes], Trouble | None],
        stalls: Callable[[], bool],
    ) -> None:
        self._client = client
        self._server = server
        self._hit = hit
        self._stalls = stalls
        self._met: Trouble | None = None
        self._answered = 0

    def run(self) -> None:
        """Pass bytes until an end closes, or trouble says otherwise."""
        ends = [self._client, self._server]
        counted = False
        while ends:
            if self._stalls() or (self._met is not None and self._met.stall):
                counted = counted or self._met is not None or self._hit(b"") is not None
                if self._abandoned():
                    return
                continue
            ready = select.select(ends, [], [], 0.1)[0]
            if self._stalls():
                continue
            for one in ready:
                piece = one.recv(65536)
                if not piece:
                    ends.remove(one)
                    other = self._server if one is self._client else self._client
                    with contextlib.suppress(OSError):
                        other.shutdown(socket.SHUT_WR)
                    if one is self._server:
                        return
                elif one is self._client:
                    self._request(piece)
                else:
                    self._answer(piece)

    def _abandoned(self) -> bool:
        """Whether the client of a stalled connection gave up."""
        time.sleep(0.05)
        return bool(select.select([self._client], [], [], 0)[0]) and not self._client.recv(1, socket.MSG_PEEK)

    def _request(self, piece: bytes) -> None:
        met = self._hit(piece)
        if met is not None:
            self._met, self._answered = met, 0
            if met.refuse:
                raise OSError("refused")
            if met.answer is not None:
                for part in met.answer(piece):
                    self._client.sendall(part)
                    if met.bytes_per_second:
                        time.sleep(len(part) / met.bytes_per_second)
                raise _EndError
            if met.edit is not None:
                piece = met.edit(piece)
        self._server.sendall(piece)

    def _answer(self, piece: bytes) -> None:
        met = self._met
        if met is None:
            self._client.sendall(piece)
            return
        if met.flip is not None and self._answered <= met.flip < self._answered + len(piece):
            changed = bytearray(piece)
            changed[met.flip - self._answered] ^= 1
            piece = bytes(changed)
        if met.cut is not None and self._answered + len(piece) >= met.cut:
            self._client.sendall(piece[: max(0, met.cut - self._answered)])
            raise OSError("cut")
        self._answered += len(piece)
        if met.bytes_per_second:
            step = max(1, met.bytes_per_second // 10)
            for begin in range(0, len(piece), step):
                self._client.sendall(piece[begin : begin + step])
                time.sleep(0.1)
            return
        self._client.sendall(piece)


class _EndError(OSError):
    """The relay answered by itself; the connection is over."""


def _reset(one: socket.socket) -> None:
    """Close so that the peer sees a reset, not an end."""
    with contextlib.suppress(OSError):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(OSError):
        one.close()
