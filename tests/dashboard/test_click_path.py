"""From push to rollback by clicking, on a real installation: registry, broker, server, agent and engine."""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from playwright.sync_api import Page, expect

SCRIPTS = Path(__file__).resolve().parent.parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))

from lab import Lab, Ports  # noqa: E402
from tiny_model import write_tiny  # noqa: E402

pytestmark = [
    pytest.mark.docker,
    pytest.mark.broker,
    pytest.mark.registry,
    pytest.mark.slow,
    pytest.mark.timeout(400),
]
MODEL, PROFILE = "tiny", "generic-amd64"
PATIENCE_MS = 120_000


class Operator:
    """Who packages and publishes in a terminal."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def package(self, version: str, weight: float, folder: str) -> Path:
        """Package a version; the folder of its package.json."""
        model, out = self.lab.folder / f"{folder}.onnx", self.lab.folder / folder
        write_tiny(model, weight)
        self.lab.run(
            "wherry", "package", str(model), "--name", MODEL, "--version", version, "--profile", PROFILE,
            "--registry", self.lab.registry, "--output", str(out),
        )  # fmt: skip
        return out

    def publish(self, folder: Path, *more: str) -> None:
        """Sign a package and give it to the server."""
        self.lab.run("wherry", "release", "publish", str(folder / "package.json"), *more)

    def publish_wrong(self, version: str, weight: float, golden: Path) -> None:
        """Publish a version that starts and is healthy by its own word, but answers other than the golden cases."""
        built = json.loads((self.package(version, weight, "image") / "package.json").read_text())["images"][0]
        out = self.lab.folder / "wrong"
        self.lab.run(
            "wherry", "package", "--from-image", f"{built['repository']}@{built['digest']}", "--name", MODEL,
            "--version", version, "--profile", PROFILE, "--golden", str(golden), "--output", str(out),
        )  # fmt: skip
        self.publish(out)

    def serving(self) -> str:
        """The version that the device's endpoint answers with."""
        with urllib.request.urlopen(f"{self.lab.slot_url}/v2/models/{MODEL}", timeout=10) as reply:
            found: str = json.loads(reply.read())["versions"][0]
        return found


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """An installation with one device, enrolled and running."""
    ports = Ports.free()
    lab = Lab(tmp_path_factory.mktemp("lab"), ports, device=f"click-path-{ports.slot}")
    try:
        lab.start_site()
        lab.enrol(PROFILE, {"site": "quay"})
        lab.start_agent()
        yield Operator(lab)
    finally:
        lab.stop()


@pytest.fixture
def page(operator: Operator, open_page: Callable[..., Page]) -> Page:
    """The dashboard of the installation, logged in."""
    token = (operator.lab.folder / "server" / "admin.token").read_text().strip()
    opened = open_page("/releases", at=SimpleNamespace(url=operator.lab.server_url, token=token))
    opened.set_default_timeout(PATIENCE_MS)
    return opened


def go_to(page: Page, title: str) -> None:
    """A page by the links on top."""
    page.get_by_role("navigation", name="Pages", exact=True).get_by_role("link", name=title).click()


def roll_out(page: Page, version: str, ends: str) -> None:
    """Click from the list of releases to a rollout, and watch it end without loading the page again."""
    go_to(page, "Releases")
    page.get_by_role("link", name=f"{MODEL} {version}", exact=True).click()
    page.get_by_role("link", name="Roll out …").click()
    preview = page.locator("#preview")
    page.get_by_label("Label", exact=True).fill("site=nowhere")
    expect(preview).to_contain_text("Selector selects no device")
    page.get_by_label("Label", exact=True).fill("site=quay")
    expect(preview).to_contain_text("1 device will get it.")
    preview.get_by_role("button", name="Start on 1 device").click()
    expect(page.get_by_role("status").filter(has_text="The rollout was started.")).to_be_visible()
    expect(page.locator(".head .pill")).to_have_text(ends, timeout=PATIENCE_MS)


def test_from_push_to_rollback_by_clicking(operator: Operator, page: Page, shoot: Any) -> None:
    first, second = operator.package("1", 1.0, "first"), operator.package("2", 2.0, "second")
    operator.publish(first)
    operator.publish(second)
    page.reload()
    expect(page.get_by_role("row")).to_have_count(3)
    shoot(page, "path-1-published")

    roll_out(page, "1", "completed")
    roll_out(page, "2", "completed")
    row = page.get_by_role("row", name=operator.lab.device)
    expect(row).to_contain_text("committed")
    assert operator.serving() == "2"
    shoot(page, "path-2-committed")

    operator.publish_wrong("3", 3.0, second / "golden.json")
    roll_out(page, "3", "failed")
    expect(row).to_contain_text("rejected")
    expect(row).to_contain_text("golden")
    shoot(page, "path-3-rejected")

    row.get_by_role("link", name=operator.lab.device).click()
    expect(page.get_by_role("main")).to_contain_text(f"{MODEL} 2")
    expect(page.get_by_role("main")).to_contain_text("rejected")
    assert operator.serving() == "2"
    shoot(page, "path-4-known-good-serves-on")

    go_back(operator, page, first)
    assert operator.serving() == "1"
    shoot(page, "path-5-back-at-version-1")
    check_what_is_told(page, shoot)


def go_back(operator: Operator, page: Page, first: Path) -> None:
    """An older version is refused until its owner signs it once more; the form says so before it starts."""
    page.goto(f"{operator.lab.server_url}/releases/{MODEL}/1/rollout")
    warning = page.locator(".notice.warn")
    expect(warning).to_contain_text("--again")
    operator.publish(first, "--again")
    page.reload()
    expect(warning).to_have_count(0)
    roll_out(page, "1", "completed")


def check_what_is_told(page: Page, shoot: Any) -> None:
    """Signatures, the versions in the field, and who did it all."""
    page.get_by_role("link", name=f"{MODEL} 1", exact=True).first.click()
    expect(page.get_by_role("region", name="Signatures")).to_contain_text("Signed by the key")
    expect(page.locator(".layer-list")).to_contain_text("model runtime")
    shoot(page, "path-6-release")
    go_to(page, "Models")
    page.get_by_role("link", name=MODEL, exact=True).click()
    expect(page.locator("#version-1")).to_contain_text("generic-amd64 1")
    shoot(page, "path-7-model")
    go_to(page, "Audit")
    expect(page.get_by_role("row").filter(has_text="started").filter(has_text="admin")).to_have_count(4)
    shoot(page, "path-8-audit")
