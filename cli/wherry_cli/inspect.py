"""`wherry inspect`: what a model file is, what runs it, and which devices an image of it would fit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from wherry.profile import load_profiles
from wherry.release import TensorSpec
from wherry_cli.output import Json, Output, fields, remarks, table
from wherry_cli.words import size

if TYPE_CHECKING:
    from wherry_cli.packaging.fit import ProfileFit
    from wherry_cli.packaging.inspection import Inspection, RuntimeVerdict

ModelPath = Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX or TFLite file.")]
_OPERATORS_SHOWN = 12


def inspect_model(model: ModelPath, as_json: Json = False) -> None:
    """Look into a model file: inputs, operators, size, precision, and which devices could run it."""
    # Model runtimes load slowly, and most commands do without.
    from wherry_cli.packaging.inspection import inspect_model as look_into
    from wherry_cli.packaging.store import Store, cache_folder

    found = look_into(model, load_profiles(), Store(cache_folder()))
    Output(as_json).result(found, lambda: inspection_page(found))


def inspection_page(found: Inspection) -> RenderableType:
    """The file, its signature, and its fit."""
    pairs: list[tuple[str, RenderableType]] = [
        ("Model", Text(found.file, style="bold")),
        ("Format", Text(_format(found))),
        ("Size", f"{size(found.bytes)}, {found.parameters:,} parameters"),
        ("Precision", f"{found.precision} ({_shares(found.weights)})"),
        ("Operators", Text(_operators(found))),
    ]
    if found.custom:
        pairs.append(("Custom", Text(", ".join(found.custom) + " (no runtime brings these)", style="red")))
    if found.stateful:
        pairs.append(("State", "keeps variables from one run to the next; packaging resets them for each request"))
    pairs += [("Metadata", Text(f"{key}: {value}")) for key, value in found.metadata.items()]
    pairs += [("Runtime", _verdict(item)) for item in found.runtimes]
    return Group(fields(pairs), Text(), _signature(found), Text(), _profiles(found.profiles))


def _format(found: Inspection) -> str:
    name = "ONNX" if found.format == "onnx" else "TFLite"
    details = [found.version] if found.version else []
    details += [f"opset {version}" if domain == "ai.onnx" else f"{domain} {version}" for domain, version in
                found.opsets.items()]  # fmt: skip
    if found.producer:
        details.append(f"by {found.producer}")
    return f"{name}, {', '.join(details)}" if details else name


def _shares(weights: dict[str, float]) -> str:
    shown = [f"{name} {share:.1%}" for name, share in weights.items() if share >= 0.001]
    return ", ".join(shown) or "no weights"


def _operators(found: Inspection) -> str:
    names = [f"{name} x{count}" for name, count in found.operators.items()]
    more = f", and {len(names) - _OPERATORS_SHOWN} more kinds" if len(names) > _OPERATORS_SHOWN else ""
    return f"{sum(found.operators.values())} of {len(names)} kinds: {', '.join(names[:_OPERATORS_SHOWN])}{more}"


def _verdict(item: RuntimeVerdict) -> Text:
    if item.ok is None:
        return Text(f"{item.runtime}: not tried, {item.reason}", style="dim")
    if item.ok:
        return Text.assemble(f"{item.runtime}: ", ("loads it", "green"))
    return Text.assemble(f"{item.runtime}: ", ("refuses it", "red"), f", {item.reason}")


def _signature(found: Inspection) -> RenderableType:
    if found.signature is None:
        return Text("Inputs and outputs are not known: no runtime loads it.", style="red")
    cells = [("input", *_tensor(item, found.axes)) for item in found.signature.inputs]
    cells += [("output", *_tensor(item, found.axes)) for item in found.signature.outputs]
    return table(("tensor", "name", "datatype", "shape"), cells, "No tensors.")


def _tensor(spec: TensorSpec, axes: dict[str, list[str]]) -> tuple[Text, str, Text]:
    """Name, datatype and shape. What a file says is text, never markup."""
    names = axes.get(spec.name) or [""] * len(spec.shape)
    shown = [str(length) if length >= 0 else (name or "?") for length, name in zip(spec.shape, names, strict=False)]
    return Text(spec.name), spec.datatype, Text(f"[{', '.join(shown)}]")


def _profiles(fits: list[ProfileFit]) -> RenderableType:
    cells = [
        (
            Text(item.profile, style="bold"),
            Text("fits", style="green") if item.fits else Text("no", style="red"),
            item.runtime or "-",
            f"{item.memory_mb} MiB",
            ("" if item.exact else "~") + size(sum(item.layers.values())) if item.unpacked_bytes else "-",
            " + ".join(f"{kind} {size(count)}" for kind, count in item.layers.items()) or "-",
        )
        for item in fits
    ]
    told: dict[str, list[str]] = {}
    for item in fits:
        for text in (*item.reasons, *item.remarks):
            told.setdefault(text, []).append(item.profile)
    notes = [(", ".join(names), text) for text, names in told.items()]
    shown = table(("profile", "verdict", "runtime", ">memory", ">download", "layers"), cells, "No profiles.")
    return Group(shown, remarks(notes)) if notes else shown
