"""`wherry explain CODE`: what an error means, why it happens and what to do."""

from __future__ import annotations

import difflib
import inspect
from typing import Annotated, Any

import typer
from rich.console import RenderableType
from rich.text import Text

from wherry.errors import NotFound, WherryError, walk_errors
from wherry_cli.causes import CAUSES
from wherry_cli.complete import complete_codes
from wherry_cli.output import Json, Output, fields, table


def explain(
    code: Annotated[
        str | None, typer.Argument(help="Code of an error; none lists them all.", autocompletion=complete_codes)
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what an error code means, why it happens and what to do about it."""
    out = Output(as_json)
    if code is None:
        known = [describe(kind) for kind in walk_errors()]
        rows = [(Text(item["code"], style="bold"), item["meaning"]) for item in known]
        out.result({"items": known}, lambda: table(("code", "meaning"), rows, "None."))
        return
    found = describe(find_error(code))
    out.result(found, lambda: _page(found))


def find_error(code: str) -> type[WherryError]:
    """The error class with that code, or with that name.

    Raises:
        NotFound: there is none; the message names codes that look alike.
    """
    classes = {kind.code: kind for kind in walk_errors()}
    wanted = code.strip().lower()
    named = {kind.__name__.lower(): kind for kind in classes.values()}
    if wanted in classes or wanted in named:
        return classes.get(wanted) or named[wanted]
    alike = near(wanted, list(classes))
    fix = f"Perhaps {' or '.join(alike)} is meant" if alike else "List all with `wherry explain`"
    raise NotFound(f"error code {code!r}", "does not exist", fix)


def near(wanted: str, codes: list[str]) -> list[str]:
    """The codes that may be meant: those that hold the last word, then those that are spelt alike; at most three."""
    part = wanted.rpartition(".")[2]
    holding = sorted(code for code in codes if part and part in code)
    ends = {code.rpartition(".")[2]: code for code in codes}
    spelt = difflib.get_close_matches(wanted, codes, cutoff=0.7)
    spelt += [ends[end] for end in difflib.get_close_matches(part, list(ends), cutoff=0.7)]
    return list(dict.fromkeys([*holding, *spelt]))[:3]


def describe(kind: type[WherryError]) -> dict[str, Any]:
    """A class of the error tree in words."""
    meaning = inspect.cleandoc(kind.__doc__ or "").partition("\n")[0]
    parent = kind.__bases__[0]
    return {
        "code": kind.code,
        "name": kind.__name__,
        "kind": parent.code if issubclass(parent, WherryError) else "",
        "meaning": meaning,
        "causes": list(CAUSES.get(kind.code, ())),
        "fix": kind.hint,
    }


def _page(found: dict[str, Any]) -> RenderableType:
    pairs: list[tuple[str, RenderableType]] = [
        ("Code", Text(found["code"], style="bold")),
        ("Means", found["meaning"]),
    ]
    pairs += [("Because" if number == 0 else "or", cause + ".") for number, cause in enumerate(found["causes"])]
    pairs.append(("Next", Text(found["fix"] + ".", style="green")))
    if found["kind"]:
        pairs.append(("A kind of", found["kind"]))
    return fields(pairs)
