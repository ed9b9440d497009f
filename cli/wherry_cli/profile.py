"""`wherry profile …`: the hardware classes that releases are packaged for."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import RenderableType
from rich.text import Text

from wherry.profile import DeviceProfile, get_profile, load_profiles
from wherry_cli.complete import complete_profiles
from wherry_cli.output import Json, Output, fields, table

app = typer.Typer(help="The hardware classes that releases are packaged for.", no_args_is_help=True)


@app.command("list")
def list_profiles(as_json: Json = False) -> None:
    """Show the device profiles that are shipped."""
    found = list(load_profiles().values())
    cells = [
        (
            Text(profile.name, style="bold"),
            profile.platform,
            ", ".join(profile.capabilities.runtimes),
            ", ".join(profile.capabilities.precisions),
            f"{profile.capabilities.memory_mb} MB",
            profile.title,
        )
        for profile in found
    ]
    columns = ("profile", "platform", "runtimes", "precisions", ">memory", "hardware")
    Output(as_json).result({"items": found}, lambda: table(columns, cells, "No profiles are installed."))


@app.command()
def show(
    profile: Annotated[
        str, typer.Argument(metavar="PROFILE", help="Name of the profile.", autocompletion=complete_profiles)
    ],
    as_json: Json = False,
) -> None:
    """Show one device profile: how it is recognised and what it can run."""
    found = get_profile(profile, load_profiles())
    Output(as_json).result(found, lambda: _page(found))


def _page(profile: DeviceProfile) -> RenderableType:
    able, rule = profile.capabilities, profile.detect
    pairs: list[tuple[str, RenderableType]] = [
        ("Profile", Text(profile.name, style="bold")),
        ("Hardware", profile.title),
        ("Platform", profile.platform),
        ("Recognised by", _rules(profile)),
        ("Priority", str(rule.priority)),
        ("Runtimes", ", ".join(able.runtimes)),
        ("Providers", ", ".join(able.providers)),
        ("Precisions", ", ".join(able.precisions)),
        ("Memory", f"{able.memory_mb} MB; images up to {able.image_limit_mb} MB"),
    ]
    if able.sm:
        pairs.append(("GPU", f"L4T {' or '.join(able.l4t)}, sm_{'/'.join(able.sm)}"))
    base = profile.base
    pairs.append(("Base image", base.reference or f"built from Debian {base.suite} packages, Python {base.python}"))
    pairs.append(("Sensors", ", ".join(sensor.name for sensor in profile.sensors) or "-"))
    return fields(pairs)


def _rules(profile: DeviceProfile) -> str:
    rule = profile.detect
    parts = []
    if rule.architecture:
        parts.append("architecture " + " or ".join(rule.architecture))
    if rule.device_tree_model:
        parts.append(f"device tree model like {rule.device_tree_model}")
    if rule.l4t_release:
        parts.append("L4T " + " or ".join(rule.l4t_release))
    if rule.min_memory_mb is not None:
        parts.append(f"at least {rule.min_memory_mb} MB of memory")
    if rule.max_memory_mb is not None:
        parts.append(f"at most {rule.max_memory_mb} MB of memory")
    return ", ".join(parts) or "nothing: it is never chosen by itself"
