"""The fleet page in a browser: search, filters, paging, live rows, keys, themes, no scripts."""

from __future__ import annotations

import re
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import expect

from wherry_server.store.device_views import DeviceFilter, device_facets, device_listing

ROWS = "table.fleet tbody tr"


def count_of(site, **wanted):
    with site.context.store.read() as session:
        return device_listing(session, DeviceFilter(**{"state": "active"} | wanted)).total


def query_of(page):
    return parse_qs(urlsplit(page.url).query)


def test_an_empty_fleet_says_what_to_do_next(new_site, open_page, shoot):
    page = open_page("/", at=new_site())
    expect(page.locator("main")).to_contain_text("wherry device token ID")
    expect(page.locator("main")).to_contain_text("Nothing was rolled out yet")
    shoot(page, "fleet-empty")


def test_search_narrows_the_list_while_one_types(open_page):
    page = open_page("/")
    page.keyboard.press("/")
    expect(page.get_by_label("Search")).to_be_focused()
    page.keyboard.type("a-0042")
    expect(page.locator(ROWS)).to_have_count(1)
    expect(page.locator(ROWS)).to_contain_text("camera-0042")
    assert query_of(page) == {"q": ["a-0042"]}
    expect(page.get_by_label("Search")).to_be_focused()
    page.get_by_role("link", name="show all").click()
    expect(page.locator(ROWS)).to_have_count(50)


def test_what_matches_nothing_says_so(open_page):
    page = open_page("/?q=no-such-device")
    expect(page.locator("main")).to_contain_text("No device matches.")


@pytest.mark.parametrize(
    ("field", "value", "wanted", "shown"),
    [
        ("Profile", "jetson-orin", {"profile": "jetson-orin"}, "jetson-orin"),
        ("Serves", "speech 3.2.0", {"model": "speech", "version": "3.2.0"}, "speech 3.2.0"),
        ("Label", "site=osaka", {"labels": (("site", "osaka"),)}, "site=osaka"),
        ("State", "drifting", {"state": "drifting"}, "drifting"),
    ],
)
def test_filters_show_what_matches(site, open_page, field, value, wanted, shown):
    page = open_page("/")
    page.get_by_label(field, exact=True).select_option(value)
    total = count_of(site, **wanted)
    assert 0 < total < 50
    expect(page.locator(ROWS)).to_have_count(total)
    assert all(shown in text for text in page.locator(ROWS).all_inner_texts())
    page.reload()
    expect(page.locator(ROWS)).to_have_count(total)
    expect(page.get_by_label(field, exact=True)).to_have_value(value)


def test_filters_hold_together(site, open_page):
    page = open_page("/?profile=jetson-orin&label=site%3Dlyon&q=camera")
    total = count_of(site, profile="jetson-orin", labels=(("site", "lyon"),), search="camera")
    expect(page.locator(ROWS)).to_have_count(total)
    assert total > 0


def test_facets_count_the_devices_behind_them(site, open_page):
    with site.context.store.read() as session:
        facets = device_facets(session)
    page = open_page("/")
    options = page.get_by_label("Profile").locator("option").all_inner_texts()
    assert options == ["any", *(f"{name} ({count})" for name, count in facets.profiles.items())]


def test_pages_follow_one_another(site, open_page):
    page = open_page("/")
    seen = []
    while True:
        seen += page.locator(f"{ROWS} th a").filter(has_text=re.compile("-0")).all_inner_texts()
        following = page.get_by_role("link", name="Next page")
        if not following.count():
            break
        following.click()
        page.wait_for_url(re.compile(f"after={seen[-1]}"))
    assert seen == sorted(seen)
    assert set(site.seeded.devices) <= set(seen)
    page.get_by_role("link", name="First page").click()
    expect(page.locator(ROWS).first).to_contain_text(seen[0])


def test_a_row_changes_in_place_when_its_device_reports(add_device, open_page):
    device = add_device("live-one")
    device.reports(device.serves("1.0"))
    page = open_page("/?q=live-one")
    row = page.locator(ROWS)
    expect(row).to_contain_text("lens 1.0")
    expect(page.locator("#link")).to_have_text("live")
    page.evaluate("window.sameDocument = true")
    page.get_by_label("Search").focus()
    device.reports(device.serves("2.0"))
    expect(row).to_contain_text("lens 2.0")
    device.leaves()
    expect(row).to_contain_text("offline")
    assert page.evaluate("window.sameDocument") is True
    expect(page.get_by_label("Search")).to_be_focused()


def test_a_page_connects_again_when_the_server_is_back(new_site, add_device, open_page):
    site = new_site()
    device = add_device("patient", site)
    device.reports(device.serves("1.0"))
    page = open_page("/", at=site, allow=("ERR_", "Failed to load"))
    expect(page.locator("#link")).to_have_text("live")
    site.stop()
    expect(page.locator("#link")).to_have_text("connecting again …")
    site.start()
    device.reports(device.serves("2.0"))
    expect(page.locator(ROWS)).to_contain_text("lens 2.0")
    expect(page.locator("#link")).to_have_text("live")


def test_without_scripts_search_filters_and_pages_work(site, open_page):
    page = open_page("/", scripts=False)
    page.locator("#q").fill("desk")
    page.locator("#version").select_option("speech 3.2.0")
    page.get_by_role("button", name="Show").click()
    total = count_of(site, search="desk", model="speech", version="3.2.0")
    expect(page.locator(ROWS)).to_have_count(total)
    page.goto(site.url + "/")
    page.get_by_role("link", name="Next page").click()
    expect(page.locator(ROWS)).to_have_count(50)
    page.locator(f"{ROWS} th a").first.click()
    expect(page.get_by_role("heading", name="Twin")).to_be_visible()


def test_the_theme_is_chosen_and_remembered(open_page):
    page = open_page("/", scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    button = page.get_by_role("button", name="Theme")
    expect(button).to_have_text("Theme: system")
    button.click()
    expect(button).to_have_text("Theme: light")
    light = page.evaluate(ground)
    assert light != dark
    page.reload()
    assert page.evaluate(ground) == light
    page.keyboard.press("t")
    assert page.evaluate(ground) == dark


def test_keys_lead_around(open_page):
    page = open_page("/")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("search")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.keyboard.press("g")
    page.keyboard.press("o")
    page.wait_for_url(re.compile("/rollouts$"))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fleet", {}),
        ("fleet-dark", {"scheme": "dark"}),
        ("fleet-phone", {"width": 375, "height": 812}),
    ],
)
def test_pictures_of_the_fleet(open_page, shoot, name, options):
    page = open_page("/", **options)
    expect(page.locator("#link")).to_have_text("live")
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= options.get("width", 1440), "the page scrolls sideways"
    shoot(page, name)
