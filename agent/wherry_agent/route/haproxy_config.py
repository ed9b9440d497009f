"""What haproxy is told: its configuration for a set of slots, and what to change in one that runs. Pure.

The configuration holds the present targets, so that a haproxy that starts by itself, after a boot or a crash, leads
callers where they belong while the agent is dead. Its first line says the same for programs to read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

HAPROXY_FOLDER = "haproxy"
"""In the state folder: all that haproxy is told by."""
CONFIG_FILE, LUA_FILE, MASTER_SOCKET, WORKER_SOCKET = "haproxy.cfg", "slots.lua", "master", "worker"
_HEAD = "# wherry "
_NOWHERE = 1
"""Port of a server that is not used: haproxy wants one."""

Targets = Mapping[int, int | None]
"""Stable port to the loopback port that it is turned to; None: callers wait."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much haproxy may take, and how long.

    Attributes:
        hold_seconds: how long a caller waits for a port that is turned to nothing; 503 after that.
        connections: open at a time; more wait in the kernel.
        requests: at a time for one slot; more wait in haproxy: our model server's own queue holds 64.
    """

    hold_seconds: int = 60
    connections: int = 1000
    requests: int = 48


USUAL = Bounds()


@dataclass(frozen=True, slots=True)
class ServerState:
    """A server line of a slot as a running haproxy has it."""

    stable: int
    name: str
    port: int
    ready: bool


@dataclass(frozen=True, slots=True)
class Answers:
    """What haproxy counted of an image's answers; failures are those of status 500 and above, and none at all.

    Attributes:
        instance: the process that counts: another one begins at zero.
    """

    instance: str
    requests: int = 0
    failures: int = 0
    latency_sum_us: int = 0
    latency: tuple[int, ...] = ()

    def document(self, model: str) -> dict[str, Any]:
        """As the model's own server would tell it (`wherry_agent.counters` reads it)."""
        counts = {"success": {"count": self.requests}, "fail": {"count": self.failures}}
        more = {"latency": list(self.latency), "latency_sum_us": self.latency_sum_us, "instance": self.instance}
        return {"model_stats": [{"name": model, "inference_stats": counts, "wherry": more}]}


def render(
    targets: Targets, addresses: Sequence[str], bounds: Bounds = USUAL, user: str = "", group: str = ""
) -> str:  # fmt: skip
    """The configuration file.

    Args:
        targets: where each stable port leads.
        addresses: where callers reach stable ports. One that is not there (yet) does no harm.
        bounds: limits.
        user: as whom the process that handles requests runs; empty when it cannot be chosen.
        group: its group.
    """
    slots = "".join(_slot(stable, port, addresses, bounds) for stable, port in sorted(targets.items()))
    who = f"    user {user}\n    group {group}\n" if user else ""
    return f"""{_HEAD}{json.dumps(dict(sorted(targets.items())))}
# Written by wherry-agent, which replaces it whenever a slot's port is turned.
global
    description {structure(targets, addresses, bounds)}
{who}    nbthread 1
    maxconn {bounds.connections}
    hard-stop-after 10m
    stats socket unix@{WORKER_SOCKET} mode 600 level admin expose-fd listeners
    lua-load {LUA_FILE}
defaults
    mode http
    # What goes to an image goes on a connection of its own: an image that closes idle ones fails nobody.
    option http-server-close
    option idle-close-on-response
    option redispatch
    retries 3
    timeout connect 5s
    timeout client 10m
    timeout server 10m
    timeout tunnel 1h
    timeout queue {bounds.hold_seconds}s
    timeout http-request 1m
    timeout http-keep-alive 10m
{slots}"""


def _slot(stable: int, port: int | None, addresses: Sequence[str], bounds: Bounds) -> str:
    # Transparent: an address that is not there (yet) can be listened on.
    binds = "".join(f"    bind {address}:{stable} transparent\n" for address in addresses)
    first = f"127.0.0.1:{port or _NOWHERE} maxconn {bounds.requests}" + ("" if port else " disabled")
    return f"""
frontend in-{stable}
{binds}    default_backend slot-{stable}
backend slot-{stable}
    http-request lua.hold {bounds.hold_seconds} if {{ nbsrv eq 0 }}
    http-request return status 503 hdr Retry-After 5 if {{ nbsrv eq 0 }}
    http-request set-var(txn.began) lua.now_us
    http-after-response set-var(txn.counted) lua.count
    server a {first}
    server b 127.0.0.1:{_NOWHERE} maxconn {bounds.requests} disabled
"""


def structure(targets: Targets, addresses: Sequence[str], bounds: Bounds) -> str:
    """Names all of a configuration but its targets: a running haproxy of another structure must load it anew."""
    told = repr((sorted(targets), list(addresses), bounds, _slot(1, None, (), bounds)))
    return "wherry-" + hashlib.sha256(told.encode()).hexdigest()[:16]


def read_targets(text: str) -> dict[int, int | None]:
    """The targets in a configuration file; none when it is not one of ours."""
    head = text.partition("\n")[0]
    try:
        found = json.loads(head.removeprefix(_HEAD)) if head.startswith(_HEAD) else {}
        return {int(stable): None if port is None else int(port) for stable, port in found.items()}
    except (ValueError, TypeError, AttributeError):
        return {}


def read_servers(text: str) -> list[ServerState]:
    """What `show servers state` says of our slots."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) < 19 or not words[1].startswith("slot-"):
            continue
        found.append(ServerState(int(words[1][5:]), words[3], int(words[18]), words[5] == "2"))
    return found


def read_answers(text: str, port: int, instance: str) -> Answers:
    """What `show answers` says of a container's port; nothing was counted when it is not there."""
    for line in text.splitlines():
        words = line.split()
        if len(words) == 6 and words[1] == f"127.0.0.1:{port}":
            latency = tuple(int(count) for count in words[5].split(","))
            return Answers(instance, int(words[2]), int(words[3]), int(words[4]), latency)
    return Answers(instance)


def targets_of(servers: Sequence[ServerState]) -> dict[int, int | None]:
    """Where a running haproxy leads: to the one server of a slot that is ready; with both it is half way: nowhere."""
    found: dict[int, int | None] = {}
    for stable in {server.stable for server in servers}:
        ready = [server.port for server in servers if server.stable == stable and server.ready]
        found[stable] = ready[0] if len(ready) == 1 else None
    return found


def changes(servers: Sequence[ServerState], targets: Targets) -> Iterator[str]:
    """Commands that turn a running haproxy's slots to their targets: the new server first, then the old one rests.

    Requests that the old one has begun to answer are let finish.
    """
    for stable, port in sorted(targets.items()):
        mine = [server for server in servers if server.stable == stable]
        if not mine:
            continue
        chosen = _chosen(mine, port)
        if chosen and not (chosen.ready and chosen.port == port):
            yield f"set server slot-{stable}/{chosen.name} addr 127.0.0.1 port {port}"
            yield f"set server slot-{stable}/{chosen.name} state ready"
        yield from (
            f"set server slot-{stable}/{server.name} state maint"
            for server in mine
            if server is not chosen and server.ready
        )


def _chosen(servers: Sequence[ServerState], port: int | None) -> ServerState | None:
    """The server that is to lead to a port: the one that does, else one that rests."""
    if port is None:
        return None
    there = [server for server in servers if server.ready and server.port == port]
    return (there or [server for server in servers if not server.ready] or [servers[-1]])[0]
