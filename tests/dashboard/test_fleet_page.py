"""The fleet page in a browser."""

from __future__ import annotations


def test_an_empty_fleet_says_what_to_do_next(new_site, open_page, shoot):
    page = open_page("/", at=new_site())
    assert "wherry device token ID" in page.inner_text("main")
    shoot(page, "fleet-empty")


def test_pictures(open_page, shoot):
    page = open_page("/")
    shoot(page, "fleet")
    shoot(open_page("/", scheme="dark"), "fleet-dark")
    shoot(open_page("/", width=375, height=800), "fleet-phone")
    page = open_page("/devices/camera-0002")
    page.wait_for_selector("[data-drawn]")
    shoot(page, "device")
