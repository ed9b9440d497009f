"""The device page in a browser: twin, timeline, gates, before and after, charts, actions, questions."""

from __future__ import annotations

import itertools
import re
from datetime import UTC, datetime, timedelta

import pytest
from playwright.sync_api import expect
from sqlalchemy import select

from wherry.messages import (
    DeploymentReport,
    GateResult,
    HostSample,
    LogsRequest,
    Problem,
    ReleaseRef,
    SlotSample,
    UpdateLock,
    parse_command,
)
from wherry.questions import Check, DiagnoseReply, LogLine, LogsReply
from wherry_server.dashboard.timeline import compare
from wherry_server.domain.histogram import BINS
from wherry_server.store.schema import Audit, Outbox
from wherry_server.store.swap_views import Answered

LENGTHS = (("admitted", 1), ("fetching", 48), ("staging", 9), ("starting", 6), ("probing", 14), ("switching", 1))
GATES = [
    GateResult(
        kind="ready", ok=True, detail="ready after 4.2 s", seconds=4.2, numbers={"seconds": 4.2, "deadline": 60}
    ),
    GateResult(
        kind="golden", ok=True, detail="worst of 8 cases differs by 0.000213, allowed 0.001", seconds=2.4,
        numbers={"worst_error": 0.000213, "tolerance": 0.001},
    ),
    GateResult(
        kind="latency", ok=True, detail="p95 18.2 ms, allowed 40 ms", seconds=7.1,
        numbers={"p95_ms": 18.2, "bound_ms": 40, "running_p95_ms": 16.4, "factor": 1.5, "of_tomorrow": 3},
    ),
]  # fmt: skip


def deployment(device, version, previous, ended, **fields):
    """A deployment that soaked for a minute, with phases of believable lengths."""
    lengths = (*LENGTHS, ("soaking", 60), ("committing", 1))
    begun = ended - timedelta(seconds=sum(length for _, length in lengths))
    phases, at = [], begun
    for phase, length in lengths:
        phases.append((phase, at))
        at += timedelta(seconds=length)
    values = {"phase": "committed", "phases": [*phases, ("committed", at)], "gates": GATES} | fields
    return DeploymentReport(
        id=f"main-{version}", slot="main", release=device.release(version), previous=device.release(previous),
        sequence=1, started=begun, updated=ended, fetched_bytes=21_400_000, total_bytes=21_400_000, mode="overlap",
        **values,
    )  # fmt: skip


def minutes(device, version, begin, count, middle, failures=0):
    """Telemetry of so many minutes; `middle` is the histogram's bin that most requests fall into."""
    latency = [0] * BINS
    for bin_, requests in ((middle - 1, 120), (middle, 300), (middle + 1, 70), (middle + 2, 10)):
        latency[bin_] = requests
    return [
        (begin + timedelta(minutes=minute), SlotSample(
            slot="main", model="vision", version=version, counter=device.release(version).counter, seconds=60,
            requests=500, failures=failures if minute % 7 == 3 else 0, latency=latency, latency_sum_us=500 * 9000,
        ))
        for minute in range(count)
    ]  # fmt: skip


def host(at, share):
    return at, HostSample(
        cpu_percent=22 + 30 * share, memory_used_bytes=int(2.1e9 + 4e8 * share), memory_total_bytes=int(8e9),
        disk_used_bytes=int(21e9), disk_total_bytes=int(64e9), temperatures={"cpu": 51 + 8 * share, "gpu": 47.5},
        watts={"VDD_IN": 6.24, "VDD_SOC": 1.5}, throttled=[], throttled_since_boot=["over-current"], gpu_percent=48.0,
        gpu_memory_used_bytes=int(8e8), wear_percent={"mmcblk0": 30.0},
    )  # fmt: skip


@pytest.fixture(scope="module")
def site(site_class, tmp_path_factory):
    """A small fleet: what is measured here would stand on the pages of models elsewhere."""
    found = site_class.make(tmp_path_factory.mktemp("site"), devices=40)
    found.start()
    yield found
    found.stop()


@pytest.fixture
def updated(add_device):
    """A device that went from 1.1.0 to 2.0.0 half an hour ago, to the better; before that, 3.0.0 was rejected."""
    labels = '{"line": "4", "site": "berlin"}'
    device = add_device("press-4", model="vision", profile="jetson-orin", labels=labels, online=True)
    now = datetime.now(UTC)
    swap = now - timedelta(minutes=31)
    gate = Problem(
        code="deployment.gate", thing="golden gate of vision 3.0.0", reason="case 3 differs by 0.412, allowed 0.001",
        fix="Correct the model or its golden cases and release a new version",
    )  # fmt: skip
    failed = GateResult(
        kind="golden", ok=False, detail="case 3 differs by 0.412", seconds=2.2, numbers={"worst_error": 0.412}
    )
    first = now - timedelta(hours=2)
    phases = [
        ("admitted", first),
        ("fetching", first + timedelta(seconds=1)),
        ("probing", first + timedelta(seconds=41)),
    ]
    rejected = deployment(
        device, "3.0.0", "1.1.0", first + timedelta(seconds=55), phase="rejected", problem=gate,
        gates=[GATES[0], failed], phases=[*phases, ("rejected", first + timedelta(seconds=55))],
    )  # fmt: skip
    device.reports(device.serves("1.1.0", deployment=rejected))
    done = deployment(device, "2.0.0", "1.1.0", swap + timedelta(seconds=61))
    facts = {
        "device_tree_model": "NVIDIA Jetson Orin Nano",
        "l4t_release": "36.4.3",
        "cuda": "12.6",
        "kernel": "5.15.148-tegra",
        "memory_mb": "7620",
    }
    device.is_to_serve("2.0.0")
    device.reports(device.serves("2.0.0", deployment=done, since=swap), facts=facts, sequence=1)
    device.measures(
        *minutes(device, "1.1.0", swap - timedelta(minutes=45), 45, 15, failures=3),
        *minutes(device, "2.0.0", swap + timedelta(minutes=1), 29, 13),
    )
    device.measures(*(host(now - timedelta(minutes=5 * n), n % 4 / 4) for n in range(14, -1, -1)))
    return device


def test_the_twin_says_in_words_where_it_drifts(site, open_page):
    page = open_page("/devices/camera-0012")
    twin = page.locator("table", has_text="Slots: what is desired")
    expect(twin).to_contain_text(
        "vision 2.0.0 was rejected (gate golden of vision 2.0.0: golden case 3 differs by 0.0421"
    )
    expect(twin).to_contain_text("so vision 1.1.0 serves on. Correct the model or its golden cases")
    expect(page.locator("main")).to_contain_text("It has the newest assignment, number 3.")


def test_a_lock_and_a_problem_are_told(updated, open_page):
    lock = UpdateLock(holder="press", reason="a run is on", expires=datetime.now(UTC) + timedelta(hours=1, minutes=5))
    problem = Problem(code="adapter.registry", thing="registry r", reason="no answer", fix="Ask `wherry-agent doctor`")
    updated.reports(updated.serves("2.0.0"), sequence=1, lock=lock, problem=problem)
    page = open_page("/devices/press-4")
    expect(page.locator("main")).to_contain_text("press holds off swaps (a run is on), for 1 h")
    expect(page.locator("main")).to_contain_text("registry r: no answer. Ask wherry-agent doctor.")
    expect(page.locator("main code", has_text="wherry-agent doctor")).to_be_visible()


def test_what_the_hardware_tells_is_shown(updated, open_page):
    page = open_page("/devices/press-4")
    expect(page.locator("dl.facts").first).to_contain_text("Memory8.0 GB")
    meters = page.locator("dl.meters")
    for told in ("GPU48 %", "mmcblk0 wear30 % used up", "PowerVDD_IN 6.2 W, VDD_SOC 1.5 W"):
        expect(meters).to_contain_text(told)
    expect(meters).to_contain_text("Slowednot now; since boot by over-current")
    expect(meters.get_by_role("progressbar", name="GPU memory")).to_have_attribute("value", "10")


@pytest.mark.parametrize(
    ("requests", "told"),
    [(30, "300 % slower"), (29, "too few requests to compare"), (2, "too few requests to compare")],
)
def test_a_handful_of_requests_is_not_compared(requests, told):
    refs = [ReleaseRef(model="v", version=str(n), counter=n, digest=f"sha256:{n}" + "0" * 63) for n in (1, 2)]
    now = datetime(2026, 3, 1, 12, tzinfo=UTC)
    report = DeploymentReport(
        id="x", slot="main", release=refs[1], previous=refs[0], sequence=1, phase="committed", started=now,
        updated=now, phases=[("switching", now), ("soaking", now), ("committed", now)],
    )  # fmt: skip

    def ask(_slot, release, _begin, _end):
        old = release == refs[0]
        return Answered(500 if old else requests, 0, 10_000 if old else 40_000, 20_000)

    found = compare(report, now + timedelta(minutes=5), ask)
    assert found[0].change == told


def test_deployments_show_phases_gates_and_what_changed(updated, open_page):
    page = open_page("/devices/press-4")
    first = page.locator("#deployment-main-2\\.0\\.0")
    expect(first).to_have_attribute("open", "")
    phases = first.get_by_role("list", name="Phases").get_by_role("listitem").all_inner_texts()
    assert [re.sub(r"\s+", " ", phase).strip() for phase in phases] == [
        "admitted 1.0 s", "fetching 48 s", "staging 9.0 s", "starting 6.0 s", "probing 14 s", "switching 1.0 s",
        "soaking 1 min", "committing 1.0 s",
    ]  # fmt: skip
    widths = [int(rect.get_attribute("width")) for rect in first.locator("svg.phases rect").all()]
    assert widths[6] == max(widths)
    assert 0.7 < widths[1] / widths[6] < 0.9
    gates = first.locator("table", has_text="Health gates").get_by_role("row")
    expect(gates.nth(2)).to_contain_text("golden")
    expect(gates.nth(2)).to_contain_text("passed")
    expect(gates.nth(1)).to_contain_text("does it start and say it is ready?")
    expect(gates.nth(1)).to_contain_text("ready after 4.2 s (at most 60 s)")
    expect(gates.nth(2)).to_contain_text("largest difference 0.000213 (at most 0.001)")
    expect(gates.nth(3)).to_contain_text(
        "95 % of the answers within 18.2 ms (at most 40 ms; version before 16.4 ms, at most 1.5 times that)"
    )
    expect(gates.nth(3)).to_contain_text("of tomorrow 3")
    compared = first.locator("table", has_text="before and after").get_by_role("row")
    assert re.match(r"p95\s+\d+ ms\s+\d+ ms\s+\d+ % faster", compared.nth(2).inner_text())
    expect(compared.nth(3)).to_contain_text("fewer errors")
    second = page.locator("#deployment-main-3\\.0\\.0")
    expect(second).not_to_have_attribute("open", "")
    second.locator("summary").click()
    expect(second).to_contain_text(
        "golden gate of vision 3.0.0: case 3 differs by 0.412, allowed 0.001. Correct the model"
    )
    expect(second.locator("table").get_by_role("row").nth(2)).to_contain_text("failed")


def test_an_open_deployment_stays_open_when_the_page_is_refreshed(updated, open_page):
    page = open_page("/devices/press-4")
    second = page.locator("#deployment-main-3\\.0\\.0")
    second.locator("summary").click()
    expect(page.locator("#link")).to_have_text("live")
    updated.reports(updated.serves("2.0.0", healthy=False), sequence=1)
    expect(page.locator(".twin")).to_contain_text("not healthy")
    expect(second).to_have_attribute("open", "")
    expect(page.locator("[data-drawn] canvas").first).to_be_visible()


@pytest.mark.parametrize("name", ["1 hour", "24 hours", "7 days"])
def test_charts_are_drawn_for_each_range(updated, open_page, name):
    page = open_page("/devices/press-4")
    page.get_by_role("link", name=name).click()
    expect(page.locator("[data-chart][data-drawn] canvas")).to_have_count(5)
    expect(page.get_by_role("link", name=name)).to_have_attribute("aria-current", "true")
    expect(page.locator("[data-chart=latency]")).to_contain_text("vision 2.0.0 p95")


def test_charts_tell_numbers_and_swaps(site, updated, open_page):
    page = open_page("/devices/press-4")
    charts = page.request.get(f"{site.url}/devices/press-4/charts?range=1h").json()["charts"]
    assert set(charts) == {"requests", "failures", "latency", "load", "temperature"}
    assert [text for _, text in charts["latency"]["marks"]] == ["vision 2.0.0"]
    assert {line["label"] for line in charts["requests"]["lines"]} == {"vision 1.1.0", "vision 2.0.0"}
    lengths = {len(line["values"]) for chart in charts.values() for line in chart["lines"]}
    assert lengths == {len(charts["load"]["times"])}
    assert max(value for value in charts["temperature"]["lines"][0]["values"] if value) > 55


def told(site, device, kind):
    with site.context.store.read() as session:
        return [
            parse_command(row.payload)
            for row in session.scalars(select(Outbox).where(Outbox.device == device, Outbox.kind == kind))
        ]


def audited(site, thing):
    with site.context.store.read() as session:
        lines = session.scalars(select(Audit).where(Audit.thing == thing).order_by(Audit.id))
        return [(line.actor, line.action) for line in lines]


def test_an_operator_has_a_device_poll(site, updated, open_page):
    page = open_page("/devices/press-4")
    page.get_by_role("button", name="Poll now").click()
    expect(page.get_by_role("status").filter(has_text="was asked to fetch")).to_be_visible()
    assert [command.type for command in told(site, "press-4", "cmd")] == ["poll_now"]
    assert ("olga", "poll") in [(actor, action.split(".")[-1]) for actor, action in audited(site, "press-4")]


def test_an_operator_has_a_rejected_digest_tried_again(new_site, open_page):
    site = new_site(devices=20)
    page = open_page("/devices/camera-0012", at=site)
    page.get_by_role("button", name="Try vision 2.0.0 again").click()
    expect(page.get_by_role("status").filter(has_text="tries it again")).to_be_visible()
    assert [command.type for command in told(site, "camera-0012", "cmd")] == ["retry"]
    expect(page.locator("main")).to_contain_text("Assignment 4 waits for it; it has 3.")


def test_an_operator_clears_a_slot_after_a_second_thought(new_site, open_page):
    site = new_site(devices=3)
    page = open_page("/devices/camera-0001", at=site)
    expect(page.get_by_role("button", name="Clear slot main")).to_be_hidden()
    page.locator("summary", has_text="Clear").click()
    page.get_by_role("button", name="Clear slot main").click()
    expect(page.get_by_role("status").filter(has_text="is to be empty")).to_be_visible()
    expect(page.locator("main")).to_contain_text("The slot is to be empty, vision 2.0.0 serves on.")


def test_actions_work_without_scripts(site, updated, open_page):
    page = open_page("/devices/press-4", scripts=False)
    page.get_by_role("button", name="Poll now").click()
    expect(page.locator("main")).to_contain_text("was asked to fetch")
    page.get_by_role("button", name="Show logs").click()
    expect(page.get_by_role("heading", name="Logs of slot main", level=1)).to_be_visible()


class Answering:
    """A wire with a device at its end that answers at once."""

    connected, waiting, refused, lag_seconds = True, 0, 0, 0.0

    def __init__(self, site):
        self.questions = site.context.questions

    def publish(self, topic, payload):
        question = parse_command(payload)
        if isinstance(question, LogsRequest):
            at = datetime(2026, 3, 1, 12, 0, 5, tzinfo=UTC)
            lines = [LogLine(at=at, text="loaded <b>lens</b> in 0.8 s", version="2.0")]
            return self.questions.take(LogsReply(device=topic.device, id=question.id, lines=lines))
        checks = [
            Check(name="engine", level="ok", detail="Docker 26.1 answers"),
            Check(name="disk", level="warning", detail="91 % of /var is used", fix="Prune what is not needed"),
        ]
        return self.questions.take(DiagnoseReply(device=topic.device, id=question.id, checks=checks))


def test_logs_and_a_diagnosis_come_from_the_device(site, updated, open_page, monkeypatch, shoot):
    monkeypatch.setattr(site.context.line, "wire", Answering(site))
    page = open_page("/devices/press-4")
    page.get_by_role("button", name="Show logs").click()
    expect(page.locator("#answer")).to_contain_text("12:00:05 2.0 loaded <b>lens</b> in 0.8 s")
    page.get_by_role("button", name="Diagnose").click()
    expect(page.locator("#answer")).to_contain_text("91 % of /var is used")
    expect(page.locator("#answer")).to_contain_text("Prune what is not needed")
    shoot(page, "device-diagnosis")


def test_questions_to_a_device_that_is_away_are_answered_in_words(site, updated, open_page):
    page = open_page("/devices/press-4")
    page.get_by_role("button", name="Show logs").click()
    expect(page.locator("#answer")).to_contain_text("the server is not connected to the broker")
    updated.leaves()
    expect(page.locator(".head")).to_contain_text("offline")
    page.get_by_role("button", name="Diagnose").click()
    expect(page.locator("#answer")).to_contain_text(re.compile("device press-4 is offline", re.IGNORECASE))


def test_a_device_that_is_gone_for_good_is_removed(updated, open_page):
    page = open_page("/devices/press-4", allow=("404", "409"))
    page.get_by_text("Remove …").click()
    menu = page.locator(".menu", has_text="Remove …")
    expect(menu).to_contain_text("wherry-agent uninstall on the device comes first")
    expect(menu.get_by_role("button", name="Remove press-4 although it is online")).to_be_visible()
    updated.leaves()
    expect(page.locator(".head")).to_contain_text("offline")
    menu.get_by_role("button", name="Remove press-4", exact=True).click()
    expect(page.locator(".notice")).to_contain_text("The device was removed")
    expect(page.locator(".notice")).to_contain_text("give its replacement another id")
    expect(page.get_by_role("row").nth(2)).to_contain_text("removed")
    page.goto(updated.site.url + "/devices/press-4")
    expect(page.locator("main")).to_contain_text("was removed on")


_WATCH_LABELS = """
window.labels = [];
const write = CanvasRenderingContext2D.prototype.fillText;
CanvasRenderingContext2D.prototype.fillText = function (text, x, y) {
  const width = this.measureText(text).width, begin = this.textAlign === "left" ? x : x - width;
  if (/^vision /.test(text)) window.labels.push({ text, begin, end: begin + width, y, canvas: this.canvas.width });
  return write.apply(this, arguments);
};
"""


def test_labels_of_swaps_never_cover_each_other(updated, open_page):
    now = datetime.now(UTC)
    for number, version in enumerate(["1.1.0", "1.0.0", "2.0.0", "1.1.0", "1.0.0", "2.0.0", "1.1.0"]):
        done = deployment(updated, version, "2.0.0", now - timedelta(minutes=20 - 2 * number))
        updated.reports(
            updated.serves(version, deployment=done.model_copy(update={"id": f"main-x{number}"})), sequence=1
        )
    page = open_page("/login", width=375, height=812)
    page.add_init_script(_WATCH_LABELS)
    page.goto(updated.site.url + "/devices/press-4")
    expect(page.locator("[data-chart][data-drawn] canvas")).to_have_count(5)
    labels = page.evaluate("window.labels")
    assert len({label["text"] for label in labels}) >= 2
    assert all(0 <= label["begin"] < label["end"] <= label["canvas"] for label in labels)
    drawn = labels[: len(labels) // 5]  # five charts, the same labels in each
    for one, other in itertools.combinations(drawn, 2):
        assert one["y"] != other["y"] or one["end"] <= other["begin"] or other["end"] <= one["begin"]


def test_a_device_that_does_not_exist_is_a_page_too(open_page):
    page = open_page("/devices/nobody", allow=("404",))
    expect(page.get_by_role("heading", level=1)).to_have_text(re.compile("device nobody", re.IGNORECASE))
    expect(page.locator("main")).to_contain_text("does not exist")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("device", {}),
        ("device-dark", {"scheme": "dark"}),
        ("device-phone", {"width": 375, "height": 812}),
    ],
)
def test_pictures_of_a_device(updated, open_page, shoot, name, options):
    page = open_page("/devices/press-4", **options)
    expect(page.locator("[data-chart][data-drawn] canvas")).to_have_count(5)
    expect(page.locator("#link")).to_have_text("live")
    assert page.evaluate("document.documentElement.scrollWidth") <= options.get("width", 1440), "it scrolls sideways"
    shoot(page, name)
