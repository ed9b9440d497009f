"""The audit trail in words, and its page in a browser."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from wherry.api.operators import AuditEntry
from wherry_server.dashboard.audit_rows import audit_row, says

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("actor", "action", "thing", "sentence", "link"),
    [
        ("olga", "rollout.create", "7", "olga started rollout 7", "/rollouts/7"),
        ("olga", "rollout.abort", "7", "olga aborted rollout 7", "/rollouts/7"),
        ("", "rollout.failed", "7", "server noted the failure of rollout 7", "/rollouts/7"),
        ("olga", "device.labels", "cam-1", "olga labelled device cam-1", "/devices/cam-1"),
        ("device cam-1", "renew", "cam-1", "device cam-1 renewed the certificate of device cam-1", "/devices/cam-1"),
        ("olga", "revoke", "cam-1", "olga revoked device cam-1", "/devices/cam-1"),
        ("olga", "token.revoke", "ci", "olga revoked API token ci", ""),
        ("olga", "some.thing_new", "x", "olga some thing new x", ""),
        ("olga", "enrol.refused", "../x", "olga was refused enrolment of device ../x", ""),
    ],
)
def test_an_entry_reads_as_a_sentence(actor, action, thing, sentence, link):
    row = audit_row(AuditEntry(id=1, at=NOW, actor=actor, action=action, thing=thing), NOW)
    assert f"{row.actor} {row.says} {row.thing}" == sentence
    assert row.link == link


def test_what_was_refused_or_taken_away_stands_out():
    tones = {
        action: audit_row(AuditEntry(id=1, at=NOW, action=action, thing="x"), NOW).tone
        for action in ("login", "login.refused", "revoke", "rollout.abort", "rollout.create")
    }
    assert [action for action, tone in tones.items() if tone == "warn"] == ["login.refused", "revoke", "rollout.abort"]


def test_labels_are_shown_as_labels():
    entry = AuditEntry(id=1, at=NOW, action="device.labels", thing="x", detail='{"site": "quay", "row": "2"}')
    assert audit_row(entry, NOW).detail == "site=quay, row=2"
    assert audit_row(entry.model_copy(update={"detail": "[1"}), NOW).detail == "[1"


def test_it_can_be_narrowed_by_what_who_and_on_what(open_page: Callable[..., Page], shoot: Any) -> None:
    page = open_page("/audit")
    expect(page.get_by_role("rowheader").first).to_have_text(f"{datetime.now(UTC).day} {datetime.now(UTC):%B %Y}")
    shoot(page, "audit")
    page.get_by_label("What", exact=True).select_option("rollout.create")
    rows = page.get_by_role("row").filter(has=page.get_by_role("cell"))
    expect(rows.filter(has_not_text=says("rollout.create"))).to_have_count(0)
    expect(rows.first).to_contain_text("admin")
    page.get_by_label("On what").fill("5")
    expect(rows).to_have_count(1)
    expect(page).to_have_url(re.compile(r"action=rollout.create.*thing=5"))
    page.get_by_label("Who").fill("nobody")
    expect(page.get_by_text("Nothing in the trail matches.")).to_be_visible()
    page.get_by_role("link", name="Show everything").click()
    page.get_by_role("link", name="Next page").click()
    expect(page.get_by_role("link", name="First page")).to_be_visible()


def test_a_new_line_appears_by_itself(site: Any, open_page: Callable[..., Page]) -> None:
    from wherry_server.services.access import create_token

    page = open_page("/audit")
    expect(page.locator("#link")).to_have_text("live")
    create_token(site.context.acting_as("the test"), "made by the test")
    expect(page.get_by_role("row").filter(has_text="API token made by the test")).to_contain_text("the test made")
