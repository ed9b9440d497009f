"""The program `wherry`: puts the commands together and turns every error into one clear answer."""

from __future__ import annotations

import io
import os
import sys
import traceback
from typing import Annotated, Any

import typer
from rich.text import Text
from typer.core import TyperGroup

from wherry import __version__
from wherry.errors import InputError, WherryError
from wherry_cli import (
    agent,
    audit,
    bench,
    complete,
    device,
    explain,
    inspect,
    keys,
    login,
    package,
    profile,
    push,
    release,
    rollout,
    telemetry,
    token,
    top,
)
from wherry_cli.output import make_console, print_error

DEBUG = "WHERRY_DEBUG"
FAILED, MISUSED = 1, 2
_ORDER = (
    "login",
    "keys",
    "inspect",
    "package",
    "release",
    "push",
    "rollout",
    "device",
    "agent",
    "top",
    "telemetry",
    "audit",
    "token",
    "profile",
    "bench",
    "explain",
    "completion",
)


class WherryGroup(TyperGroup):
    """The root command: the one place where errors become output."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The commands in the order of an operator's day, for --help."""
        return sorted(super().list_commands(ctx), key=lambda name: _ORDER.index(name) if name in _ORDER else 99)

    def get_params(self, ctx: Any) -> list[Any]:
        """Without typer's own options for completion in --help: `wherry completion` writes nothing by itself."""
        params: list[Any] = super().get_params(ctx)
        for param in params:
            if param.name in ("install_completion", "show_completion"):
                param.hidden = True
        return params

    def invoke(self, ctx: Any) -> Any:
        """Run a command; no WherryError and no traceback leaves it."""
        as_json = "--json" in [*getattr(ctx, "_protected_args", []), *ctx.args]
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, KeyboardInterrupt, BrokenPipeError):
            raise
        except WherryError as error:
            print_error(error, as_json)
            raise typer.Exit(FAILED) from error
        except Exception as error:
            if hasattr(error, "format_message"):
                _misuse(error, as_json)
                raise
            _defect(error, as_json)
            raise typer.Exit(FAILED) from error


def _misuse(error: Any, as_json: bool) -> None:
    """A wrong command line: typer's own panel suits people, programs get JSON."""
    if as_json:
        reason = str(error.format_message()).rstrip(".")
        print_error(InputError("command line", reason, "Read the command's --help"), True)
        raise typer.Exit(MISUSED) from error


def _defect(error: Exception, as_json: bool) -> None:
    if os.environ.get(DEBUG):
        traceback.print_exception(error)
    fix = f"Run it again with {DEBUG}=1 and report the traceback as a defect of wherry"
    reason = f"failed in a way nobody foresaw ({type(error).__name__}: {error})"
    print_error(WherryError("wherry", reason, fix), as_json)


app = typer.Typer(
    cls=WherryGroup,
    name="wherry",
    help="Carry AI model containers to edge devices: package, sign, publish, roll out, watch.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("login", rich_help_panel="Set up")(login.login)
app.add_typer(keys.app, name="keys", rich_help_panel="Set up")
app.command("inspect", rich_help_panel="Release")(inspect.inspect_model)
app.command("package", rich_help_panel="Release")(package.package_model)
app.add_typer(release.app, name="release", rich_help_panel="Release")
app.command("push", rich_help_panel="Release")(push.push)
app.add_typer(rollout.app, name="rollout", rich_help_panel="Operate")
app.add_typer(device.app, name="device", rich_help_panel="Operate")
app.add_typer(agent.app, name="agent", rich_help_panel="Operate")
app.command("top", rich_help_panel="Operate")(top.top)
app.add_typer(telemetry.app, name="telemetry", rich_help_panel="Operate")
app.command("audit", rich_help_panel="Operate")(audit.audit)
app.add_typer(token.app, name="token", rich_help_panel="Operate")
app.add_typer(profile.app, name="profile", rich_help_panel="Look up")
app.command("bench", rich_help_panel="Look up")(bench.bench)
app.command("explain", rich_help_panel="Look up")(explain.explain)
app.command("completion", rich_help_panel="Look up")(complete.completion)


def _show_version(wanted: bool) -> None:
    if wanted:
        make_console().print(Text(f"wherry {__version__}"))
        raise typer.Exit


@app.callback()
def root(
    _version: Annotated[
        bool,
        typer.Option("--version", metavar="", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Carry AI model containers to edge devices: package, sign, publish, roll out, watch."""


def main() -> None:
    """Entry point of the program."""
    # A terminal with a narrow character set gets `?` for a check mark, not a crash.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    app(prog_name="wherry")


if __name__ == "__main__":
    main()
