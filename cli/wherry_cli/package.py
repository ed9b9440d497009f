"""`wherry package`: a model file becomes one OCI image per device profile."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from wherry_cli.options import PackageRequest, takes_package_options
from wherry_cli.output import Json, Output, table
from wherry_cli.settings import find_home
from wherry_cli.words import size

if TYPE_CHECKING:
    from wherry_cli.packaging.package_file import PackageFile


@takes_package_options
def package_model(request: PackageRequest, as_json: Json = False) -> None:
    """Make images for device profiles out of a model file: no Dockerfile, no Docker, no code."""
    out = Output(as_json)
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
    where = "" if pushed else " --registry HOST:PORT, here or where you carry the folder"
    hint = Text(f"Next: wherry release publish {folder}{where}", style="dim")
    images = table(("profile", ">download", "layers", "image"), cells, "No images.")
    return Group(head, *quantization_table(made), images, hint)


def quantization_table(made: PackageFile) -> list[RenderableType]:
    """The model beside its original; nothing without --quantize."""
    report = made.quantization
    if report is None:
        return []
    if report.quantized is None:
        return [Text(f"The model is {report.kind} already: --quantize changed nothing.", style="yellow")]
    old, new = report.original, report.quantized
    cells = [
        (Text("original"), old.precision, size(old.bytes), f"{old.milliseconds:.2f} ms", "", "", ""),
        (
            Text(report.method, style="bold"),
            new.precision,
            f"{size(new.bytes)} ({new.bytes / old.bytes:.0%})",
            f"{new.milliseconds:.2f} ms",
            f"{report.error:.2g}",
            f"{report.cosine:.5f}",
            f"{report.agreement:.1%}",
        ),
    ]
    kind = "made-up inputs (give typical ones with --calibration)" if report.made_up else "samples"
    note = Text(f"Compared on {report.samples} {kind}; latency is this machine's median.", style="dim")
    columns = ("model", "precision", ">size", ">latency", ">error", ">cosine", ">agreement")
    return [table(columns, cells, ""), note, Text()]
