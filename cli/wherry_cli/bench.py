"""`wherry bench`: what a container costs a model on this very machine, beside bare and a virtual machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group
from rich.text import Text

from wherry.errors import StoreError
from wherry_cli.costs.report import as_data, as_picture, as_table
from wherry_cli.costs.trial import Effort, try_all
from wherry_cli.output import Json, Output


def bench(
    model: Annotated[Path, typer.Argument(help="ONNX or TFLite file.", metavar="MODEL", exists=True, dir_okay=False)],
    base: Annotated[str | None, typer.Option(help="Base image, as for `wherry package`.", metavar="BASE")] = None,
    starts: Annotated[int, typer.Option(help="Starts of each way.", min=1, max=50)] = 3,
    rounds: Annotated[int, typer.Option(help="Turns of each way, of 100 inferences each.", min=2, max=200)] = 6,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for bench.json and bench.svg.", metavar="FOLDER")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a model bare, in a container and in a small virtual machine, and compare what each costs.

    The same files are run in each way, and all ways are asked in turn. Needs root and a Docker engine; the virtual
    machine is measured where qemu-system is installed.
    """
    output = Output(as_json)
    with output.errors.status("packaging") as status:
        found, left_out = try_all(
            model,
            base,
            Effort(starts=starts, rounds=rounds),
            lambda step: status.update(step.stage),
            status.update,
        )
    data = as_data(model.name, found, left_out)
    picture = ""
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
            (out / "bench.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
            (out / "bench.svg").write_text(as_picture(model.name, found), encoding="utf-8")
        except OSError as error:
            raise StoreError(f"folder {out}", f"cannot be written ({error.strerror})", "Check --out") from error
        picture = f"picture: {out / 'bench.svg'}"
    shown = as_table(found, left_out)
    output.result(data, lambda: Group(shown, Text(picture, style="dim")) if picture else shown)
