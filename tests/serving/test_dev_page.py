"""The page at `/` in stage dev, in a real browser; and nothing at `/` elsewhere."""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from wherry.release import LabelledOutput, PictureInput, TensorSpec
from wherry_serving.app import Options
from wherry_serving.dev_page import read_page

ROOT = Path(__file__).resolve().parent.parent.parent
SCREENS = ROOT / "build" / "screens"
AXE = ROOT / "server" / "dashboard-assets" / "node_modules" / "axe-core" / "axe.min.js"
CAMERA = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
DEV = Options(stage="dev")
CHROMIUM = Path(__file__).resolve().parent.parent / "chromium.py"
PATIENCE_MS = 30_000


def visit(url: str, look: Callable[[Page], None], allowed: str = "nothing", **context: Any) -> None:
    """Open a page and look at it: nothing may go wrong in it, and nothing be asked of another host.

    In a thread of its own: Playwright takes one browser session a thread, and other rooms have theirs.
    """
    wrong: list[str] = []

    def run() -> None:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CAMERA)
            page = browser.new_context(**context).new_page()
            page.set_default_timeout(PATIENCE_MS)
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on("console", lambda message: message.type in ("error", "warning") and wrong.append(message.text))
            page.on(
                "request", lambda request: request.url.startswith((url, "blob:", "data:")) or wrong.append(request.url)
            )
            page.goto(url)
            look(page)
            browser.close()

    expect.set_options(timeout=PATIENCE_MS)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(run).result()
    assert not [text for text in wrong if allowed not in text]


def accessible(page: Page) -> None:
    """axe-core finds nothing wrong."""
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run().then((result) => result.violations.map((item) => [item.id, item.nodes[0].html]))")
    assert not found


def photo(width: int = 640, height: int = 420) -> bytes:
    """A sky over water, with a sail."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([90 + y / 4, 140 + y / 6, 220 - y / 5], axis=-1)
    pixels[y > height * 0.62] = [30, 74, 92]
    pixels[(x > width * 0.42) & (x - width * 0.42 < (y - 60) * 0.5) & (y < height * 0.62)] = [232, 224, 205]
    stream = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


def colours(shop: Any) -> None:
    """Which colour a picture has most of."""
    sharp = helper.make_tensor("sharp", 1, [], [8.0])
    nodes = [
        helper.make_node("Constant", [], ["sharp"], value=sharp),
        helper.make_node("ReduceMean", ["image"], ["mean"], axes=[2, 3], keepdims=0),
        helper.make_node("Mul", ["mean", "sharp"], ["scores"]),
    ]
    shop.save(
        "colours",
        nodes,
        [TensorSpec(name="image", datatype="FP32", shape=[-1, 3, 32, 32])],
        [TensorSpec(name="scores", datatype="FP32", shape=[-1, 3])],
        version="1.2.0",
        picture=PictureInput(input="image", width=32, height=32, scale=1 / 255, fit="cover"),
        labelled=LabelledOutput(output="scores", labels=["red", "green", "blue"], softmax=True, top=3),
    )


def test_only_stage_dev_has_a_page(shop, start):
    shop.identity("same")
    for options in (Options(), Options(stage="qa"), Options(stage="prod")):
        running = start(options)
        for path in ("/", "/try.js", "/try.css"):
            status, reply, _ = running.ask(path)
            assert (status, "error" in reply) == (404, True), path
    running = start(DEV)
    for path, kind in (("/", "text/html"), ("/try.js", "text/javascript"), ("/try.css", "text/css")):
        status, body, headers = running.ask(path)
        assert (status, headers["content-type"].partition(";")[0], bool(body)) == (200, kind, True)
        assert "default-src 'none'; script-src 'self'" in headers["content-security-policy"]
    assert running.ask("/", method="POST")[0] == 405
    assert running.ask("/try.html")[0] == 404


def test_an_image_without_the_pages_files_has_no_page(tmp_path):
    assert read_page(tmp_path) == {}


@pytest.mark.parametrize(
    ("name", "context"),
    [
        ("dev-page", {"viewport": {"width": 1280, "height": 900}}),
        ("dev-page-dark", {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"}),
        ("dev-page-phone", {"viewport": {"width": 375, "height": 800}}),
    ],
)
def test_a_picture_is_dropped_and_named(shop, start, name, context):
    colours(shop)
    running = start(DEV)

    def look(page: Page) -> None:
        expect(page.get_by_role("heading", name="colours 1.2.0")).to_be_visible()
        expect(page.get_by_text("Provider CPU")).to_be_visible()
        page.get_by_label("Choose a picture").set_input_files(
            {"name": "harbour.jpg", "mimeType": "image/jpeg", "buffer": photo()}
        )
        expect(page.locator(".bars li")).to_have_count(3)
        expect(page.locator(".bars li").first).to_contain_text("blue")
        expect(page.locator("#status")).to_contain_text("ms from request to answer")
        expect(page.locator("#curl")).to_contain_text("-H 'Content-Type: image/jpeg'")
        page.get_by_text("Tensors", exact=True).click()
        page.get_by_role("button", name="Random values").click()
        page.get_by_role("button", name="Send", exact=True).click()
        expect(page.locator("#curl")).to_contain_text("Inference-Header-Content-Length")
        page.get_by_text("Tensors", exact=True).click()
        page.locator("#tries button").nth(1).click()
        expect(page.locator("#curl")).to_contain_text("image/jpeg")
        accessible(page)
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= context["viewport"]["width"], "nothing is wider than the window"
        SCREENS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=SCREENS / f"{name}.png", full_page=True)

    visit(f"http://{running.address}", look, **context)


def test_a_picture_is_taken_with_the_camera_and_one_that_is_broken_is_refused(shop, start):
    colours(shop)
    running = start(DEV)

    def look(page: Page) -> None:
        page.get_by_role("button", name="Use the camera").click()
        page.get_by_role("button", name="Take the picture").click()
        expect(page.locator("#curl")).to_contain_text("camera.jpg")
        expect(page.locator(".bars li")).to_have_count(3)
        whole = photo()
        page.get_by_label("Choose a picture").set_input_files(
            {"name": "half.jpg", "mimeType": "image/jpeg", "buffer": whole[: len(whole) // 2]}
        )
        expect(page.locator(".failed")).to_contain_text("picture is broken or cut off")
        accessible(page)

    visit(f"http://{running.address}", look, allowed="status of 400")  # which the browser notes by itself


@pytest.mark.parametrize("datatype", ["FP32", "FP16", "INT64", "BYTES"])
def test_tensors_of_every_kind_are_sent_with_the_keyboard_alone(shop, start, datatype):
    shop.identity("same", datatype)
    running = start(DEV)
    typed, wanted = "[[1, 2], [3, 250]]", "1  2  3  250"
    if datatype == "BYTES":
        typed, wanted = '"a", "", "häßlich", "d"', "a    häßlich  d"

    def look(page: Page) -> None:
        expect(page.get_by_role("heading", name="same 1")).to_be_visible()
        field = page.get_by_label(f"x {datatype} [-1, 4]")
        field.focus()
        page.keyboard.press("Control+A")
        page.keyboard.type(typed)
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        expect(page.locator(".output pre")).to_have_text(wanted, use_inner_text=False)
        page.get_by_role("button", name="Send 50 times").click()
        expect(page.locator("#status")).to_contain_text("50 times, one after the other: median")
        if datatype == "FP32":
            accessible(page)
            page.get_by_label("Size of axis 0").fill("600")
            page.get_by_label("Size of axis 0").blur()
            page.get_by_role("button", name="Send", exact=True).click()
            expect(page.locator(".output p")).to_contain_text("FP32 [600, 4]")
            page.screenshot(path=SCREENS / "dev-page-tensors.png", full_page=True)

    SCREENS.mkdir(parents=True, exist_ok=True)
    visit(f"http://{running.address}", look)
