"""`wherry audit`: who did what, and what was refused."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.text import Text

from wherry.api.operators import AuditEntry
from wherry_cli.looking import now_utc
from wherry_cli.output import Json, Output, table
from wherry_cli.session import connected
from wherry_cli.words import parse_span, printable

_HEX = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{20,}\b")
"""Fingerprints and digests: their beginning says enough."""


def audit(
    action: Annotated[
        str | None, typer.Option("--action", help="Only this kind: rollout, rollout.create, token, login, …")
    ] = None,
    thing: Annotated[
        str | None, typer.Option("--thing", help="Only what was done to this: a device, a release.")
    ] = None,
    actor: Annotated[str | None, typer.Option("--actor", help="Only what this token or device did.")] = None,
    since: Annotated[
        str | None, typer.Option("--since", metavar="SPAN", help="Only the last 90s, 15m, 1h, 7d.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", help="How many, newest first.", min=1, max=10_000)] = 50,
    as_json: Json = False,
) -> None:
    """Show who did what, newest first: changes, logins, and what was refused."""
    start = now_utc() - parse_span(since) if since else None
    with connected() as client:
        found = client.audit(limit, action=action, thing=thing, actor=actor)
    chosen = [entry for entry in found if start is None or entry.at >= start]
    Output(as_json).result({"items": chosen}, lambda: audit_table(chosen, now_utc()))


def audit_table(found: list[AuditEntry], now: datetime) -> RenderableType:
    """One row an entry."""
    cells = [
        (
            _when(entry.at.astimezone(), now.astimezone()),
            printable(entry.actor) or "-",
            Text(entry.action, style="bold red" if "refused" in entry.action else "bold"),
            printable(entry.thing),
            Text(_HEX.sub(r"\1…", printable(entry.detail)), style="dim"),
        )
        for entry in found
    ]
    return table(("!when", "who", "!did", "to", "detail"), cells, "Nothing like that was done.")


def _when(at: datetime, now: datetime) -> str:
    return f"{at:%H:%M:%S}" if at.date() == now.date() else f"{at:%Y-%m-%d %H:%M}"
