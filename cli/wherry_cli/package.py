"""`wherry package`: a model file becomes one OCI image per device profile."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import BaseModel
from rich.console import Group, RenderableType
from rich.text import Text

from wherry.errors import InputError
from wherry.identity import ModelName, ModelVersion, ProfileName
from wherry.release import Stage
from wherry_cli.inputs import checked
from wherry_cli.output import Json, Output, table
from wherry_cli.settings import Home, find_home, read_config
from wherry_cli.words import size

if TYPE_CHECKING:
    from wherry_cli.packaging.package_file import PackageFile

ModelPath = Annotated[
    Path | None, typer.Argument(metavar="MODEL", help="An ONNX or TFLite file; none with --from-image.")
]
Name = Annotated[str, typer.Option("--name", help="Name of the model.")]
Version = Annotated[str, typer.Option("--version", help="Version of the model, as you write it.")]
Profiles = Annotated[
    list[str], typer.Option("--profile", metavar="PROFILE", help="Device profile; repeatable (`wherry profile list`).")
]
Registry = Annotated[
    str | None,
    typer.Option("--registry", metavar="HOST:PORT", help="OCI registry to push to; default: the one given at login."),
]
Golden = Annotated[
    Path | None, typer.Option("--golden", help="golden.json with requests and expected answers; default: made up.")
]
Shapes = Annotated[
    list[str] | None,
    typer.Option("--shape", metavar="INPUT=1,3,224,224", help="Size of a dynamic input for made-up golden cases."),
]
StageName = Annotated[Stage, typer.Option("--stage", help="Channel that the release is for.")]
FromImage = Annotated[
    str | None, typer.Option("--from-image", metavar="REF", help="A ready-made image instead of a model file.")
]
OutputFolder = Annotated[
    Path | None, typer.Option("--output", metavar="DIR", help="Where package.json and golden.json are written.")
]


class PackageRequest(BaseModel):
    """What the command line asks packaging for."""

    name: ModelName
    version: ModelVersion
    profiles: list[ProfileName]
    model: Path | None = None
    registry: str | None = None
    golden: Path | None = None
    shapes: list[str] = []
    stage: Stage = "prod"
    from_image: str | None = None
    output: Path | None = None

    def folder(self, home: Home) -> Path:
        """Where package.json goes: when nobody says, beside the keys and out of the way of the user's files."""
        return self.output or home.packages / f"{self.name}-{self.version}"


def read_request(**values: Any) -> PackageRequest:
    """The request of a command line; the registry is the one given at login unless another is named.

    Raises:
        InputError: a value is not usable, or neither or both of a model file and --from-image are given.
    """
    request = checked(PackageRequest, **values)
    if request.model and request.from_image:
        raise InputError("a model file and --from-image", "are both given", "Give one of them")
    if not request.model and not request.from_image:
        raise InputError("the model file", "is missing", "Name an .onnx or .tflite file, or give --from-image")
    registry = request.registry or os.environ.get("WHERRY_REGISTRY") or read_config(find_home()).get("registry")
    return request.model_copy(update={"registry": registry})


def package_model(
    name: Name,
    version: Version,
    profile: Profiles,
    model: ModelPath = None,
    registry: Registry = None,
    golden: Golden = None,
    shape: Shapes = None,
    stage: StageName = "prod",
    from_image: FromImage = None,
    output: OutputFolder = None,
    as_json: Json = False,
) -> None:
    """Make images for device profiles out of a model file: no Dockerfile, no Docker, no code."""
    out = Output(as_json)
    request = read_request(
        name=name, version=version, profiles=profile, model=model, registry=registry, golden=golden,
        shapes=shape or [], stage=stage, from_image=from_image, output=output,
    )  # fmt: skip
    made, folder = make_package(request, out)
    result = {"file": str(folder / "package.json"), **made.model_dump(mode="json", by_alias=True)}
    out.result(result, lambda: package_page(made, folder))


def make_package(request: PackageRequest, out: Output) -> tuple[PackageFile, Path]:
    """Run packaging with its progress on standard error; the package and the folder of its files.

    Raises:
        WherryError: whatever packaging found wrong.
    """
    from wherry_cli.packaging.command import package  # model runtimes load slowly, most commands do without
    from wherry_cli.progress_view import ProgressView

    folder = request.folder(find_home())
    with ProgressView(out) as view:
        made = package(report=view.report)
    return made, folder


def package_page(made: PackageFile, folder: Path) -> RenderableType:
    """The images and their layers."""
    cells = []
    for image in made.images:
        layers = " + ".join(f"{layer.kind} {size(layer.size)}" for layer in image.layers)
        where = f"{image.repository}@{image.digest}" if image.repository else f"saved only, {image.digest}"
        cells.append((Text(image.profile, style="bold"), size(image.download_bytes), layers, where))
    head = Text.assemble(("Packaged ", "green"), (f"{made.model} {made.version}", "bold green"), f" in {folder}")
    hint = Text(f"Next: wherry release publish {folder}", style="dim")
    return Group(head, table(("profile", ">download", "layers", "image"), cells, "No images."), hint)
