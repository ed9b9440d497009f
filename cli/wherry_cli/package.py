"""`wherry package`: a model file becomes one OCI image per device profile."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import BaseModel, Field
from rich.console import Group, RenderableType
from rich.text import Text

from wherry.errors import InputError
from wherry.identity import ModelName, ModelVersion, ProfileName
from wherry.release import DecimalText, Precision, Runtime, Stage
from wherry_cli.inputs import checked
from wherry_cli.output import Json, Output, table
from wherry_cli.settings import Home, find_home, read_config
from wherry_cli.words import size

if TYPE_CHECKING:
    from wherry_cli.packaging.command import PackageOrder
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
_FINE = "Fine tuning"
NoGolden = Annotated[
    bool,
    typer.Option("--no-golden", metavar="", help="No golden cases: nothing proves the answers.", rich_help_panel=_FINE),
]
RuntimeName = Annotated[
    Runtime | None, typer.Option("--runtime", help="Model runtime; default: by the file.", rich_help_panel=_FINE)
]
Provider = Annotated[
    str | None,
    typer.Option(
        "--provider",
        metavar="NAME",
        help="Execution provider; default: the profile's first that fits.",
        rich_help_panel=_FINE,
    ),
]
PrecisionName = Annotated[
    Precision | None, typer.Option("--precision", help="Precision class; default: by the file.", rich_help_panel=_FINE)
]
BaseName = Annotated[
    str | None,
    typer.Option("--base", metavar="debian|REF", help="Other base than the profile's.", rich_help_panel=_FINE),
]
Memory = Annotated[
    int | None, typer.Option("--memory", metavar="MIB", help="Memory limit of the container.", rich_help_panel=_FINE)
]
Cpus = Annotated[
    str, typer.Option("--cpus", metavar="NUMBER", help="CPU limit of the container, 0 for none.", rich_help_panel=_FINE)
]
StartSeconds = Annotated[
    int | None,
    typer.Option(
        "--start-seconds", metavar="SECONDS", help="Time the container may take to become ready.", rich_help_panel=_FINE
    ),
]
HealthPath = Annotated[
    str | None,
    typer.Option(
        "--health-path",
        metavar="PATH",
        help="For images that speak no inference protocol: what must answer 200.",
        rich_help_panel=_FINE,
    ),
]


class PackageRequest(BaseModel):
    """What the command line asks packaging for; the names are those of the options."""

    name: ModelName
    version: ModelVersion
    profiles: list[ProfileName]
    model: Path | None = None
    registry: str | None = None
    golden: Path | None = None
    no_golden: bool = False
    shapes: list[str] = []
    stage: Stage = "prod"
    from_image: str | None = None
    output: Path | None = None
    runtime: Runtime | None = None
    provider: str | None = None
    precision: Precision | None = None
    base: str | None = None
    memory_mb: Annotated[int, Field(ge=16)] | None = None
    cpus: DecimalText = "0"
    start_seconds: Annotated[int, Field(ge=1, le=3600)] | None = None
    health_path: str | None = None

    def folder(self, home: Home) -> Path:
        """Where package.json goes: when nobody says, beside the keys and out of the way of the user's files."""
        return self.output or home.packages / f"{self.name}-{self.version}"

    def to_order(self, home: Home) -> PackageOrder:
        """The same as packaging wants it.

        Raises:
            InputError: a shape is not readable.
        """
        from wherry_cli.packaging.command import PackageOrder, parse_shapes
        from wherry_cli.packaging.release import ReleaseOptions

        release = ReleaseOptions(
            stage=self.stage, memory_mb=self.memory_mb, cpus=self.cpus,
            start_seconds=self.start_seconds, health_path=self.health_path,
        )  # fmt: skip
        return PackageOrder(
            name=self.name, version=self.version, profiles=tuple(self.profiles), model=self.model,
            from_image=self.from_image, registry=self.registry, output=self.folder(home), golden=self.golden,
            no_golden=self.no_golden, shapes=parse_shapes(self.shapes), runtime=self.runtime, provider=self.provider,
            precision=self.precision, base=self.base, release=release,
        )  # fmt: skip


def read_request(**values: Any) -> PackageRequest:
    """The request of a command line; the registry is the one given at login unless another is named.

    Raises:
        InputError: a value is not usable, or neither or both of a model file and --from-image are given.
    """
    request = checked(PackageRequest, **{name: value for name, value in values.items() if value is not None})
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
    output: OutputFolder = None,
    golden: Golden = None,
    shape: Shapes = None,
    stage: StageName = "prod",
    from_image: FromImage = None,
    no_golden: NoGolden = False,
    runtime: RuntimeName = None,
    provider: Provider = None,
    precision: PrecisionName = None,
    base: BaseName = None,
    memory: Memory = None,
    cpus: Cpus = "0",
    start_seconds: StartSeconds = None,
    health_path: HealthPath = None,
    as_json: Json = False,
) -> None:
    """Make images for device profiles out of a model file: no Dockerfile, no Docker, no code."""
    out = Output(as_json)
    request = read_request(
        name=name, version=version, profiles=profile, model=model, registry=registry, golden=golden, shapes=shape,
        stage=stage, from_image=from_image, output=output, no_golden=no_golden, runtime=runtime, provider=provider,
        precision=precision, base=base, memory_mb=memory, cpus=cpus, start_seconds=start_seconds,
        health_path=health_path,
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

    home = find_home()
    with ProgressView(out) as view:
        made = package(request.to_order(home), view.report)
    return made, request.folder(home)


def package_page(made: PackageFile, folder: Path) -> RenderableType:
    """The images and their layers."""
    cells = []
    for image in made.images:
        layers = " + ".join(f"{layer.kind} {size(layer.size)}" for layer in image.layers)
        short = image.digest[:19] + "…"
        where = f"{image.repository}@{short}" if image.repository else f"{short} in {folder / image.profile}"
        cells.append((Text(image.profile, style="bold"), size(image.download_bytes), layers, where))
    head = Text.assemble(("Packaged ", "green"), (f"{made.model} {made.version}", "bold green"), f" in {folder}")
    pushed = all(image.repository for image in made.images)
    step = f"wherry release publish {folder}" if pushed else "package with --registry HOST:PORT, to publish it"
    hint = Text(f"Next: {step}", style="dim")
    return Group(head, table(("profile", ">download", "layers", "image"), cells, "No images."), hint)
