"""`wherry keys …`."""

from __future__ import annotations

import typer

app = typer.Typer(help="The owner's signing keys.", no_args_is_help=True)


@app.command()
def init() -> None:
    """To come."""


@app.command()
def show() -> None:
    """To come."""
