"""`wherry release …`: sign and publish what was packaged; see what is published."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from wherry.api.releases import ReleaseImageView, ReleaseView
from wherry.api.repository import RepositoryInfo
from wherry.errors import InputError
from wherry_cli.complete import complete_models, complete_profiles, complete_versions
from wherry_cli.looking import now_utc
from wherry_cli.output import Json, Output, bar, fields, indented, table
from wherry_cli.session import confirm, connected
from wherry_cli.settings import find_home, load_settings
from wherry_cli.words import ago, size

if TYPE_CHECKING:
    from wherry_cli.owner import Published
    from wherry_cli.packaging.package_file import PackageFile

app = typer.Typer(help="Sign and publish what was packaged; see what is published.", no_args_is_help=True)

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Model of the release.", autocompletion=complete_models)]
Version = Annotated[
    str, typer.Argument(metavar="VERSION", help="Version of the release.", autocompletion=complete_versions)
]


@app.command()
def publish(
    package: Annotated[
        Path, typer.Argument(metavar="PACKAGE", help="package.json of `wherry package`, or its folder.")
    ],
    again: Annotated[
        bool,
        typer.Option(
            "--again", metavar="", help="Sign it once more under a higher counter, to go back to an older version."
        ),
    ] = False,
    registry: Annotated[
        str | None,
        typer.Option(
            "--registry", metavar="HOST:PORT", help="Push saved images there first; default: the one given at login."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Sign a package with the owner's keys and give the signed metadata to the server.

    Images that were saved with --no-push, and carried here beside package.json, are pushed first.
    """
    from wherry_cli.owner import Owner  # signing libraries load slowly, most commands do without
    from wherry_cli.packaging.carried import is_carried
    from wherry_cli.packaging.package_file import read_package_file

    out = Output(as_json)
    content = read_package_file(package)
    with connected() as client:
        owner = Owner(find_home(), client, out.note)
        if is_carried(content):
            owner.check()
            content = _push_first(content, package if package.is_dir() else package.parent, registry, out)
        published = owner.publish(content, now_utc(), again)
    out.result(published, lambda: published_page(published))


def _push_first(content: PackageFile, folder: Path, registry: str | None, out: Output) -> PackageFile:
    from wherry_cli.packaging.carried import push_carried
    from wherry_cli.packaging.registry import RegistryClient
    from wherry_cli.progress_view import ProgressView

    target = registry or load_settings(find_home()).registry
    if not target:
        raise InputError("--registry", "is missing, and devices pull from a registry", "Name one here or at login")
    with ProgressView(out) as view:
        return push_carried(content, folder, lambda: RegistryClient.for_user(target), view.report)


def published_page(published: Published) -> RenderableType:
    """What is signed now."""
    cells = [
        (
            Text(image.profile, style="bold"),
            str(image.counter),
            size(image.download_bytes),
            image.digest[:19] + "…",
            Text("signed", style="green") if image.fresh else Text("published before", style="dim"),
        )
        for image in published.images
    ]
    name = f"{published.model} {published.version}"
    head = Text.assemble(("Published ", "green"), (name, "bold green"), f" (targets {published.repository.targets})")
    return Group(head, table(("profile", ">counter", ">download", "image", ""), cells, "No images."))


@app.command("list")
def list_releases(
    model: Annotated[
        str | None, typer.Option("--model", help="Only this model.", autocompletion=complete_models)
    ] = None,
    as_json: Json = False,
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
            " ".join(part for part in (image.runtime, image.precision, image.provider) if part),
            size(image.download_bytes),
            size(image.unpacked_bytes),
            Text("withdrawn", style="bold red") if image.withdrawn else "",
        )
        for image in view.images
    ]
    columns = ("profile", ">counter", "runtime", ">download", ">unpacked", "")
    parts: list[RenderableType] = [head, Text(), table(columns, cells, "No images.")]
    for image in view.images:
        parts += [Text(), Text.assemble((image.profile, "bold"), f"  {image.repository}@{image.digest}")]
        if image.layers:
            parts.append(indented(_layers(image)))
    return Group(*parts)


def _layers(image: ReleaseImageView) -> RenderableType:
    """Where the bytes are: the largest layer first, with its part of the download."""
    total = sum(image.layers.values())
    found = sorted(image.layers.items(), key=lambda layer: -layer[1])
    cells = [
        (kind, size(count), bar(count, total, 20), f"{100 * count / max(total, 1):.0f} %") for kind, count in found
    ]
    return table(("layer", ">size", "", ">part"), cells, "")


@app.command()
def revoke(
    model: Model,
    version: Version,
    profile: Annotated[
        str | None, typer.Option("--profile", help="Only the image for this profile.", autocompletion=complete_profiles)
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", metavar="", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Withdraw a release for good: no device may run it again, not even as a rollback."""
    from wherry_cli.owner import Owner  # signing libraries load slowly, most commands do without

    out = Output(as_json)
    confirm(f"Withdraw {model} {version} for good?", yes, out)
    with connected() as client:
        withdrawn = Owner(find_home(), client, out.note).revoke(model, version, profile, now_utc())
    images = [{"profile": found.image.profile, "digest": found.digest} for found in withdrawn]
    profiles = ", ".join(image["profile"] for image in images)
    result = {"model": model, "version": version, "revoked": images}
    out.result(result, lambda: Text(f"{model} {version} is withdrawn for {profiles}."))


@app.command()
def renew(as_json: Json = False) -> None:
    """Sign the metadata again before it expires, without a new release."""
    from wherry_cli.owner import Owner  # signing libraries load slowly, most commands do without

    out = Output(as_json)
    with connected() as client:
        info = Owner(find_home(), client, out.note).renew(now_utc())
    out.result(info, lambda: _renewed(info))


def _renewed(info: RepositoryInfo) -> Text:
    signed = [role for role in ("targets", "snapshot") if role in info.expires]
    dates = ", ".join(f"{role} until {info.expires[role]:%Y-%m-%d}" for role in signed)
    return Text(f"Signed again: {dates or f'targets {info.targets}, snapshot {info.snapshot}'}.")
