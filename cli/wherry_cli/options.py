"""The options that `wherry package` and `wherry push` share: each is declared once, with its check and its help."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer
from pydantic import BaseModel, Field
from typer.models import ParameterInfo

from wherry.agent_release import AGENT_MODEL
from wherry.errors import InputError
from wherry.identity import ModelName, ModelVersion, ProfileName, SlotName
from wherry.release import DecimalText, Precision, Runtime, Stage
from wherry_cli.complete import complete_profiles
from wherry_cli.inputs import checked
from wherry_cli.settings import Home, find_home, read_config

if TYPE_CHECKING:
    from wherry_cli.packaging.command import PackageOrder

_FINE = "Fine tuning"


class PackageRequest(BaseModel):
    """What the command line asks packaging for. A field is an option: its type and limits check it, Typer shows it."""

    model: Annotated[
        Path | None, typer.Argument(metavar="MODEL", help="An ONNX or TFLite file; none with --from-image.")
    ] = None
    name: Annotated[ModelName, typer.Option("--name", help="Name of the model.")]
    version: Annotated[ModelVersion, typer.Option("--version", help="Version of the model, as you write it.")]
    profiles: Annotated[
        list[ProfileName],
        typer.Option(
            "--profile",
            metavar="PROFILE",
            help="Device profile; repeatable (`wherry profile list`).",
            autocompletion=complete_profiles,
        ),
    ]
    registry: Annotated[
        str | None,
        typer.Option(
            "--registry", metavar="HOST:PORT", help="OCI registry to push to; default: the one given at login."
        ),
    ] = None
    output: Annotated[
        Path | None, typer.Option("--output", metavar="DIR", help="Where package.json and golden.json are written.")
    ] = None
    golden: Annotated[
        Path | None,
        typer.Option(
            "--golden",
            help="golden.json with requests and answers, or a folder of cases or pictures; default: made up.",
        ),
    ] = None
    shapes: Annotated[
        list[str],
        typer.Option("--shape", metavar="INPUT=1,3,224,224", help="Size of a dynamic input for made-up golden cases."),
    ] = []
    stage: Annotated[
        Stage,
        typer.Option(
            "--stage",
            help="Stage of the images; dev has a page at / to try the model. Its devices: --to label=stage=STAGE.",
        ),
    ] = "prod"
    quantize: Annotated[
        Literal["fp16", "int8"] | None,
        typer.Option("--quantize", help="Make the model smaller first, and refuse it if its answers change."),
    ] = None
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration", metavar="DIR", help="Typical inputs for --quantize: .npz, .npy, golden cases, or pictures."
        ),
    ] = None
    picture: Annotated[
        Path | None,
        typer.Option("--picture", metavar="FILE", help="How pictures become inputs, and labels of the classes (TOML)."),
    ] = None
    no_push: Annotated[
        bool, typer.Option("--no-push", metavar="", help="Only save the images, whatever registry login gave.")
    ] = False
    from_image: Annotated[
        str | None, typer.Option("--from-image", metavar="REF", help="A ready-made image instead of a model file.")
    ] = None
    no_golden: Annotated[
        bool,
        typer.Option(
            "--no-golden", metavar="", help="No golden cases: nothing proves the answers.", rich_help_panel=_FINE
        ),
    ] = False
    min_agreement: Annotated[
        float,
        Field(gt=0, le=100),
        typer.Option(
            "--min-agreement",
            metavar="PERCENT",
            help="Answers of the original that --quantize must keep.",
            rich_help_panel=_FINE,
        ),
    ] = 99.0
    reset: Annotated[
        Literal["each", "never"] | None,
        typer.Option(
            "--reset",
            help="Forget a stateful TFLite model's variables for each request; default: if it has any.",
            rich_help_panel=_FINE,
        ),
    ] = None
    runtime: Annotated[
        Runtime | None, typer.Option("--runtime", help="Model runtime; default: by the file.", rich_help_panel=_FINE)
    ] = None
    provider: Annotated[
        str | None,
        typer.Option(
            "--provider",
            metavar="NAME",
            help="Execution provider; default: the profile's first that fits.",
            rich_help_panel=_FINE,
        ),
    ] = None
    precision: Annotated[
        Precision | None,
        typer.Option("--precision", help="Precision class; default: by the file.", rich_help_panel=_FINE),
    ] = None
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="debian|REF", help="Other base than the profile's.", rich_help_panel=_FINE),
    ] = None
    memory_mb: Annotated[
        int | None,
        Field(ge=16),
        typer.Option("--memory", metavar="MIB", help="Memory limit of the container.", rich_help_panel=_FINE),
    ] = None
    cpus: Annotated[
        DecimalText,
        typer.Option("--cpus", metavar="NUMBER", help="CPU limit of the container, 0 for none.", rich_help_panel=_FINE),
    ] = "0"
    start_seconds: Annotated[
        int | None,
        Field(ge=1, le=3600),
        typer.Option(
            "--start-seconds",
            metavar="SECONDS",
            help="Time the container may take to become ready.",
            rich_help_panel=_FINE,
        ),
    ] = None
    health_path: Annotated[
        str | None,
        typer.Option(
            "--health-path",
            metavar="PATH",
            help="For images that speak no inference protocol: what must answer 200.",
            rich_help_panel=_FINE,
        ),
    ] = None
    gates: Annotated[
        list[str],
        typer.Option(
            "--gate",
            metavar="KIND[:NAME=VALUE,...]",
            help="One more health gate, or other settings for one; repeatable: latency, memory, temperature, tcp, "
            "rehearsal, shadow, soak. `rehearsal` lets the model server keep its last requests in memory.",
            rich_help_panel=_FINE,
        ),
    ] = []
    drains: Annotated[
        bool,
        typer.Option(
            "--drains",
            metavar="",
            help="For images of your own that answer what is under way, with `Connection: close`, when told to end: "
            "their callers need no proxy.",
            rich_help_panel=_FINE,
        ),
    ] = False
    needs_slots: Annotated[
        list[SlotName],
        typer.Option(
            "--needs-slot",
            metavar="SLOT",
            help="Another slot of the device that this model calls: it is not started before that one serves; "
            "repeatable.",
            rich_help_panel=_FINE,
        ),
    ] = []
    breaking: Annotated[
        bool,
        typer.Option(
            "--breaking",
            metavar="",
            help="Callers of the version before must change: its inputs or outputs are others.",
            rich_help_panel=_FINE,
        ),
    ] = False

    def folder(self, home: Home) -> Path:
        """Where package.json goes: when nobody says, beside the keys and out of the way of the user's files."""
        return self.output or home.packages / f"{self.name}-{self.version}"

    def to_order(self, home: Home) -> PackageOrder:
        """The same as packaging wants it.

        Raises:
            InputError: a shape or gate is not readable.
        """
        from wherry_cli.packaging.command import PackageOrder, parse_shapes
        from wherry_cli.packaging.gates import parse_gate
        from wherry_cli.packaging.quantize import Quantize
        from wherry_cli.packaging.release import ReleaseOptions

        release = ReleaseOptions(
            stage=self.stage, memory_mb=self.memory_mb, cpus=self.cpus,
            start_seconds=self.start_seconds, health_path=self.health_path,
            gates=tuple(parse_gate(text) for text in self.gates), breaking=self.breaking,
            needs_slots=tuple(self.needs_slots), drains=self.drains or None,
        )  # fmt: skip
        return PackageOrder(
            name=self.name, version=self.version, profiles=tuple(self.profiles), model=self.model,
            from_image=self.from_image, registry=self.registry, output=self.folder(home), golden=self.golden,
            no_golden=self.no_golden, shapes=parse_shapes(self.shapes), runtime=self.runtime, provider=self.provider,
            precision=self.precision, base=self.base, release=release, reset=self.reset, picture=self.picture,
            quantize=Quantize(self.quantize, self.calibration, self.min_agreement) if self.quantize else None,
        )  # fmt: skip


def takes_package_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command, whose first parameter is a `PackageRequest`, the request's fields as options in its place."""
    fields = _options(PackageRequest)
    own = list(inspect.signature(command).parameters.values())[1:]
    hints = get_type_hints(command, include_extras=True)

    @functools.wraps(command)
    def wrapped(**values: Any) -> None:
        chosen = {name: values.pop(name) for name in fields}
        command(read_request(**chosen), **values)

    kept = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[parameter.name]) for parameter in own
    ]
    parameters = [*fields.values(), *kept]
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapped


def _options(kind: type[BaseModel]) -> dict[str, inspect.Parameter]:
    """The fields of a model as parameters that Typer understands, which knows the plain types only."""
    plain, full = get_type_hints(kind), get_type_hints(kind, include_extras=True)
    found = {}
    for name, field in kind.model_fields.items():
        shown = next(part for part in full[name].__metadata__ if isinstance(part, ParameterInfo))
        default = inspect.Parameter.empty if field.is_required() else field.default or None
        found[name] = inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default if isinstance(field.default, bool) else default,
            annotation=Annotated[plain[name], shown],
        )
    return found


def read_request(**values: Any) -> PackageRequest:
    """The request of a command line; the registry is the one given at login unless another is named.

    Raises:
        InputError: a value is not usable, the model file is not there, or neither or both of it and --from-image
            are given.
    """
    request = checked(PackageRequest, **{name: value for name, value in values.items() if value is not None})
    if request.name == AGENT_MODEL:
        raise InputError(f"model name {AGENT_MODEL}", "is kept for the agent itself", "Use `wherry agent push`")
    if request.model and request.from_image:
        raise InputError("a model file and --from-image", "are both given", "Give one of them")
    if not request.model and not request.from_image:
        raise InputError("the model file", "is missing", "Name an .onnx or .tflite file, or give --from-image")
    if request.model and not request.model.is_file():
        reason = "is a folder" if request.model.is_dir() else "does not exist"
        raise InputError(f"model file {request.model}", reason, "Check the path")
    if request.calibration and not request.quantize:
        raise InputError("--calibration", "is given without --quantize", "Add --quantize int8 (or fp16)")
    if request.no_push:
        if request.registry:
            raise InputError("--registry and --no-push", "contradict each other", "Give one of them")
        return request
    registry = request.registry or os.environ.get("WHERRY_REGISTRY") or read_config(find_home()).get("registry")
    return request.model_copy(update={"registry": registry})
