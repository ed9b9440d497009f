"""A device that says anything at all harms nobody else, and not even its own page."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select

from wherry.api.telemetry import HostTelemetry
from wherry.messages import DeploymentReport, ReleaseRef, TelemetryBatch, UpdateLock, parse_up
from wherry_server.dashboard.device import device_head, meters
from wherry_server.dashboard.timeline import deployment_card
from wherry_server.services import reports, telemetry
from wherry_server.services.reports import DEPLOYMENTS_KEPT
from wherry_server.store.device_views import device_view
from wherry_server.store.schema import Deployment, Device, HostUsage
from wherry_server.store.swap_views import Answered

HOST = {
    "type": "host", "cpu_percent": 12.5, "memory_used_bytes": 2, "memory_total_bytes": 4, "disk_used_bytes": 1,
    "disk_total_bytes": 8, "temperatures": {"cpu": 50.0, "gpu": 40.0},
}  # fmt: skip
RELEASE = ReleaseRef(model="vision", version="2", counter=2, digest="sha256:" + "ab" * 32)
FAR = ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00")


@pytest.fixture
def site(sqlite_context, make_api, device_class):
    """The API of a server with `dev-1` and `dev-2`, both of which sent telemetry."""
    api = make_api(sqlite_context)
    for name in ("dev-1", "dev-2"):
        reports.ingest_state(sqlite_context, device_class(api, name).enrol().report())
        telemetry.ingest(sqlite_context, batch(name, HOST, sqlite_context.clock()))
    return api


def batch(device, record, at) -> TelemetryBatch:
    document = {
        "schema": 1, "type": "telemetry", "device": device, "stream": "s",
        "records": [{"sequence": int(at.timestamp()), "at": at.isoformat(), "record": record}],
    }  # fmt: skip
    found = parse_up(json.dumps(document).encode())
    assert isinstance(found, TelemetryBatch)
    return found


def deployment(number, updated, phases=()) -> DeploymentReport:
    return DeploymentReport(
        id=f"d{number}", slot="main", release=RELEASE, sequence=1, phase="committed", started=updated, updated=updated,
        previous=RELEASE.model_copy(update={"digest": "sha256:" + "cd" * 32}), phases=list(phases),
    )  # fmt: skip


def change(context, table, **columns) -> None:
    with context.store.write() as session:
        row = session.scalars(
            select(table).where(table.device == "dev-1" if table is not Device else table.id == "dev-1")
        )
        for name, value in columns.items():
            setattr(row.one(), name, value)


def test_a_stored_sample_that_cannot_be_read_costs_only_itself(site, caplog):
    stored = json.dumps(HOST | {"cpu_percent": None, "temperatures": {"cpu": None, "gpu": 40.0}})
    change(site.context, HostUsage, sample=stored)
    reply = site.get("/v1/telemetry")
    assert reply.status_code == 200
    assert [host["device"] for host in reply.json()["hosts"]] == ["dev-2"]
    assert "a stored HostSample cannot be read" in caplog.text
    assert "dev-1" in shown(site, "/")
    assert "dev-1" in shown(site, "/devices/dev-1")
    assert site.get("/v1/telemetry/series", params={"device": "dev-1"}).status_code == 200


def test_a_stored_slot_or_lock_that_cannot_be_read_costs_only_itself(site):
    good, bad = {"slot": "good", "port": 1}, {"slot": "bad", "port": 2, "since": "2026-01-01T00:00:00"}
    lock = {"holder": "x", "expires": "2026-01-01T00:00:00"}
    change(site.context, Device, slots=json.dumps([good, bad]))
    change(site.context, Device, lock=json.dumps(lock))
    change(site.context, Device, problem="{}")
    found = {item["id"]: item for item in site.get("/v1/devices").json()["items"]}
    assert [slot["slot"] for slot in found["dev-1"]["slots"]] == ["good"]
    assert (found["dev-1"]["lock"], found["dev-1"]["problem"]) == (None, None)
    assert "dev-2" in found


def test_history_that_cannot_be_read_is_left_out_and_counted(site):
    context = site.context
    now = context.clock()
    with context.store.write() as session:
        reports.store_deployment(session, "dev-1", deployment(1, now), now)
    stored = json.loads(deployment(1, now).model_dump_json())
    gates = [{"kind": "golden", "ok": True, "detail": "", "seconds": None}]
    change(context, Deployment, report=json.dumps(stored | {"gates": gates}))
    with context.store.write() as session:
        reports.store_deployment(session, "dev-1", deployment(2, now), now)
    page = site.get("/v1/deployments", params={"device": "dev-1"}).json()
    assert [item["deployment"]["id"] for item in page["items"]] == ["d2"]
    assert page["unreadable"] == 1
    assert "1 deployment left out: what the device told of it cannot be read." in shown(site, "/devices/dev-1")


def shown(site, path) -> str:
    """A page of the dashboard."""
    login = site.request("POST", "/login", content=f"token={site.token}", headers={"Sec-Fetch-Site": "same-origin"})
    reply = site.get(path, headers={"Cookie": login.headers["set-cookie"].split(";")[0], "Authorization": ""})
    assert reply.status_code == 200
    return reply.text


def test_numbers_beyond_measure_are_drawn_as_the_most_there_is(site, clock):
    wild = {"cpu_percent": 1e308, "gpu_percent": 1e308, "wear_percent": {"mmc": 1e308}, "temperatures": {"cpu": 1e308}}
    wild["agent_written_bytes"] = {"all": 2**53, "journal": 500, "spool": 9_000_000}
    clock.now += timedelta(hours=1)
    telemetry.ingest(site.context, batch("dev-1", HOST | wild, clock()))
    clock.now += timedelta(minutes=10)
    since = (clock() - timedelta(minutes=30)).isoformat()
    host = next(iter(site.get("/v1/telemetry", params={"since": since}).json()["hosts"]))
    assert host["cpu_percent"] == 1e308
    shown_as = meters(HostTelemetry.model_validate(host))
    words = {meter.name: meter.text for meter in shown_as}
    assert words["Agent writes"] == "9007.2 TB to disk in the last 24 hours, 9.0 MB of it its spool"
    shares = {meter.name: meter.percent for meter in shown_as}
    assert (shares["CPU"], shares["GPU"], shares["mmc wear"], shares["cpu sensor"]) == (100, 100, 100, 100)
    series = site.get("/v1/telemetry/series", params={"device": "dev-1"}).json()["host"]
    assert max(value for value in series["cpu_percent"] if value is not None) == 100
    assert max(value for value in series["temperature"] if value is not None) == 1000


@pytest.mark.parametrize("far", FAR)
def test_the_page_of_a_device_whose_times_are_nonsense(site, far, clock):
    at = datetime.fromisoformat(far)
    phases = [("admitted", at), ("soaking", at), ("committed", at)]
    card = deployment_card(deployment(1, at, phases), clock(), lambda *_: Answered(1, 0, 1, 1))
    assert card.phases
    lock = UpdateLock(holder="x", expires=at)
    report = parse_up(
        json.dumps({
            "schema": 1, "type": "state", "device": "dev-1", "profile": "generic-amd64", "agent_version": "1",
            "stream": "s2", "number": 1, "at": far, "boot_id": "b", "sequence": 0,
            "lock": {"holder": "x", "expires": far},
            "slots": [{"slot": "main", "port": 1, "since": far, "serving": RELEASE.model_dump(),
                       "deployment": json.loads(deployment(1, at, phases).model_dump_json())}],
        }).encode()
    )  # fmt: skip
    assert report.lock == lock
    assert reports.ingest_state(site.context, report)
    with site.context.store.read() as session:
        assert device_head(device_view(session, "dev-1"), None, clock()).lock


def test_history_is_bounded_by_number_and_by_a_time_that_can_be(site, clock):
    context, future = site.context, datetime(9999, 1, 1, tzinfo=UTC)
    with context.store.write() as session:
        for number in range(DEPLOYMENTS_KEPT + 20):
            reports.store_deployment(session, "dev-1", deployment(number, future), clock())
        reports.store_deployment(session, "dev-2", deployment(0, clock()), clock())
    with context.store.read() as session:
        counts = dict(session.execute(select(Deployment.device, func.count()).group_by(Deployment.device)).all())
        assert counts == {"dev-1": DEPLOYMENTS_KEPT, "dev-2": 1}
        assert session.scalar(select(func.max(Deployment.updated))) <= clock()
    clock.now += timedelta(days=context.config.history_days + 1)
    telemetry.forget_old(context)
    with context.store.read() as session:
        assert session.scalar(select(func.count()).select_from(Deployment)) == 0
