"""`wherry-server`: the command line, and the one place where the server is put together."""

from __future__ import annotations

import errno
import logging
import os
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wherry import __version__
from wherry.errors import ConfigError, Conflict, StoreError, WherryError
from wherry_server.config import SETTINGS_FILE, ServerConfig, load_config, make_config, write_settings

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

    from wherry.mqtt import BrokerSettings
    from wherry_server.services.context import Context

cli = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help="The Wherry server.")
token_cli = typer.Typer(no_args_is_help=True, help="API tokens of operators.")
cli.add_typer(token_cli, name="token")
DataOption = Annotated[Path, typer.Option("--data", envvar="WHERRY_SERVER_DATA", help="Folder the server keeps.")]
_TOKEN_FILE = "admin.token"  # noqa: S105  a file name


def utc_now() -> datetime:
    """The time now, with its zone."""
    return datetime.now(UTC)


class Bell:
    """Rings once somebody listens; what is committed before that is found at the start anyway."""

    def __init__(self) -> None:
        self.listener: Callable[[], None] | None = None

    def ring(self) -> None:
        """Tell the listener."""
        if self.listener is not None:
            self.listener()


def make_context(config: ServerConfig, bell: Bell, clock: Callable[[], datetime] = utc_now) -> Context:
    """Open everything that the use cases need; the database is brought up to date.

    Raises:
        WherryError: a part cannot be opened; the error names it.
    """
    from wherry.profile import load_profiles
    from wherry_server.pki import Authority
    from wherry_server.services.context import Context
    from wherry_server.signing import OnlineSigner
    from wherry_server.store.database import Store

    store = Store(config.database)
    store.migrate()
    return Context(
        config=config,
        store=store,
        authority=Authority.open(config.pki),
        signer=OnlineSigner.open(config.keys),
        profiles=load_profiles(),
        clock=clock,
        wake=bell.ring,
    )


def make_application(context: Context) -> FastAPI:
    """The HTTP application: API and dashboard."""
    from wherry_server.api.application import create_api
    from wherry_server.dashboard.routes import add_dashboard

    app = create_api(context)
    add_dashboard(app, context)
    return app


@contextmanager
def _opened(data: Path) -> Iterator[Context]:
    context = make_context(load_config(data), Bell())
    try:
        yield context
    finally:
        context.store.close()


@cli.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False) -> None:
    if version:
        typer.echo(f"wherry-server {__version__}")
        raise typer.Exit


@cli.command()
def init(
    data: DataOption,
    host: Annotated[str, typer.Option(help="Name or address under which devices reach this server.")],
    port: Annotated[int, typer.Option(help="HTTPS port.")] = 8470,
    broker_host: Annotated[str, typer.Option(help="Name or address of the MQTT broker; default: the host.")] = "",
    broker_port: Annotated[int, typer.Option(help="MQTT over TLS port.")] = 8883,
    bind: Annotated[str, typer.Option(help="Address that server and broker listen on; default: all.")] = "",
    database_url: Annotated[str, typer.Option(help="SQLAlchemy URL; default: SQLite in the data folder.")] = "",
) -> None:
    """Make a data folder: settings, certificate authority, online keys, database and a first API token."""
    from wherry_server.pki import Authority
    from wherry_server.services.access import create_token, list_tokens

    if (data / SETTINGS_FILE).exists():
        raise Conflict(f"data folder {data}", "is initialised already", "Use another folder, or `wherry-server run`")
    chosen: dict[str, object] = {"host": host, "port": port, "broker_port": broker_port}
    chosen |= {"broker_host": broker_host} if broker_host else {}
    chosen |= {"bind": bind} if bind else {}
    chosen |= {"database_url": database_url} if database_url else {}
    config = make_config(data, chosen)
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"data folder {data}", str(error)) from error
    if not (config.pki / "ca.key").exists():
        Authority.create(config.pki, host, utc_now())
    context = make_context(config, Bell())
    # A database that was there before has its own tokens: this one gets a name that is free.
    taken = any(token.name == "admin" for token in list_tokens(context))
    secret = create_token(context, f"admin-{utc_now():%Y%m%d%H%M%S}" if taken else "admin")
    context.store.close()
    _write_secret(data / _TOKEN_FILE, secret)
    write_settings(data / SETTINGS_FILE, chosen)  # last: with it the folder counts as initialised
    typer.echo(f"data folder   {data}")
    typer.echo(f"server        {config.public_url}")
    typer.echo(f"CA            {config.pki / 'ca.crt'} (sha256 {context.authority.ca_sha256})")
    typer.echo(f"API token     {data / _TOKEN_FILE} (readable by you alone; the server keeps its hash)")
    typer.echo(f"next          wherry-server broker-config --data {data} --out DIR; wherry-server run --data {data}")


@cli.command("broker-config")
def broker_config(
    data: DataOption,
    out: Annotated[Path, typer.Option(help="Folder for mosquitto.conf, acl and certificates.")],
) -> None:
    """Write all that Mosquitto needs. The server keeps the acl in this folder up to date from now on."""
    from wherry_server.broker import write_broker_folder
    from wherry_server.services.enrolment import denied_devices

    with _opened(data) as context:
        path = write_broker_folder(context.config, context.authority, out, denied_devices(context), utc_now())
    write_settings(data / SETTINGS_FILE, {"broker_folder": out.absolute()})
    typer.echo(f"{path}\nstart it with: mosquitto -c {path}")


@token_cli.command("create")
def token_create(name: str, data: DataOption) -> None:
    """Make an API token and print it, this once."""
    from wherry_server.services.access import create_token

    with _opened(data) as context:
        typer.echo(create_token(context, name))


@token_cli.command("list")
def token_list(data: DataOption) -> None:
    """List API tokens, without their secrets."""
    from wherry_server.services.access import list_tokens

    with _opened(data) as context:
        for token in list_tokens(context):
            state = f"revoked {token.revoked:%Y-%m-%d %H:%M}" if token.revoked else "valid"
            typer.echo(f"{token.name:24} created {token.created:%Y-%m-%d %H:%M}  {state}")


@token_cli.command("revoke")
def token_revoke(name: str, data: DataOption) -> None:
    """Make an API token useless from now on."""
    from wherry_server.services.access import revoke_token

    with _opened(data) as context:
        revoke_token(context, name)
    typer.echo(f"API token {name} is revoked")


@cli.command()
def run(data: DataOption) -> None:
    """Run the server until it is told to stop."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("apscheduler").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    serve(load_config(data))


def serve(config: ServerConfig) -> None:
    """Run a server with these settings; returns when it was told to stop."""
    from wherry_server.link import ServerLink
    from wherry_server.schedule import catch_up, make_scheduler

    # First of all: a second server must not touch the database, nor throw the first one off the broker.
    with listen_on(config.bind, config.port) as listener:
        bell = Bell()
        context = make_context(config, bell)
        link = ServerLink(context, broker_settings(context)) if config.link else None
        scheduler = make_scheduler(context, link)
        catch_up(context)
        if link is not None:
            bell.listener = link.wake
            context.line.wire = link
            link.start()
        scheduler.start()
        try:
            https_server(context).run(sockets=[listener])
        finally:
            scheduler.shutdown(wait=False)
            if link is not None:
                link.stop()
            context.store.close()


def listen_on(bind: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        Conflict: another program listens there.
        ConfigError: this machine cannot listen there.
    """
    family = socket.AF_INET6 if ":" in bind else socket.AF_INET
    try:
        return socket.create_server((bind, port), family=family, backlog=2048)
    except OSError as error:
        thing = f"port {port} of {bind}"
        if error.errno == errno.EADDRINUSE:
            fix = "Stop what listens there (another wherry-server?), or change `port` in server.toml"
            raise Conflict(thing, "is in use", fix) from error
        reason = f"cannot be listened on: {error.strerror or error}"
        raise ConfigError(thing, reason, "Correct `bind` and `port` in server.toml") from error


def broker_settings(context: Context) -> BrokerSettings:
    """How this server reaches the broker, with its own client certificate."""
    from wherry.mqtt import BrokerSettings
    from wherry_server.pki import LINK_NAME

    certificate, key = context.authority.ensure_own(LINK_NAME, LINK_NAME, (), context.clock())
    config = context.config
    return BrokerSettings(
        host=config.link_host or config.broker,
        port=config.broker_port,
        client_id=LINK_NAME,
        ca_file=str(context.authority.ca_file),
        certificate_file=str(certificate),
        key_file=str(key),
        reconnect_max=10.0,
        queue=1000,
    )


def https_server(context: Context) -> uvicorn.Server:
    """The HTTPS server with its own certificate; `run()` serves until it is told to stop."""
    import uvicorn

    from wherry_server.broker import certificate_names

    config = context.config
    names = certificate_names(config, config.host)
    certificate, key = context.authority.ensure_own("server", config.host, names, context.clock())

    class _Server(uvicorn.Server):
        async def startup(self, sockets=None):  # type: ignore[no-untyped-def]  # as uvicorn has it
            await super().startup(sockets)
            if self.started:
                typer.echo(f"listening on {config.public_url}")
                sys.stdout.flush()

        async def shutdown(self, sockets=None):  # type: ignore[no-untyped-def]  # as uvicorn has it
            context.changes.close()  # live pages are told first: they would hold up the end
            await super().shutdown(sockets)

    settings = uvicorn.Config(
        make_application(context),
        host=config.bind,
        port=config.port,
        ssl_certfile=str(certificate),
        ssl_keyfile=str(key),
        ssl_version=ssl.PROTOCOL_TLS_SERVER,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=5,
        limit_concurrency=1000,
    )
    return _Server(settings)


def _write_secret(path: Path, secret: str) -> None:
    try:
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secret + "\n")
    except OSError as error:
        raise StoreError(f"file {path}", str(error)) from error


def main() -> None:
    """Entry point: errors of ours are one sentence, not a traceback."""
    try:
        cli()
    except WherryError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
