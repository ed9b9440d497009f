"""`wherry agent …`: bring a new agent to devices, as models are brought to them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wherry.agent_release import AGENT_MODEL, AGENT_SLOT
from wherry.api.rollouts import RolloutRequest, RolloutView
from wherry.errors import InputError
from wherry_cli.complete import complete_profiles
from wherry_cli.follow import Timeout, Watch, follow
from wherry_cli.inputs import checked
from wherry_cli.looking import now_utc
from wherry_cli.output import Json, Output
from wherry_cli.package import package_page
from wherry_cli.release import published_page
from wherry_cli.rollout import To, begin, started_page
from wherry_cli.selectors import parse_selector
from wherry_cli.session import connected
from wherry_cli.settings import find_home, read_config

if TYPE_CHECKING:
    from wherry_cli.packaging.package_file import PackageFile

app = typer.Typer(
    help="Bring a new agent to devices; they go back by themselves when it does not do.", no_args_is_help=True
)

Profiles = Annotated[
    list[str],
    typer.Option(
        "--profile",
        metavar="PROFILE",
        help="Device profile; repeatable (`wherry profile list`).",
        autocompletion=complete_profiles,
    ),
]
Wheel = Annotated[
    Path | None,
    typer.Option("--from", metavar="WHEEL", help="Wheel of wherry to take it from; default: the agent installed here."),
]
Pythons = Annotated[
    list[str] | None,
    typer.Option(
        "--python",
        metavar="VERSION",
        help="Python of the devices, such as 3.11 (`wherry device show`); repeatable; default: the profile's.",
    ),
]
Registry = Annotated[
    str | None,
    typer.Option("--registry", metavar="HOST:PORT", help="OCI registry to push to; default: the one given at login."),
]
StartSeconds = Annotated[
    int,
    typer.Option(
        "--start-seconds", metavar="SECONDS", help="Time the agent may take to prove itself.", min=5, max=3600
    ),
]
OutputFolder = Annotated[
    Path | None, typer.Option("--output", metavar="DIR", help="Where package.json is written.")
]  # fmt: skip


@app.command("package")
def package_command(
    profiles: Profiles,
    wheel: Wheel = None,
    pythons: Pythons = None,
    registry: Registry = None,
    output: OutputFolder = None,
    start_seconds: StartSeconds = 120,
    as_json: Json = False,
) -> None:
    """Make images of the agent for device profiles and push them; `wherry release publish` signs them."""
    out = Output(as_json)
    made, file = _package(out, profiles, wheel, pythons, registry, output, start_seconds)
    result = {"file": str(file), **made.model_dump(mode="json", by_alias=True)}
    out.result(result, lambda: package_page(made, file.parent))


@app.command()
def push(
    profiles: Profiles,
    to: To,
    wheel: Wheel = None,
    pythons: Pythons = None,
    registry: Registry = None,
    output: OutputFolder = None,
    start_seconds: StartSeconds = 120,
    watching: Watch = False,
    timeout: Timeout = None,
    as_json: Json = False,
) -> None:
    """Bring an agent to devices in one go: package, push, sign, publish, roll out."""
    out = Output(as_json)
    selector = parse_selector(to)
    from wherry_cli.owner import Owner  # signing libraries load slowly, most commands do without

    with connected() as client:
        owner = Owner(find_home(), client, out.note)
        owner.check()
        made, file = _package(out, profiles, wheel, pythons, registry, output, start_seconds)
        published = owner.publish(made, now_utc())
        if not out.as_json:
            out.console.print(published_page(published))
        request = checked(RolloutRequest, model=AGENT_MODEL, version=made.version, slot=AGENT_SLOT, selector=selector)
        view = begin(client, request, out)

        def result(ended: RolloutView) -> dict[str, Any]:
            return {"package": str(file), "published": published, "rollout": ended}

        if watching:
            out.gap()
            follow(client, view, out, timeout, result)
        else:
            out.result(result(view), lambda: started_page(view))


def _package(
    out: Output,
    profiles: list[str],
    wheel: Path | None,
    pythons: list[str] | None,
    registry: str | None,
    output: Path | None,
    start_seconds: int,
) -> tuple[PackageFile, Path]:
    from wherry_cli.packaging.agent import AgentOrder, package_agent, write_package
    from wherry_cli.progress_view import ProgressView

    home = find_home()
    registry = registry or os.environ.get("WHERRY_REGISTRY") or read_config(home).get("registry")
    if not registry:
        raise InputError("--registry", "is missing, and devices pull from a registry", "Name one here or at login")
    order = AgentOrder(tuple(profiles), wheel, tuple(pythons or ()), registry, start_seconds=start_seconds)
    with ProgressView(out) as view:
        made = package_agent(order, view.report)
    return made, write_package(made, output or home.packages / f"{AGENT_MODEL}-{made.version}")
