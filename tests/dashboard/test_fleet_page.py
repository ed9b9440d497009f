"""The fleet page in a browser."""

from __future__ import annotations


def test_an_empty_fleet_says_what_to_do_next(new_site, open_page, shoot):
    page = open_page("/", at=new_site())
    assert "wherry device token ID" in page.inner_text("main")
    shoot(page, "fleet-empty")
