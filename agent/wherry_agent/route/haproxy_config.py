"""What haproxy is told: its configuration for a set of slots, and a map of where each leads now. Pure.

The configuration changes with the slots only; the map changes with every turn, in the file and in every process that
runs, also in those that are leaving after a reload. A haproxy that starts by itself, after a boot or a crash, reads the
same file and leads callers where they belong while the agent is dead.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

HAPROXY_FOLDER = "haproxy"
"""In the state folder: all that haproxy is told by."""
CONFIG_FILE, MAP_FILE, LUA_FILE = "haproxy.cfg", "targets.map", "slots.lua"
MASTER_SOCKET, WORKER_SOCKET, PID_FILE = "master", "worker", "pid"

Side = Literal["a", "b"]
Targets = Mapping[int, int | None]
"""Stable port to the loopback port that it is turned to; None: callers wait."""

_LED = re.compile(r"(?P<stable>[0-9]{1,5}) (?P<side>[ab]):(?P<port>[0-9]{1,5}),[ab]:(?P<before>[0-9]{1,5})")


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much haproxy may take, and how long.

    Attributes:
        hold_seconds: how long a caller waits for a port that is turned to nothing; 503 after that.
        connections: open at a time, an equal share for each slot, so that no slot's callers shut out another's; more
            wait in the kernel.
        requests: at a time for one slot; more wait in haproxy: our model server's own queue holds 64.
    """

    hold_seconds: int = 60
    connections: int = 1000
    requests: int = 48


USUAL = Bounds()


@dataclass(frozen=True, slots=True)
class Led:
    """Where a slot leads, and where it led before: requests that are under way there are told apart by their side.

    Attributes:
        side: one of the two servers in haproxy's configuration.
        port: the container's; 0: callers wait.
        before: the port of the other side; 0 when there was none.
    """

    side: Side = "b"
    port: int = 0
    before: int = 0

    def turned(self, port: int | None) -> Led:
        """The same slot, turned to a port; None lets callers wait."""
        wanted = port or 0
        if wanted == self.port:
            return self
        if self.port == 0:  # nobody was let by on this side since it was the other one's turn
            return Led(self.side, wanted, self.before)
        return Led("b" if self.side == "a" else "a", wanted, self.port)


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
    stable: Iterable[int], addresses: Sequence[str], bounds: Bounds = USUAL, user: str = "", group: str = ""
) -> str:  # fmt: skip
    """The configuration file.

    Args:
        stable: the slots' ports.
        addresses: where callers reach them. One that is not there (yet) does no harm.
        bounds: limits.
        user: as whom the process that handles requests runs; empty when it cannot be chosen.
        group: its group.
    """
    ports = sorted(stable)
    who = f"    user {user}\n    group {group}\n" if user else ""
    return _text(structure(ports, addresses, bounds), who, ports, addresses, bounds)


def _text(name: str, who: str, ports: Sequence[int], addresses: Sequence[str], bounds: Bounds) -> str:
    share = max(bounds.connections // max(len(ports), 1), 1)
    return f"""# Written by wherry-agent, which replaces it when slots come and go; where they lead is in {MAP_FILE}.
global
    description {name}
{who}    nbthread 1
    maxconn {share * max(len(ports), 1)}
    # A request's head may be as long as usual servers take it.
    tune.bufsize 32768
    hard-stop-after 10m
    stats socket unix@{WORKER_SOCKET} mode 600 level admin expose-fd listeners
    lua-load {LUA_FILE}
defaults
    mode http
    # Callers who hung up wait no longer.
    option abortonclose
    # What goes to an image goes on a connection of its own: an image that closes idle ones fails nobody.
    option http-server-close
    # Nor does a reload: connections that are open are told with their next answer that they end.
    option idle-close-on-response
    retries 3
    # Who waits in the kernel.
    backlog 1024
    timeout connect 5s
    timeout client 10m
    timeout server 10m
    timeout tunnel 1h
    timeout queue {max(bounds.hold_seconds, 1)}s
    timeout http-request 1m
    timeout http-keep-alive 10m
{"".join(_slot(port, addresses, bounds, share) for port in ports)}"""


def _slot(stable: int, addresses: Sequence[str], bounds: Bounds, share: int) -> str:
    # Transparent: an address that is not there (yet) can be listened on.
    binds = "".join(f"    bind {address}:{stable} transparent\n" for address in addresses)
    return f"""
frontend in-{stable}
{binds}    maxconn {share}
    http-request lua.lead {stable} {bounds.hold_seconds}
    http-request return status 503 hdr Retry-After 5 unless {{ var(txn.port) -m found }}
    default_backend slot-{stable}
backend slot-{stable}
    # Past here it would be the image's failure that a caller hung up.
    no option abortonclose
    http-request set-dst ipv4(127.0.0.1)
    http-request set-dst-port var(txn.port)
    http-after-response set-var(txn.counted) lua.count
{"".join(_server(side, bounds) for side in ("a", "b"))}"""


def _server(side: Side, bounds: Bounds) -> str:
    # Who speaks HTTP/2 (gRPC does) speaks it with the image, too, as by the other way.
    return f"""    use-server {side}-h2 if {{ var(txn.side) -m str {side} }} {{ fc_http_major 2 }}
    use-server {side} if {{ var(txn.side) -m str {side} }}
    server {side} 0.0.0.0:0 maxconn {bounds.requests}
    server {side}-h2 0.0.0.0:0 maxconn {bounds.requests} proto h2
"""


def structure(stable: Iterable[int], addresses: Sequence[str], bounds: Bounds) -> str:
    """Names a configuration: a running haproxy of another one must load it anew."""
    told = _text("", "", sorted(stable), addresses, bounds)
    return "wherry-" + hashlib.sha256(told.encode()).hexdigest()[:16]


def render_map(led: Mapping[int, Led]) -> str:
    """The map file."""
    return "".join(f"{stable} {map_value(one)}\n" for stable, one in sorted(led.items()))


def map_value(led: Led) -> str:
    """Where a slot leads, as the map has it."""
    return f"{led.side}:{led.port},{'b' if led.side == 'a' else 'a'}:{led.before}"


def read_map(text: str) -> dict[int, Led]:
    """Where slots lead, by the map file, or by what `show map` says of it; lines that are not ours are left out."""
    found = {}
    for line in text.splitlines():
        match = _LED.search(line)
        if match:
            side: Side = "a" if match["side"] == "a" else "b"
            found[int(match["stable"])] = Led(side, int(match["port"]), int(match["before"]))
    return found


def turn(led: Mapping[int, Led], targets: Targets) -> dict[int, Led]:
    """The map for other targets."""
    return {stable: led.get(stable, Led()).turned(port) for stable, port in targets.items()}


def targets_of(led: Mapping[int, Led]) -> dict[int, int | None]:
    """Where slots lead; None where callers wait."""
    return {stable: one.port or None for stable, one in led.items()}


def servers_of(led: Mapping[int, Led], port: int) -> set[tuple[str, str]]:
    """Backend and server by which requests go, or went, to a container's port."""
    other: dict[Side, Side] = {"a": "b", "b": "a"}
    now = {(stable, one.side) for stable, one in led.items() if one.port == port}
    found = now | {(stable, other[one.side]) for stable, one in led.items() if one.before == port}
    return {(f"slot-{stable}", f"{side}{speech}") for stable, side in found for speech in ("", "-h2")}


def read_open(text: str, servers: Iterable[tuple[str, str]]) -> int:
    """Requests that wait for these servers or are being answered, by `show stat`: names are in its first line."""
    lines, wanted = text.splitlines(), set(servers)
    names = lines[0].removeprefix("# ").split(",") if lines else []
    rows = [dict(zip(names, line.split(","), strict=False)) for line in lines[1:]]
    mine = [row for row in rows if (row.get("pxname"), row.get("svname")) in wanted]
    return sum(int(row.get("scur") or 0) + int(row.get("qcur") or 0) for row in mine)


def read_listened(text: str) -> set[int]:
    """Slots' ports that a process listens on, by `show stat`: also those that its map has lost."""
    return {int(port) for port in re.findall(r"^in-([0-9]+),FRONTEND,", text, re.MULTILINE)}


def read_answers(text: str, port: int, instance: str) -> Answers:
    """What `show answers` says of a container's port; nothing was counted when it is not there."""
    for line in text.splitlines():
        words = line.split()
        if len(words) == 5 and words[0] == str(port):
            latency = tuple(int(count) for count in words[4].split(","))
            return Answers(instance, int(words[1]), int(words[2]), int(words[3]), latency)
    return Answers(instance)
