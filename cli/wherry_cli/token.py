"""`wherry token …`: the API tokens of operators."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.text import Text

from wherry.api.operators import ApiTokenView
from wherry_cli.looking import now_utc
from wherry_cli.output import Json, Output, table
from wherry_cli.session import confirm, connected
from wherry_cli.words import ago

app = typer.Typer(
    help="API tokens of operators: see them, revoke one. `wherry-server token create NAME --data DIR` makes one.",
    no_args_is_help=True,
)
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the token.")]


@app.command("list")
def list_tokens(as_json: Json = False) -> None:
    """Show the API tokens, without their secrets."""
    with connected() as client:
        found = client.api_tokens()
    Output(as_json).result({"items": found}, lambda: _tokens_table(found, now_utc()))


def _tokens_table(found: list[ApiTokenView], now: datetime) -> RenderableType:
    cells = [
        (
            Text(token.name, style="bold"),
            ago(token.created, now),
            Text(f"revoked {ago(token.revoked, now)}", style="red") if token.revoked else Text("valid", style="green"),
        )
        for token in found
    ]
    return table(("token", "created", "state"), cells, "No tokens.")


@app.command()
def revoke(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", metavar="", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Make a token useless from now on, also on the dashboard."""
    out = Output(as_json)
    confirm(f"Revoke the API token {name} for good?", yes, out)
    with connected() as client:
        client.revoke_api_token(name)
    out.result({"name": name, "revoked": True}, lambda: Text(f"Token {name} is revoked."))
