"""What the documents say is what the code does."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import generate_docs  # noqa: E402

from wherry.messages import Command, UpMessage  # noqa: E402
from wherry_cli.main import app  # noqa: E402


def test_generated_documents_are_fresh():
    stale = [path.name for path, text in generate_docs.documents().items() if path.read_text("utf-8") != text]
    assert stale == [], "run `make docs`"


def test_every_message_of_the_contract_is_in_the_channel_description():
    described = yaml.safe_load((ROOT / "docs/asyncapi.yaml").read_text("utf-8"))["components"]["messages"]
    for union in (Command, UpMessage):
        for kind in union.__origin__.__args__:
            assert kind.__name__ in described


def commands(path: str) -> list[str]:
    """Lines of the shell blocks of a document that call `wherry`."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / path).read_text("utf-8"), re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("wherry ")]


@pytest.mark.parametrize("line", commands("README.md"))
def test_commands_in_the_readme_exist_with_their_options(line):
    words = line.split()[1:]
    command, depth = get_command(app), 0
    while hasattr(command, "commands") and depth < len(words):
        assert words[depth] in command.commands, f"{line}: no command {words[depth]}"
        command, depth = command.commands[words[depth]], depth + 1
    known = {option for parameter in command.params for option in parameter.opts}
    for word in words[depth:]:
        if word.startswith("--"):
            assert word in known, f"{line}: no option {word}"


def test_the_readme_names_make_targets_that_exist():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in re.findall(r"(?:`|^)make ([a-z-]+)", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_help_of_the_tool_starts():
    shown = CliRunner().invoke(app, ["--help"])
    assert shown.exit_code == 0
    assert "push" in shown.output
