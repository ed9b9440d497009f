"""`wherry keys …`: the owner's signing keys."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from wherry.api.repository import RepositoryInfo
from wherry.errors import InputError, StoreError
from wherry_cli.looking import now_utc
from wherry_cli.output import Json, Output, fields, table
from wherry_cli.session import confirm, connected
from wherry_cli.settings import Home, find_home
from wherry_cli.words import until

KEY_ROLES = ("root", "targets", "snapshot", "server")
app = typer.Typer(help="The owner's signing keys: whoever has them decides what devices run.", no_args_is_help=True)


@app.command()
def init(
    roots: Annotated[int, typer.Option("--roots", help="How many root keys to make.", min=1, max=9)] = 1,
    threshold: Annotated[
        int, typer.Option("--threshold", help="How many root keys must sign a new root.", min=1, max=9)
    ] = 1,
    as_json: Json = False,
) -> None:
    """Make the owner's keys and the first signed metadata, and give the metadata to the server.

    With WHERRY_KEY_PASSPHRASE set, the private keys are encrypted with it.
    """
    from wherry_cli.owner import Owner  # signing libraries load slowly, most commands do without

    out, home = Output(as_json), find_home()
    with connected() as client:
        info = Owner(home, client, out.note).init(roots, threshold, now_utc())
    result = {"keys": str(home.keys), "names": [key["name"] for key in read_public_keys(home)], "repository": info}
    out.result(result, lambda: _initialised(home, info))


def _initialised(home: Home, info: RepositoryInfo) -> RenderableType:
    names = ", ".join(key["name"] for key in read_public_keys(home))
    return Text.assemble(
        ("The server takes releases that are signed with your keys.\n", "green"),
        f"Keys: {names} in {home.keys}\n",
        f"Metadata: root {info.root}, targets {info.targets}, snapshot {info.snapshot}; copy in {home.repository}\n",
        ("Back up the keys now; WHERRY_KEY_PASSPHRASE encrypts them when they are made.\n", "yellow"),
        ("Root keys are needed again once a year (`wherry keys renew`): keep them offline.\n", "yellow"),
        ("Next: wherry device token DEVICE, then wherry push MODEL.", "dim"),
    )


@app.command()
def renew(as_json: Json = False) -> None:
    """Sign a new root before the old one expires, with the same keys: once a year."""
    from wherry_cli.owner import Owner  # signing libraries load slowly, most commands do without

    out = Output(as_json)
    with connected() as client:
        info = Owner(find_home(), client, out.note).renew_root(now_utc())
    until_day = f", valid until {info.expires['root']:%Y-%m-%d}" if "root" in info.expires else ""
    out.result(info, lambda: Text(f"Signed root {info.root}{until_day}."))


@app.command()
def replace(
    roles: Annotated[list[str], typer.Argument(metavar="ROLE…", help="root, targets, snapshot, server; or all.")],
    roots: Annotated[
        int | None,
        typer.Option("--roots", help="With root: how many root keys to make (default: as many).", min=1, max=9),
    ] = None,
    threshold: Annotated[
        int | None, typer.Option("--threshold", help="With root: how many must sign (default: as many).", min=1, max=9)
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", metavar="", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Replace keys that were stolen, lost, or are to change hands; devices follow by themselves.

    Enough of the present root keys must be in the keys folder. `server` takes the keys that the server has now.
    """
    from wherry_cli.owner import Owner  # signing libraries load slowly, most commands do without

    out, home = Output(as_json), find_home()
    chosen = chosen_roles(roles)
    if (roots or threshold) and "root" not in chosen:
        raise InputError("--roots and --threshold", "are about the root keys", "Name root, too")
    confirm(f"Replace the keys of {', '.join(sorted(chosen))}?", yes, out)
    with connected() as client:
        info = Owner(home, client, out.note).replace_keys(chosen, now_utc(), roots, threshold)
    result = {"replaced": sorted(chosen), "repository": info}
    out.result(result, lambda: _replaced(home, info, chosen))


def chosen_roles(words: list[str]) -> frozenset[str]:
    """The roles that were named.

    Raises:
        InputError: there is no such role.
    """
    unknown = sorted(set(words) - {*KEY_ROLES, "all"})
    if unknown:
        raise InputError(f"role {unknown[0]}", "does not exist", f"Name some of {', '.join(KEY_ROLES)}, or all")
    return frozenset(KEY_ROLES if "all" in words else words)


def _replaced(home: Home, info: RepositoryInfo, roles: frozenset[str]) -> RenderableType:
    lines = [(f"Signed root {info.root}; devices accept it when they next look, however many they missed.\n", "green")]
    if roles - {"server"}:
        lines.append(
            (f"The old keys are in {home.keys / 'retired'} and worth nothing any more. Back up the new ones.", "yellow")
        )
    return Text.assemble(*lines)


@app.command()
def show(as_json: Json = False) -> None:
    """Show the keys on this machine, and until when the server's metadata is valid."""
    out, home = Output(as_json), find_home()
    found = read_public_keys(home)
    with connected() as client:
        info = client.repository()
    out.result({"keys": found, "repository": info}, lambda: _keys_page(home, found, info, now_utc()))


def read_public_keys(home: Home) -> list[dict[str, Any]]:
    """Name, key id, type of every key in the folder, and whether its private half is here.

    Raises:
        StoreError: a file is damaged.
    """
    found = []
    for path in sorted(home.keys.glob("*.pub")):
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            key = {"name": path.stem, "keyid": str(data["keyid"]), "type": str(data["keytype"])}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"public key {path}", "is damaged or cannot be read") from error
        found.append({**key, "private": _private(path).exists()})
    return found


def _private(path: Path) -> Path:
    return path.with_suffix(".pem")


def _keys_page(home: Home, found: list[dict[str, Any]], info: RepositoryInfo, now: datetime) -> RenderableType:
    cells = [
        (
            Text(key["name"], style="bold"),
            key["type"],
            key["keyid"][:16] + "…",
            Text("here", style="green") if key["private"] else Text("elsewhere", style="yellow"),
        )
        for key in found
    ]
    keys = table(("key", "type", "key id", "private half"), cells, f"No keys in {home.keys}. Run `wherry keys init`.")
    versions = {"root": info.root, "targets": info.targets, "snapshot": info.snapshot, "timestamp": info.timestamp}
    lines: list[tuple[str, RenderableType]] = [
        (role, f"version {version}{_expiry(info, role, now)}" if version else "none")
        for role, version in versions.items()
    ]
    return Group(keys, Text(), Text("Metadata on the server", style="bold"), fields(lines))


def _expiry(info: RepositoryInfo, role: str, now: datetime) -> str:
    expires = info.expires.get(role)
    return f", {until(expires, now)}" if expires else ""
