"""`wherry login`: which server, which token, which CA, once."""

from __future__ import annotations

import os
import re
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from wherry.api.repository import RepositoryInfo
from wherry.errors import InputError
from wherry_cli.ca import compare_fingerprint, fetch_ca, fingerprint, leaf_pem, readable_fingerprint
from wherry_cli.client import open_client
from wherry_cli.inputs import read_text
from wherry_cli.output import Json, Output
from wherry_cli.session import may_ask
from wherry_cli.settings import Home, Settings, find_home, read_config, save_settings, write_private

_REGISTRY = re.compile(r"[A-Za-z0-9.-]+:[0-9]{1,5}|\[[0-9a-fA-F:]+\]:[0-9]{1,5}")


def login(
    server: Annotated[str, typer.Option("--server", metavar="URL", help="Address of the server (https://…).")],
    token: Annotated[str | None, typer.Option("--token", help="API token; better in a file.")] = None,
    token_file: Annotated[Path | None, typer.Option("--token-file", help="File that holds the API token.")] = None,
    ca_file: Annotated[Path | None, typer.Option("--ca-file", help="The server's CA certificate (PEM).")] = None,
    ca_sha256: Annotated[str | None, typer.Option("--ca-sha256", help="Fingerprint of the server's CA.")] = None,
    registry: Annotated[
        str | None, typer.Option("--registry", metavar="HOST:PORT", help="Default registry to push images to.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Log in to a server and remember it."""
    out = Output(as_json)
    home = find_home()
    _check_addresses(server, registry)
    secret = _choose_token(token, token_file, out)
    pem = _trusted_ca(server, ca_file, ca_sha256, out)
    registry = registry or read_config(home).get("registry")
    # The token is tried against a CA file beside the final one, so a failed login changes nothing.
    trial = home.ca.with_name(home.ca.name + ".trial")
    write_private(trial, leaf_pem(pem))
    try:
        with closing(open_client(Settings(server.rstrip("/"), secret, trial))) as client:
            info = client.repository()
        trial.replace(home.ca)
    finally:
        trial.unlink(missing_ok=True)
    settings = Settings(server.rstrip("/"), secret, home.ca, registry)
    save_settings(home, settings)
    result = {
        "server": settings.server,
        "ca_sha256": fingerprint(pem, server),
        "registry": registry,
        "config": str(home.config),
        "repository": info,
    }
    out.result(result, lambda: _welcome(settings, home, info))


def _check_addresses(server: str, registry: str | None) -> None:
    if not re.fullmatch(r"https://[^/\s]+/?", server):
        raise InputError(f"--server {server}", "is not an https:// address", "Write it like https://host:8470")
    if registry and not _REGISTRY.fullmatch(registry):
        raise InputError(f"--registry {registry}", "is not HOST:PORT", "Write it like 127.0.0.1:5470")


def _choose_token(token: str | None, token_file: Path | None, out: Output) -> str:
    if token and token_file:
        raise InputError("--token and --token-file", "are both given", "Give one of them")
    found = token or (read_text(token_file, "token file") if token_file else None) or os.environ.get("WHERRY_TOKEN")
    if not found and may_ask(out):
        found = typer.prompt("API token", hide_input=True, err=True)
    if not found:
        fix = "Give --token-file FILE; the server's first token is in its DATA/admin.token"
        raise InputError("API token", "is missing", fix)
    if not found.isascii() or not found.isprintable() or " " in found:
        raise InputError("API token", "holds characters that no token has", "Copy it again")
    return found


def _trusted_ca(server: str, ca_file: Path | None, ca_sha256: str | None, out: Output) -> bytes:
    if ca_file:
        pem = read_text(ca_file, "CA certificate").encode()
        found = fingerprint(pem, str(ca_file))
        if ca_sha256:
            compare_fingerprint(ca_sha256, found, server)
        return pem
    pem = fetch_ca(server)
    found = fingerprint(pem, server)
    if ca_sha256:
        compare_fingerprint(ca_sha256, found, server)
        return pem
    if not may_ask(out):
        fix = f"Compare {found} with the one that `wherry-server init` printed, then add --ca-sha256 with it"
        raise InputError(f"CA of {server}", "is not known and nobody can be asked", fix)
    out.note(f"{server} shows a CA certificate with the SHA-256 fingerprint")
    out.note(Text(f"  {readable_fingerprint(found)}", style="bold"))
    typer.confirm("Is that the fingerprint that `wherry-server init` printed?", abort=True, err=True)
    return pem


def _welcome(settings: Settings, home: Home, info: RepositoryInfo) -> Text:
    signed = f"root {info.root}, targets {info.targets}" if info.root else "none yet"
    shown = Text.assemble(("Logged in to ", "green"), (settings.server, "bold green"), ".\n")
    shown.append(f"Registry: {settings.registry or 'none; give --registry to package or push'}\n")
    shown.append(f"Owner's metadata on the server: {signed}\nSaved in {home.config}")
    if not info.root:
        shown.append("\nNext: wherry keys init", style="dim")
    return shown
