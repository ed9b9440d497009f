"""`wherry release …`: sign and publish what was packaged; see what is published."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from wherry.api import ReleaseView
from wherry_cli.follow import now_utc
from wherry_cli.output import Json, Output, fields, table
from wherry_cli.session import connected
from wherry_cli.words import ago, size

app = typer.Typer(help="Sign and publish what was packaged; see what is published.", no_args_is_help=True)

Model = Annotated[str, typer.Argument(help="Model of the release.")]
Version = Annotated[str, typer.Argument(help="Version of the release.")]


@app.command("list")
def list_releases(
    model: Annotated[str | None, typer.Option("--model", help="Only this model.")] = None, as_json: Json = False
) -> None:
    """Show every published release."""
    with connected() as client:
        found = list(client.releases(model))
    Output(as_json).result({"items": found}, lambda: _releases_table(found))


def _releases_table(found: list[ReleaseView]) -> RenderableType:
    now = now_utc()
    cells = [
        (
            Text(f"{view.model} {view.version}", style="bold"),
            view.stage,
            ago(view.published, now),
            ", ".join(f"{image.profile} #{image.counter}" for image in view.images),
            size(max((image.download_bytes for image in view.images), default=0)),
        )
        for view in found
    ]
    empty = "No releases yet. Publish one with `wherry release publish PACKAGE` or `wherry push MODEL`."
    return table(("release", "stage", "published", "images", ">largest"), cells, empty)


@app.command()
def show(model: Model, version: Version, as_json: Json = False) -> None:
    """Show one release with its images."""
    with connected() as client:
        view = client.release(model, version)
    Output(as_json).result(view, lambda: _release_page(view))


def _release_page(view: ReleaseView) -> RenderableType:
    head = fields(
        [
            ("Release", Text(f"{view.model} {view.version}", style="bold")),
            ("Stage", view.stage),
            ("Published", ago(view.published, now_utc())),
        ]
    )
    cells = [
        (
            Text(image.profile, style="bold"),
            str(image.counter),
            f"{image.runtime} {image.precision}",
            size(image.download_bytes),
            size(image.unpacked_bytes),
            f"{image.repository}@{image.digest}",
        )
        for image in view.images
    ]
    columns = ("profile", ">counter", "runtime", ">download", ">unpacked", "image")
    return Group(head, Text(), table(columns, cells, "No images."))
