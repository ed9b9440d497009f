"""axe-core finds nothing wrong with any page: light, dark, and at the width of a phone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page
from playwright.sync_api import TimeoutError as TooLate

AXE = Path(__file__).resolve().parent.parent.parent / "server/dashboard-assets/node_modules/axe-core/axe.min.js"
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


def pages(seeded: Any) -> list[str]:
    """A path of every kind of page."""
    model, version = seeded.releases[0]
    release = f"/releases/{model}/{version}"
    finished, *_, running, paused = (f"/rollouts/{one}" for one in seeded.rollouts)
    return [
        "/",
        f"/devices/{seeded.devices[0]}",
        "/models",
        f"/models/{model}",
        "/releases",
        release,
        f"{release}/rollout",
        f"{release}/rollout?whom=label&label=wrong&slot=WRONG",
        f"{release}/rollout?whom=ids&ids=nobody",
        "/rollouts",
        f"{finished}?state=refused",
        running,
        paused,
        "/audit",
        "/audit?thing=nothing",
        "/models/nothing",
        "/login",
    ]


CUT = """[...document.querySelectorAll("main .scroll, main .switch, main .tiles")]
  .filter((one) => one.scrollWidth > one.clientWidth + 1).map((one) => one.outerHTML.slice(0, 200))"""
"""What one would have to scroll sideways for; pictures of layers and code may."""


def violations(page: Page) -> list[str]:
    """What axe-core says against a page, in a line each."""
    options = {"runOnly": {"type": "tag", "values": RULES}, "resultTypes": ["violations"]}
    found = page.evaluate("options => axe.run(document, options)", options)["violations"]
    return [f"{one['id']}: {one['help']}: {node['target']}" for one in found for node in one["nodes"]]


@pytest.mark.timeout(300)
def test_nothing_is_wrong_with_any_page(site: Any, open_page: Callable[..., Page]) -> None:
    page = open_page("/login", allow=("404", "422"))
    axe, wrong = AXE.read_text(), {}
    for path in pages(site.seeded):
        page.set_viewport_size({"width": 1440, "height": 900})
        page.goto(site.url + path)
        page.evaluate("document.querySelectorAll('main details').forEach((one) => { one.open = true; })")
        page.evaluate(axe)
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            wrong[f"{path} {scheme}"] = violations(page)
        page.set_viewport_size({"width": 375, "height": 800})
        try:  # charts follow the width of the page a moment later
            page.wait_for_function("document.documentElement.scrollWidth <= innerWidth", timeout=10_000)
        except TooLate:
            wrong[f"{path} at 375"] = ["is wider than the screen"]
        wrong[f"{path} cut at 375"] = page.evaluate(CUT)
    assert {place: found for place, found in wrong.items() if found} == {}
