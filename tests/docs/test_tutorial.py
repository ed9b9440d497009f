"""The tutorial's commands, run as they stand: what a newcomer types works, and prints what the page says."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from ports import free_ports  # noqa: E402

PAGE = ROOT / "docs" / "tutorial.md"
BLOCK = re.compile(r"^```(?P<kind>sh|text)(?P<more>[^\n]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass
class Step:
    """A block of commands, and lines that its output must hold."""

    body: str
    fails: bool
    expected: list[str] = field(default_factory=list)


def steps_of(page: str) -> list[Step]:
    """Blocks in order; a `text` block belongs to the commands before it."""
    steps: list[Step] = []
    for block in BLOCK.finditer(page):
        if block["kind"] == "text":
            steps[-1].expected += block["body"].splitlines()
        elif "skip" not in block["more"].split():
            steps.append(Step(block["body"], "fails" in block["more"].split()))
    return steps


def localised(text: str, folder: Path, ports: list[int], device: str) -> str:
    """The same commands in a folder, on ports and with a device id that meet nobody else's."""
    for name, port in zip(("8470", "8883", "5000", "8500"), ports, strict=True):
        text = re.sub(rf"\b{name}\b", str(port), text)
    return text.replace("~/wherry-first-hour", str(folder)).replace("first-device", device)


def script_of(steps: list[Step], out: Path) -> str:
    """One script; each step's output goes to a file of its own."""
    lines = ["set -euo pipefail -m"]
    for number, step in enumerate(steps):
        block = f"{{\n{step.body}}}"
        if step.fails:
            block = f"if {block}; then echo 'this should have failed' >&2; exit 97; fi"
        lines.append(f"echo step {number} >&2\n{block} > {shlex.quote(str(out / f'{number}.txt'))} 2>&1")
    return "\n".join(lines)


def test_a_step_that_prints_something_else_is_found():
    page = "```sh\necho hello\n```\nwords\n```text\nhello\n```\n```sh skip\nrm -rf /\n```\n```sh fails\nfalse\n```\n"
    steps = steps_of(page)
    assert [(step.body, step.fails, step.expected) for step in steps] == [
        ("echo hello\n", False, ["hello"]),
        ("false\n", True, []),
    ]


@pytest.mark.docker
@pytest.mark.broker
@pytest.mark.registry
@pytest.mark.slow
@pytest.mark.timeout(480)
def test_the_first_hour_goes_as_the_page_says(tmp_path, model_files):
    ports = free_ports(4)
    device = f"tutorial-{ports[3]}"
    steps = steps_of(localised(PAGE.read_text(encoding="utf-8"), tmp_path / "try", ports, device))
    assert len(steps) >= 8
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WHERRY_")} | {
        "PATH": f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}:/usr/sbin:/sbin",
        "WHERRY_CACHE": str(ROOT / "build" / "cache"),
        "NO_COLOR": "1",
    }
    command = ["bash", "-c", script_of(steps, tmp_path)]
    with (tmp_path / "steps.txt").open("w") as log:
        shell = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        status = shell.wait(400)
        reached = len((tmp_path / "steps.txt").read_text().split("step")) - 2
        assert status == 0, f"step {reached} failed:\n{steps[reached].body}\n{read_tail(tmp_path / f'{reached}.txt')}"
        for number, step in enumerate(steps):
            printed = (tmp_path / f"{number}.txt").read_text()
            for line in step.expected:
                assert line in printed, f"step {number} did not print {line!r}, but:\n{printed[-2000:]}"
        # The model went on answering while the agent was gone.
        assert '"versions":["1"]' in (tmp_path / "try" / "answer.json").read_text()
    finally:
        clean_up(tmp_path / "try", environment, device, ports[2])


def read_tail(path: Path) -> str:
    """The end of a file, if there is one."""
    return path.read_text()[-3000:] if path.exists() else "(no output)"


def clean_up(folder: Path, environment: dict[str, str], device: str, registry: int) -> None:
    """End whatever a broken tutorial left behind: every daemon names the folder in its arguments."""
    subprocess.run(["pkill", "-KILL", "-f", f"{folder}/"], check=False)
    subprocess.run(
        ["wherry-agent", "cleanup", "--state", str(folder / "device")],
        env=environment,
        check=False,
        capture_output=True,
    )
    listed = subprocess.run(
        ["docker", "images", "-q", "--no-trunc", f"127.0.0.1:{registry}/*/*"],
        capture_output=True,
        text=True,
        check=False,
    )
    for image in set(listed.stdout.split()):
        subprocess.run(["docker", "rmi", "-f", image], check=False, capture_output=True)
    left = subprocess.run(
        ["docker", "ps", "-aq", "--filter", f"label=io.wherry.device={device}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert left.stdout == "", "containers of the tutorial's device are left"
