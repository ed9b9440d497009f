"""The TAB key: what it offers, asked as the shells ask, and that it never disturbs."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest
from typer.testing import CliRunner

from wherry_cli.main import app


@pytest.fixture
def tab(operator):
    """What bash gets for a command line that ends where the cursor is."""

    def tab(line):
        words = line.split(" ")
        env = {"_WHERRY_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
        result = CliRunner().invoke(app, [], prog_name="wherry", env=env)
        assert (result.stderr, result.exception, result.exit_code) == ("", None, 0)
        return result.stdout.split()

    return tab


@pytest.fixture
def known(server, make):
    server.devices = {name: make.device(name) for name in ("edge-1", "edge-2", "yard-1")}
    server.releases = [make.release("vision", "2", "generic-amd64", 2), make.release("sound", "7", "generic-amd64", 1)]
    server.rollouts = {3: make.rollout(3, "vision", "2")}
    return server


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("wherry roll", ["rollout"]),
        ("wherry device show ed", ["edge-1", "edge-2"]),
        ("wherry device logs ya", ["yard-1"]),
        ("wherry release show v", ["vision"]),
        ("wherry rollout start so", ["sound"]),
        ("wherry rollout watch ", ["3"]),
        ("wherry push m --profile generic-am", ["generic-amd64"]),
        ("wherry rollout start vision 2 --to ", ["all", "label=", "profile=", "device="]),
        ("wherry rollout start vision 2 --to device=y", ["device=yard-1"]),
        ("wherry rollout start vision 2 --to profile=generic-am", ["profile=generic-amd64"]),
        ("wherry explain deployment.g", ["deployment.gate"]),
        ("wherry completion ", ["bash", "zsh", "fish"]),
    ],
)
def test_what_is_offered(tab, known, line, offered):
    assert tab(line) == offered


def test_versions_are_those_of_the_model_before(tab, known):
    known.queries.clear()
    tab("wherry release show vision ")
    assert known.queries[0] == ("/v1/releases", {"limit": ["200"], "model": ["vision"]})


def test_nothing_is_said_when_the_server_fails_or_nobody_is_logged_in(tab, known, home):
    known.failing = [500] * 9
    assert tab("wherry device show ed") == []
    known.failing = []
    (home / "config.toml").unlink()
    assert tab("wherry device show ed") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_printed_and_nothing_is_written(wherry, shell, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    answer = wherry("completion", shell)
    assert answer.code == 0
    assert f"_WHERRY_COMPLETE=complete_{shell}" in answer.out
    assert not (tmp_path / "nobody").exists()


def test_bash_takes_the_script(wherry):
    script = wherry("completion", "bash").out
    done = subprocess.run(
        [shutil.which("bash"), "-c", "source /dev/stdin && complete -p wherry"], input=script, text=True,
        capture_output=True, check=True, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert "_wherry_completion" in done.stdout
