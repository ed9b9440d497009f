"""Tells systemd how the agent is: ready, alive, and a line for `systemctl status`. Nothing happens elsewhere."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress


class ServiceManager:
    """The socket that systemd names in NOTIFY_SOCKET, or nobody.

    `alive` comes from the control loop itself, so that a loop that hangs is noticed and started anew.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        name = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + name[1:] if name.startswith("@") else name
        self._status = ""

    def ready(self) -> None:
        """The agent has begun its work."""
        self._send("READY=1")

    def alive(self, status: str) -> None:
        """The control loop turned; `status` is told when it changed."""
        changed, self._status = status != self._status, status
        self._send(f"WATCHDOG=1\nSTATUS={status}" if changed else "WATCHDOG=1")

    def stopping(self) -> None:
        """The agent ends by itself."""
        self._send("STOPPING=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
            out.settimeout(1.0)
            out.sendto(message.encode(), self._address)
