"""Writes the reference pages of the documentation from code, while mkdocs builds it; nothing of it is committed.

Run by mkdocs' gen-files plugin (see mkdocs.yml). `pages()` is pure enough to be tested by itself.
"""

from __future__ import annotations

import argparse
import re
import sys
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

import mkdocs_gen_files
import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.cli import get_docs_for_click

from wherry.errors import walk_errors
from wherry.profile import load_profiles
from wherry.topics import PREFIX

sys.path.insert(0, str(Path(__file__).parent))  # mkdocs runs this file from elsewhere


def sentence(thing: Any) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join((thing.__doc__ or "").strip().split("\n\n")[0].split())


def attributes(model: type[BaseModel]) -> dict[str, str]:
    """What a Google docstring says of each attribute; names that share a line share the text."""
    found: dict[str, str] = {}
    for kind in reversed(model.__mro__):
        _, _, block = (kind.__doc__ or "").partition("Attributes:\n")
        for entry in re.split(r"\n\s{8}(?=\S)", "\n" + block.rstrip()):
            names, colon, text = entry.partition(": ")
            if colon:
                found |= {name.strip(): " ".join(text.split()) for name in re.split(r"[,/]", names)}
    return found


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    names = list(head)
    lines = [names, ["---"] * len(names), *(list(row) for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def type_name(annotation: Any) -> str:
    """A type as people read it."""
    if annotation is type(None):
        return "none"
    arguments = get_args(annotation)
    if isinstance(annotation, types.UnionType) or str(annotation).startswith("typing.Union"):
        return " or ".join(type_name(argument) for argument in arguments)
    if hasattr(annotation, "__metadata__"):
        return type_name(arguments[0])
    if str(annotation).startswith("typing.Literal"):
        return " ".join(f"`{argument}`" for argument in arguments)
    name = getattr(annotation, "__name__", str(annotation))
    return f"{name} of {', '.join(type_name(argument) for argument in arguments)}" if arguments else name


def default_of(field: FieldInfo) -> str:
    """A field's default as a setting is written; empty for required ones."""
    if field.is_required():
        return "required"
    value = field.default if field.default_factory is None else field.default_factory()  # type: ignore[call-arg]
    return "" if value in (None, "", (), [], {}) else f"`{value}`"


def fields_table(model: type[BaseModel]) -> str:
    """A model's fields."""
    told = attributes(model)
    rows = []
    for name, field in model.model_fields.items():
        shown = field.alias or name
        rows.append((f"`{shown}`", type_name(field.annotation), default_of(field), told.get(name, "")))
    return table(("name", "type", "default", "what"), rows)


def typer_page(program: typer.Typer, name: str) -> str:
    """Commands and options of a Typer program."""
    command = typer.main.get_command(program)
    text: str = get_docs_for_click(obj=command, ctx=typer.Context(command, info_name=name), name=name)
    return text


def argparse_page(parser: argparse.ArgumentParser) -> str:
    """Commands and options of an argparse program, as its own help."""
    parts = [f"# `{parser.prog}`\n\n```text\n{parser.format_help()}```\n"]
    for action in parser._actions:  # argparse has no public way to list subcommands
        if isinstance(action, argparse._SubParsersAction):
            parts += [f"## `{name}`\n\n```text\n{sub.format_help()}```\n" for name, sub in action.choices.items()]
    return "\n".join(parts)


def settings_page() -> str:
    """Settings of the agent and the server."""
    from wherry_agent.config import AgentConfig
    from wherry_server.config import ServerConfig

    parts = ["# Settings\n"]
    for title, file, prefix, model in (
        ("Agent", "`agent.toml` of the state folder", "WHERRY_AGENT_", AgentConfig),
        ("Server", "`server.toml` of the data folder", "WHERRY_SERVER_", ServerConfig),
    ):
        told = f"In {file}, or as `{prefix}<NAME>` in the environment, which wins."
        parts.append(f"## {title}\n\n{told}\n\n{fields_table(model)}")
    return "\n".join(parts)


def profiles_page() -> str:
    """Every shipped device profile."""
    parts = [
        "# Device profiles\n\nOne hardware class each, in `device_profiles/`. A device's profile is detected when it "
        "enrols, or named with `--profile`.\n"
    ]
    for profile in load_profiles().values():
        able = profile.capabilities
        rows = [
            ("platform", profile.platform),
            ("runtimes", ", ".join(able.runtimes)),
            ("execution providers", ", ".join(able.providers)),
            ("precisions", ", ".join(able.precisions)),
            ("memory", f"{able.memory_mb} MB at least"),
            ("L4T", ", ".join(able.l4t)),
            ("GPU architectures", ", ".join(f"sm_{sm}" for sm in able.sm)),
            ("largest image", f"{able.image_limit_mb} MB"),
            ("sensors", ", ".join(sensor.name for sensor in profile.sensors)),
        ]
        shown = table(("", ""), ((name, value) for name, value in rows if value))
        parts.append(f"## {profile.name}\n\n{profile.title}\n\n{shown}")
    return "\n".join(parts)


def errors_page() -> str:
    """Every error: code, sentence, next step."""
    rows = [(f"`{error.code}`", sentence(error), f"{error.hint}.") for error in walk_errors()]
    return (
        "# Errors\n\nEvery error names the thing, the reason and what to do next. `wherry explain CODE` says the "
        "same in the terminal.\n\n" + table(("code", "what happened", "what to do"), rows)
    )


def messages_page() -> str:
    """Every message of the MQTT channel."""
    from generate_docs import CHANNELS

    parts = [
        f"# MQTT messages\n\nTopics are `{PREFIX}/DEVICE/…`; the same as data: `docs/asyncapi.yaml`. Unknown fields "
        "are tolerated, unknown schema versions refused. The signed assignment on `assign` is TUF metadata, see "
        "[the decision](../decisions/0002-tuf.md).\n"
    ]
    for topic, (description, messages) in CHANNELS.items():
        parts.append(f"## `{topic}`\n\n{description}\n")
        parts += [f"### {model.__name__}\n\n{sentence(model)}\n\n{fields_table(model)}" for model in messages]
    return "\n".join(parts)


def http_page() -> str:
    """Every path of the server's HTTP API."""
    from types import SimpleNamespace

    from wherry_server.api.application import create_api
    from wherry_server.config import ServerConfig

    context: Any = SimpleNamespace(config=ServerConfig(data=Path("/srv/wherry"), host="server"))
    document = create_api(context).openapi()
    rows = []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            rows.append((f"`{method.upper()} {path}`", operation.get("summary", "")))
    return (
        "# HTTP API\n\nThe document with every field is `https://SERVER:8470/openapi.json`. Operators send "
        "`Authorization: Bearer TOKEN`, devices sign their requests with the key of their certificate.\n\n"
        + table(("request", "what it does"), rows)
    )


def pages() -> Iterator[tuple[str, str]]:
    """Path and text of each page."""
    import wherry_agent.app
    import wherry_cli.main
    import wherry_server.app

    yield "reference/wherry.md", typer_page(wherry_cli.main.app, "wherry")
    yield "reference/wherry-server.md", typer_page(wherry_server.app.cli, "wherry-server")
    yield "reference/wherry-agent.md", argparse_page(wherry_agent.app._parser())
    yield "reference/settings.md", settings_page()
    yield "reference/profiles.md", profiles_page()
    yield "reference/errors.md", errors_page()
    yield "reference/messages.md", messages_page()
    yield "reference/http.md", http_page()


if __name__ in ("__main__", "<run_path>"):
    for path, text in pages():
        with mkdocs_gen_files.open(path, "w") as page:
            page.write(text)
