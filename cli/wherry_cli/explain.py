"""`wherry explain CODE`: what an error means and what to do."""

from __future__ import annotations

import inspect
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.text import Text

from wherry.errors import NotFound, WherryError, walk_errors
from wherry_cli.output import Json, Output, fields, table


def explain(
    code: Annotated[str | None, typer.Argument(help="Code of an error; none lists them all.")] = None,
    as_json: Json = False,
) -> None:
    """Say what an error code means and what to do about it."""
    out = Output(as_json)
    if code is None:
        known = [describe(kind) for kind in walk_errors()]
        rows = [(item["code"], item["meaning"]) for item in known]
        out.result({"items": known}, lambda: table(("code", "meaning"), rows, "None."))
        return
    found = describe(find_error(code))
    out.result(found, lambda: _page(found))


def find_error(code: str) -> type[WherryError]:
    """The error class with that code.

    Raises:
        NotFound: there is none; the message names codes that look alike.
    """
    classes = {kind.code: kind for kind in walk_errors()}
    if code in classes:
        return classes[code]
    part = code.rpartition(".")[2]
    alike = sorted(known for known in classes if part and part in known)
    fix = f"Perhaps {' or '.join(alike)} is meant" if alike else "List all with `wherry explain`"
    raise NotFound(f"error code {code!r}", "does not exist", fix)


def describe(kind: type[WherryError]) -> dict[str, str]:
    """A class of the error tree in words."""
    meaning = inspect.cleandoc(kind.__doc__ or "").partition("\n")[0]
    parent = kind.__bases__[0]
    return {
        "code": kind.code,
        "name": kind.__name__,
        "kind": parent.code if issubclass(parent, WherryError) else "",
        "meaning": meaning,
        "fix": kind.hint,
    }


def _page(found: dict[str, str]) -> RenderableType:
    return fields(
        [
            ("Code", Text(found["code"], style="bold")),
            ("Means", found["meaning"]),
            ("Next", found["fix"] + "."),
            ("A kind of", found["kind"] or "-"),
        ]
    )
