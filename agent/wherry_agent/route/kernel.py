"""Slots' stable ports by an nftables redirect: nothing in the data path, works while the agent is dead.

The agent has a table of its own and replaces it in one transaction. Connection tracking keeps
connections that exist on the container they reached; new ones go where the table says.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from typing import Any

from wherry.errors import RouteError

_PRIORITY = -110
"""Just before Docker's own address translation (-100), whose tables stay untouched."""


class KernelRoute:
    """Implements `ports.Route`.

    Args:
        table: name of the table, in family ip.
        addresses: where callers reach the stable ports: loopback, and addresses of this host that other
            containers or machines use, if they are told to.
        timeout: seconds that `nft` may take.
    """

    def __init__(
        self, table: str = "wherry", addresses: tuple[str, ...] = ("127.0.0.1",), timeout: float = 10.0
    ) -> None:  # fmt: skip
        self._table = table
        self._addresses = addresses
        self._timeout = timeout

    def read(self) -> Mapping[int, int]:
        """Stable port to the port it is turned to, from the kernel. Empty when there is no table."""
        done = self._nft("-j", "list", "table", "ip", self._table)
        if done.returncode != 0:
            if "No such file" in done.stderr:
                return {}
            raise RouteError(
                f"nftables table {self._table}", done.stderr.strip() or f"nft ended with {done.returncode}"
            )
        try:
            return dict(_redirects(json.loads(done.stdout)["nftables"]))
        except (ValueError, KeyError, TypeError) as error:
            raise RouteError(f"nftables table {self._table}", f"nft listed something unknown ({error!r})") from error

    def apply(self, routes: Mapping[int, int]) -> None:
        """Replace the table, in one transaction."""
        done = self._nft("-f", "-", text=self._script(routes))
        if done.returncode != 0:
            raise RouteError(f"nftables table {self._table}", done.stderr.strip().splitlines()[0])

    def try_out(self) -> None:
        """See whether the table could be made: it is made and removed in one transaction, so it is never there."""
        done = self._nft("-f", "-", text=f"{self._script({1: 2})}delete table ip {self._table}\n")
        if done.returncode != 0:
            raise RouteError(f"nftables table {self._table}", (done.stderr.strip().splitlines() or ["no reason"])[0])

    def clear(self) -> None:
        """Remove the table."""
        done = self._nft("-f", "-", text=f"table ip {self._table}\ndelete table ip {self._table}\n")
        if done.returncode != 0:
            raise RouteError(f"nftables table {self._table}", done.stderr.strip().splitlines()[0])

    def _script(self, routes: Mapping[int, int]) -> str:
        where = "{ " + ", ".join(self._addresses) + " }"
        rules = "\n".join(
            f"        ip daddr {where} tcp dport {stable} counter redirect to :{port}"
            for stable, port in sorted(routes.items())
        )
        hooks = ["output"] if len(self._addresses) == 1 else ["output", "prerouting"]
        chains = "".join(
            f"    chain {hook} {{\n        type nat hook {hook} priority {_PRIORITY};\n{rules}\n    }}\n"
            for hook in hooks
        )
        # `table` before `delete` makes the deletion of an absent table no error.
        return f"table ip {self._table}\ndelete table ip {self._table}\ntable ip {self._table} {{\n{chains}}}\n"

    def _nft(self, *arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                ["nft", *arguments], input=text, capture_output=True, text=True, timeout=self._timeout, check=False
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RouteError("nft", f"cannot be run ({error})") from error


def _redirects(items: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """(stable, port) of every rule of the output chain."""
    found = []
    for item in items:
        rule = item.get("rule")
        if rule is None or rule["chain"] != "output":
            continue
        stable = port = None
        for part in rule["expr"]:
            match = part.get("match")
            if match and match["left"].get("payload", {}).get("field") == "dport":
                stable = match["right"]
            if "redirect" in part:
                port = part["redirect"]["port"]
        if stable is not None and port is not None:
            found.append((int(stable), int(port)))
    return found
