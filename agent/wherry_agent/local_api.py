"""For applications on the device: which release serves, since when, and the update lock. HTTP on a Unix socket.

```
curl --unix-socket /var/lib/wherry/local.sock http://wherry/v1/slots
```

| request | answer |
|---|---|
| `GET /v1/slots` | `{"slots": [{"slot", "url", "serving": {"model", "version", …}, "since", "healthy", "phase"}]}` |
| `GET /v1/slots/SLOT` | one of them |
| `GET /v1/lock` | `{"lock": {"holder", "reason", "expires"}}`, or `{"lock": null}` |
| `PUT /v1/lock` | body `{"holder": "inspection", "reason": "…", "minutes": 30}`: hold off swaps, 24 hours at most |
| `DELETE /v1/lock` | let swaps happen again |

Every program of the device may read. Only root, the agent's own user and members of the group that the setting
`local_group` names may lock. Errors are `{"error": {"code", "thing", "reason", "fix"}}`, as the server's are.
Eight requests at a time, two of one user, each sent within three seconds; one more is closed at once.
"""

from __future__ import annotations

import grp
import io
import json
import logging
import os
import pwd
import socket
import stat
import struct
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import Any

from wherry.errors import ConfigError, InputError, NotAllowed, NotFound, StoreError, WherryError
from wherry.messages import SlotReport, StateReport
from wherry_agent.update_lock import LockFile

SOCKET_NAME = "local.sock"
_AT_ONCE = 8
_OF_ONE_USER = 2
_SECONDS = 3.0
_MOST_BYTES = 4096
_PEER = struct.Struct("3i")
_STATUS: dict[type[WherryError], int] = {NotFound: 404, NotAllowed: 403, InputError: 400, StoreError: 507}
_log = logging.getLogger(__name__)

Peer = tuple[int, int]
"""User and group id of a program, as the kernel names them."""


def slot_document(slot: SlotReport) -> dict[str, Any]:
    """A slot as applications see it."""
    return {
        "slot": slot.slot,
        "url": f"http://127.0.0.1:{slot.port}",
        "port": slot.port,
        "serving": slot.serving.model_dump(mode="json") if slot.serving else None,
        "since": slot.since.isoformat() if slot.since else None,
        "healthy": slot.healthy,
        "phase": slot.deployment.phase if slot.deployment else None,
    }


class LocalApi:
    """Answers from the newest report, so that no question reaches engine or network.

    Args:
        state: the agent's state folder; the socket is in it.
        lock: the update lock.
        group: whose members may lock besides root; empty for nobody.
        clock: the time now.
    """

    def __init__(self, state: Path, lock: LockFile, group: str, clock: Callable[[], datetime]) -> None:
        self._path = state / SOCKET_NAME
        self._lock = lock
        self._group = _group_id(group)
        self._clock = clock
        self._newest: StateReport | None = None
        self._server: _Server | None = None
        self._stopping = False

    def publish(self, report: StateReport) -> None:
        """Answer from this report from now on."""
        self._newest = report

    def start(self) -> None:
        """Listen.

        Raises:
            StoreError: the socket cannot be made.
        """
        try:
            self._path.unlink(missing_ok=True)
            # The folder may be walked through; its other files are for the agent alone.
            self._path.parent.chmod(stat.S_IMODE(self._path.parent.stat().st_mode) | 0o011)
            self._server = _Server(self._path, self)
            self._path.chmod(0o666)
        except OSError as error:
            raise StoreError(f"local API at {self._path}", f"cannot listen ({error})") from error
        self._thread = threading.Thread(target=self._serve, name="wherry-local-api", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        """One request after the other is taken in; between them the thread sleeps, without looking at a clock."""
        while self._server is not None and not self._stopping:
            self._server.handle_request()

    def stop(self) -> None:
        """Listen no more."""
        if self._server is None:
            return
        self._stopping = True
        with suppress(OSError), socket.socket(socket.AF_UNIX) as wake:
            wake.settimeout(1.0)
            wake.connect(str(self._path))
        self._thread.join(2.0)
        self._server.server_close()
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    def answer(self, method: str, path: str, body: bytes, peer: Peer) -> dict[str, Any]:
        """The document that answers a request.

        Args:
            method: of HTTP.
            path: of the request.
            body: of the request.
            peer: user and group id of the program that asks.

        Raises:
            WherryError: why there is none.
        """
        parts = path.split("?")[0].strip("/").split("/")
        if method == "GET" and parts[:2] == ["v1", "slots"] and len(parts) <= 3:
            return self._slots(*parts[2:])
        if parts == ["v1", "lock"]:
            if method == "GET":
                return self._locked()
            self._may_lock(peer)
            return self._hold(body) if method == "PUT" else self._release()
        raise NotFound(f"{method} {path[:80]}", "does not exist", "Ask for /v1/slots, /v1/slots/SLOT or /v1/lock")

    def _slots(self, name: str = "") -> dict[str, Any]:
        slots = [slot for slot in self._newest.slots if slot.port] if self._newest else []  # the agent's own has none
        if not name:
            return {"slots": [slot_document(slot) for slot in slots]}
        for slot in slots:
            if slot.slot == name:
                return slot_document(slot)
        raise NotFound(f"slot {name[:64]}", "is not on this device", "Ask for /v1/slots")

    def _locked(self) -> dict[str, Any]:
        lock = self._lock.read(self._clock())
        return {"lock": lock.model_dump(mode="json") if lock else None}

    def _hold(self, body: bytes) -> dict[str, Any]:
        try:
            asked = json.loads(body or b"{}")
            # Joined to "", so that only text passes.
            holder, reason = "" + asked["holder"], "" + asked.get("reason", "")
            length = timedelta(minutes=float(asked.get("minutes", 60)))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            raise InputError(
                "body of PUT /v1/lock", "is not a lock", 'Send {"holder": NAME, "reason": TEXT, "minutes": NUMBER}'
            ) from None
        lock = self._lock.hold(holder, reason, length, self._clock())
        return {"lock": lock.model_dump(mode="json")}

    def _release(self) -> dict[str, Any]:
        self._lock.release()
        return {"lock": None}

    def _may_lock(self, peer: Peer) -> None:
        user, group = peer
        if user in (0, os.geteuid()):
            return
        groups = {group}
        with suppress(KeyError, OSError):
            groups |= set(os.getgrouplist(pwd.getpwuid(user).pw_name, group))
        if self._group not in groups:
            raise NotAllowed(
                "update lock",
                f"user {user} may not change it",
                "Name a group of that user as local_group in agent.toml",
            )


def _group_id(name: str) -> int | None:
    if not name:
        return None
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise ConfigError("setting local_group", f"there is no group {name!r} on this device") from None


class _Room:
    """How many requests are under way, in all and of each user: one program cannot keep the others out."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._inside: dict[object, int] = {}

    def enter(self, connection: object, user: int) -> bool:
        with self._guard:
            users = list(self._inside.values())
            if len(users) >= _AT_ONCE or users.count(user) >= _OF_ONE_USER:
                return False
            self._inside[connection] = user
            return True

    def leave(self, connection: object) -> None:
        """Also for one that has left."""
        with self._guard:
            self._inside.pop(connection, None)


class _Server(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 16

    def __init__(self, path: Path, api: LocalApi) -> None:
        self.api = api
        self.room = _Room()
        super().__init__(str(path), _Handler)

    def get_request(self) -> tuple[socket.socket, Peer]:
        connection, _ = self.socket.accept()
        _, user, group = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        return connection, (user, group)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        return self.room.enter(request, client_address[0])

    def process_request(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread can be started
            self.room.leave(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.room.leave(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - as socketserver calls it
        # A line for each would let any user of the device fill the log.
        _log.debug("a local request broke off: %s", sys.exc_info()[1])


class _Hurried(io.RawIOBase):
    """Reads from a connection until a moment; a peer that sends byte after byte gains nothing by it."""

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        self._connection = connection
        self._until = time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    client_address: Peer  # type: ignore[assignment]  # of a Unix socket
    timeout = _SECONDS
    server_version = "wherry-agent"
    sys_version = ""

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(_Hurried(self.connection, _SECONDS))

    def _answer(self) -> None:
        try:
            length = int(self.headers.get("Content-Length") or 0)
            if not 0 <= length <= _MOST_BYTES:
                self.rfile.read(max(0, min(length, 16 * _MOST_BYTES)))  # a peer that still sends reads no answer
                raise InputError("request", f"is longer than {_MOST_BYTES} bytes")
            body = self.rfile.read(length) if length else b""
            document = self.server.api.answer(self.command, self.path, body, self.client_address)
            status = 200
        except WherryError as error:
            found = (code for kind, code in _STATUS.items() if isinstance(error, kind))
            status, document = next(found, 500), {"error": error.as_dict()}
        except ValueError:
            status, document = 400, {"error": InputError("request", "has no usable Content-Length").as_dict()}
        content = json.dumps(document).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.server.room.leave(self.connection)  # before the peer can know that it may ask again
        self.wfile.write(content)

    do_GET = do_PUT = do_DELETE = _answer  # noqa: N815 - as http.server calls them

    def address_string(self) -> str:
        return "local"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Requests are not logged: a camera asks every second."""
