"""`wherry rollout …`: bring a release to devices and see how they take it."""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import datetime
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.text import Text

from wherry.api.base import DEFAULT_SLOT
from wherry.api.rollouts import RolloutPart, RolloutRequest, RolloutView
from wherry.errors import InputError, WherryError
from wherry_cli import watch
from wherry_cli.client import ServerClient
from wherry_cli.complete import complete_models, complete_rollouts, complete_selection, complete_versions
from wherry_cli.follow import Timeout, Watch, follow
from wherry_cli.inputs import checked
from wherry_cli.looking import now_utc
from wherry_cli.output import Json, Output, table
from wherry_cli.rollout_view import RolloutTable
from wherry_cli.selectors import TO_HELP, parse_selector, selector_text
from wherry_cli.session import confirm, connected
from wherry_cli.words import ago

app = typer.Typer(help="Bring a release to devices, and watch, pause, abort or retry that.", no_args_is_help=True)

Number = Annotated[
    int, typer.Argument(metavar="ROLLOUT", help="Number of the rollout.", min=1, autocompletion=complete_rollouts)
]
To = Annotated[list[str], typer.Option("--to", metavar="WHICH", help=TO_HELP, autocompletion=complete_selection)]
Slot = Annotated[
    str | None, typer.Option("--slot", help="Named place on the device where the model serves; default: main.")
]
Together = Annotated[
    list[str] | None,
    typer.Option(
        "--together",
        metavar="SLOT=MODEL:VERSION",
        help="Instead of MODEL VERSION, once for each slot: a device takes all of these releases, or none.",
    ),
]
_PART = re.compile(r"(?P<slot>[^=:]+)=(?P<model>[^=:]+):(?P<version>[^=:]+)")


@app.command()
def start(
    to: To,
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="Model of the release.", autocompletion=complete_models)
    ] = None,
    version: Annotated[
        str | None, typer.Argument(metavar="VERSION", help="Version of the release.", autocompletion=complete_versions)
    ] = None,
    slot: Slot = None,
    together: Together = None,
    watching: Watch = False,
    timeout: Timeout = None,
    as_json: Json = False,
) -> None:
    """Start to bring a published release to devices; or several, which each device takes together or not at all."""
    out = Output(as_json)
    request = read_request(model, version, slot, together or [], to)
    with connected() as client:
        view = begin(client, request, out)
        if watching:
            follow(client, view, out, timeout)
        else:
            out.result(view, lambda: started_page(view))


def read_request(
    model: str | None, version: str | None, slot: str | None, together: list[str], to: list[str]
) -> RolloutRequest:
    """What a command line asks for.

    Raises:
        InputError: no release is named, or one is named in both ways, or a value is not usable.
    """
    selector = parse_selector(to)
    if not together:
        if model is None or version is None:
            raise InputError("the release", "is missing", "Name MODEL and VERSION, or several with --together")
        return checked(RolloutRequest, model=model, version=version, slot=slot or DEFAULT_SLOT, selector=selector)
    if model is not None or slot is not None:
        raise InputError("--together", "stands beside MODEL or --slot", "Name every release with --together")
    parts = [_part(text) for text in together]
    if not 1 < len({part.slot for part in parts}) == len(parts):
        fix = "Give it once for each of several slots: --together cam=vision:2 --together text=words:3"
        raise InputError("--together", "names one slot, or one of them twice", fix)
    return checked(RolloutRequest, together=parts, selector=selector)


def _part(text: str) -> RolloutPart:
    match = _PART.fullmatch(text)
    if match is None:
        raise InputError(f"--together {text}", "is not of the form SLOT=MODEL:VERSION", "Write --together cam=vision:2")
    return checked(RolloutPart, **match.groupdict())


def begin(client: ServerClient, request: RolloutRequest, out: Output) -> RolloutView:
    """Start a rollout, after a word about what the operator may not have meant."""
    with suppress(WherryError):  # what is wrong with the request, its start says better; an older server cannot tell
        preview = client.preview_rollout(request)
        for text in (*preview.notes, *preview.misfits):
            out.note(Text.assemble(("Note: ", "bold yellow"), text))
    return client.start_rollout(request)


def started_page(view: RolloutView) -> Text:
    """A rollout that was just started, and how to see more of it."""
    return Text.assemble(
        watch.title(view), "\n", watch.summary(view), "\n", (f"Watch it with `wherry rollout watch {view.id}`.", "dim")
    )


@app.command("list")
def list_rollouts(
    limit: Annotated[int, typer.Option(help="How many, newest first.", min=1, max=200)] = 20,
    as_json: Json = False,
) -> None:
    """Show the newest rollouts."""
    out = Output(as_json)
    with connected() as client:
        found = client.rollouts(limit)
    out.result({"items": found}, lambda: rollouts_table(found, now_utc()))


def rollouts_table(found: list[RolloutView], now: datetime) -> RenderableType:
    """One row a rollout."""
    cells = [
        (
            str(view.id),
            Text(view.label, style="bold"),
            " + ".join(part.slot for part in view.parts),
            selector_text(view.selector),
            Text(view.state, style=watch.STATE_STYLES.get(view.state, "cyan")),
            watch.summary(view).partition(": ")[2],
            ago(view.created, now),
        )
        for view in found
    ]
    empty = "No rollouts yet. Start one with `wherry rollout start MODEL VERSION --to all`."
    return table((">id", "release", "slot", "to", "state", "devices", "started"), cells, empty)


@app.command()
def show(rollout: Number, as_json: Json = False) -> None:
    """Show a rollout with its devices, as it stands."""
    out = Output(as_json)
    with connected() as client:
        view = client.rollout(rollout)
    out.result(view, lambda: RolloutTable(view, now_utc()))


@app.command("watch")
def watch_rollout(rollout: Number, timeout: Timeout = None, as_json: Json = False) -> None:
    """Follow a rollout to its end; the exit code is 1 when a device did not take the release."""
    out = Output(as_json)
    with connected() as client:
        follow(client, client.rollout(rollout), out, timeout)


def _control(rollout: int, action: str, as_json: bool) -> None:
    out = Output(as_json)
    with connected() as client:
        view = client.control_rollout(rollout, action)
    out.result(view, lambda: Text.assemble(watch.title(view), "\n", watch.summary(view)))


@app.command()
def pause(rollout: Number, as_json: Json = False) -> None:
    """Assign the release to no further device until it is resumed."""
    _control(rollout, "pause", as_json)


@app.command()
def resume(rollout: Number, as_json: Json = False) -> None:
    """Go on with a paused rollout."""
    _control(rollout, "start", as_json)


@app.command()
def abort(
    rollout: Number,
    yes: Annotated[bool, typer.Option("--yes", metavar="", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """End a rollout; devices that committed the release keep it."""
    confirm(f"Abort rollout {rollout}?", yes, Output(as_json))
    _control(rollout, "abort", as_json)


@app.command()
def retry(rollout: Number, watching: Watch = False, timeout: Timeout = None, as_json: Json = False) -> None:
    """Let the devices that failed try the release again."""
    if not watching:
        _control(rollout, "retry", as_json)
        return
    with connected() as client:
        follow(client, client.control_rollout(rollout, "retry"), Output(as_json), timeout)
