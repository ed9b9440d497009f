"""What most commands start with: the operator's settings and a client; and questions before harm."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from wherry.errors import InputError
from wherry_cli.client import ServerClient, open_client
from wherry_cli.output import Output
from wherry_cli.settings import find_home, load_settings


@contextmanager
def connected() -> Iterator[ServerClient]:
    """A client of the server that the operator logged in to; closed afterwards."""
    client = open_client(load_settings(find_home()))
    try:
        yield client
    finally:
        client.close()


def may_ask(out: Output) -> bool:
    """Whether a person sits at both ends of the terminal."""
    return sys.stdin.isatty() and sys.stderr.isatty() and not out.as_json


def confirm(question: str, yes: bool, out: Output) -> None:
    """Ask before something that cannot be undone.

    Raises:
        InputError: nobody can be asked and `--yes` was not given.
        typer.Abort: the answer was no.
    """
    if yes:
        return
    if not may_ask(out):
        raise InputError("this command", f"asks first ({question}) and nobody can answer", "Add --yes")
    typer.confirm(question, abort=True, err=True)
