"""What goes wrong is a page in the house's style: a wrong address, a defect, no session."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from playwright.sync_api import Page, expect

from wherry_server.dashboard import audit_routes


def test_a_wrong_address_is_a_page_for_people_and_an_error_for_programs(
    site: Any, open_page: Callable[..., Page], shoot: Any
) -> None:
    page = open_page("/no/such/page", allow=("404",))
    expect(page.get_by_role("heading", level=1)).to_contain_text("Page /no/such/page")
    expect(page.get_by_role("main")).to_contain_text("does not exist")
    expect(page.get_by_role("navigation", name="Pages")).to_be_visible()
    shoot(page, "error-404")
    for path, accept in {"/v1/nothing": "text/html", "/nothing": "application/json"}.items():
        answer = page.request.get(site.url + path, headers={"Accept": accept})
        assert (answer.status, answer.json()["error"]["code"]) == (404, "not_found")


def test_who_is_not_logged_in_comes_back_after_the_login(site: Any, open_page: Callable[..., Page]) -> None:
    page = open_page("/rollouts?state=failed", login=False)
    page.get_by_label("API token").fill(site.token)
    page.get_by_role("button", name="Log in").click()
    expect(page).to_have_url(f"{site.url}/rollouts?state=failed")
    page = open_page("/no/such/page", login=False)
    expect(page.get_by_label("API token")).to_be_visible()
    refused = page.request.post(f"{site.url}/logout", headers={"Origin": "https://elsewhere.example"})
    assert refused.status == 403
    assert "was not sent from a page of this server" in refused.text()


def test_a_defect_is_a_page_and_a_line_in_the_log(
    open_page: Callable[..., Page], shoot: Any, monkeypatch: Any, caplog: Any
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("the cause")

    monkeypatch.setattr(audit_routes, "audit_page", broken)
    with caplog.at_level(logging.ERROR):
        page = open_page("/audit", allow=("500",))
        expect(page.get_by_role("main")).to_contain_text("Read the server's log.")
    assert "the cause" not in page.content()
    assert "the cause" in caplog.text
    shoot(page, "error-500")
