"""A declaration file: how a picture becomes an input, and what an output's numbers mean. No code.

```toml
[picture]              # whatever the model's signature says already may be left out
input = "x"
width = 224
height = 224
layout = "NCHW"
colour = "rgb"
fit = "cover"
scale = "1/255"
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]

[labels]
output = "scores"
file = "labels.txt"    # in the same folder, one name a line; or names = ["cat", "dog"]
top = 3
softmax = true
```
"""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from wherry.errors import ConfigError, InputError
from wherry.release import LabelledOutput, ModelFile, PictureInput, Signature, TensorSpec
from wherry_serving.labels import check_labelled
from wherry_serving.pictures import check_picture

_CHANNELS = (1, 3)
_MOST_BYTES = 4 << 20
_MOST_LABELS = 100_000
_LONGEST_LABEL = 256


def _number(value: Any) -> Any:
    """`"1/255"` as a number: nobody should have to write 0.00392156862745098."""
    if not isinstance(value, (str, int, float)) or isinstance(value, bool):
        return value
    above, slash, below = str(value).partition("/")
    try:  # as floats: an exact 1e99999999 would be computed for ever
        found = float(above) / float(below) if slash else float(above)
    except ZeroDivisionError as error:
        raise ValueError("divides by zero") from error
    except ValueError as error:
        raise ValueError(f"is {str(value)[:40]!r}, expected a number or a fraction of two") from error
    if not math.isfinite(found):
        raise ValueError(f"is {str(value)[:40]!r}, expected a number below 1e308")
    return found


Number = Annotated[float, BeforeValidator(_number)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class PicturePart(_Part):
    """`[picture]`: fields of `wherry.release.PictureInput`; None is taken from the signature."""

    input: str | None = None
    width: int | None = None
    height: int | None = None
    layout: str | None = None
    colour: str | None = None
    fit: str | None = None
    pad: int | None = None
    scale: Number | None = None
    mean: list[Number] | None = None
    std: list[Number] | None = None
    fixed: dict[str, list[Number]] | None = None


class LabelsPart(_Part):
    """`[labels]`: names of an output's classes."""

    output: str | None = None
    names: list[str] = []
    file: str | None = None
    top: int | None = None
    softmax: bool | None = None


class Declaration(_Part):
    """What the file says, before it is compared with a model."""

    source: str = ""
    picture: PicturePart | None = None
    labels: LabelsPart | None = None


def read_declaration(path: Path) -> Declaration:
    """Read a declaration file, and the file of labels that it names.

    Raises:
        InputError: unreadable, no TOML, or with a field that does not exist or has the wrong type.
    """
    thing = f"picture file {path}"
    try:
        found = Declaration.model_validate(tomllib.loads(_text(path)) | {"source": str(path)})
        if found.labels and found.labels.file:
            lines = _text(_beside(path, found.labels.file)).splitlines()
            found.labels.names = [line.strip() for line in lines if line.strip()]
        _check_names(found.labels.names if found.labels else [], thing)
    except OSError as error:
        raise InputError(thing, f"cannot be read ({error.filename}: {error.strerror})", "Check the path") from error
    except ValidationError as error:
        raise InputError(thing, _first_problem(error)) from error
    except ValueError as error:  # TOML, UTF-8, and numbers of thousands of digits
        raise InputError(thing, f"is not TOML ({error})") from error
    if found.picture is None and found.labels is None:
        raise InputError(thing, "declares nothing", "Write a [picture] or a [labels] section")
    return found


def _text(path: Path) -> str:
    """The text of an ordinary file of sane size."""
    if not path.is_file() and path.exists():
        raise InputError(f"file {path}", "is not an ordinary file")
    with path.open("rb") as file:
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise InputError(f"file {path}", f"is larger than {_MOST_BYTES >> 20} MiB", "Check that it is the right file")
    return data.decode("utf-8")


def _beside(path: Path, name: str) -> Path:
    """A file that a declaration names: what it holds is published, so it must not lead out of the folder."""
    folder = path.parent.resolve()
    place = (folder / name).resolve()
    if not place.is_relative_to(folder):
        reason = f"names {name[:200]!r} as the file of labels, which is outside its folder"
        raise InputError(f"picture file {path}", reason, f"Put the file of labels into {folder}")
    return place


def _check_names(names: list[str], thing: str) -> None:
    if len(names) > _MOST_LABELS:
        raise InputError(thing, f"has {len(names)} labels, at most {_MOST_LABELS} are taken")
    for number, name in enumerate(names, 1):
        if len(name) > _LONGEST_LABEL or not name.isprintable():
            reason = f"has {name[:40]!r} as label {number}, expected at most {_LONGEST_LABEL} printable characters"
            raise InputError(thing, reason)


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    known = {"extra_forbidden": "is not known here", "missing": "is missing, and the model takes any"}
    return f"field {where}: {known.get(first['type'], first['msg'])}"


def declare(found: Declaration, file: ModelFile) -> ModelFile:
    """The model's description with its picture and labels, checked against the signature.

    Raises:
        InputError: the declaration does not fit the model, in words.
    """
    thing = f"picture file {found.source}"
    try:
        picture = _picture(found.picture, file.signature) if found.picture else None
        labelled = _labelled(found.labels, file.signature) if found.labels else None
    except ValidationError as error:
        raise InputError(thing, _first_problem(error)) from error
    described = file.model_copy(update={"picture": picture, "labelled": labelled})
    try:
        if picture is not None:
            check_picture(described)
        check_labelled(described)
    except ConfigError as error:
        part = error.thing.partition(" of ")[0]  # "picture" or "labels"
        fix = "Correct it; `wherry inspect` shows the model's tensors"
        raise InputError(f"{part} in {found.source}", error.reason, fix) from error
    return described


def _picture(part: PicturePart, signature: Signature) -> PictureInput:
    given = part.model_dump(exclude_none=True)
    name = part.input or next((spec.name for spec in signature.inputs if len(spec.shape) >= 3), "")
    found = {spec.name: spec for spec in signature.inputs}
    if name not in found:
        what = f"fills input {name!r}" if name else "finds no input with the axes of a picture"
        fix = "Name one of them as input; `wherry inspect` shows them"
        raise InputError("[picture]", f"{what}, the model has {', '.join(found)}", fix)
    return PictureInput.model_validate(_taken(found[name], given) | {"input": name} | given)


def _taken(spec: TensorSpec, given: dict[str, Any]) -> dict[str, Any]:
    """What the tensor's shape says of the picture: layout, size, and whether it is gray."""
    if len(spec.shape) not in (3, 4):
        return {}
    axes = spec.shape[-3:]
    layout = given.get("layout") or ("NHWC" if axes[2] in _CHANNELS and axes[0] not in _CHANNELS else "NCHW")
    channels, height, width = axes if layout == "NCHW" else (axes[2], axes[0], axes[1])
    sizes = {name: size for name, size in (("width", width), ("height", height)) if size > 0}
    return {"layout": layout, **sizes, **({"colour": "gray"} if channels == 1 else {})}


def _labelled(part: LabelsPart, signature: Signature) -> LabelledOutput:
    given = part.model_dump(exclude_none=True, exclude={"names", "file"})
    return LabelledOutput.model_validate({"output": signature.outputs[0].name, "labels": part.names} | given)
