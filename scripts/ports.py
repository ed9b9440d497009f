"""Ports for labs and tests, from below the range that the kernel gives to outgoing connections.

A port that was free a second ago then stays free until it is used, whatever connects meanwhile. (Within that range, who
asks a port of this machine again and again until somebody answers may be given that very port to ask from, reaches
himself, and keeps the server from ever listening there.)
"""

from __future__ import annotations

import random
import socket

_FIRST, _LAST = 20_000, 32_000


def free_ports(count: int) -> list[int]:
    """Loopback ports that nothing uses now, all different."""
    found: list[int] = []
    for port in random.sample(range(_FIRST, _LAST), _LAST - _FIRST):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                continue
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise OSError(f"no {count} free ports between {_FIRST} and {_LAST}")


def free_port() -> int:
    """A loopback port that nothing uses now."""
    return free_ports(1)[0]
