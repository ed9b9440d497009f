"""The fleet at a glance, who did what, and the operators' tokens."""

from __future__ import annotations

from datetime import timedelta

import pytest
from rich.console import Console

from wherry.api.telemetry import FleetView, HostTelemetry
from wherry_cli.top import Glance, busiest
from wherry_cli.top_view import TopPage


@pytest.fixture
def fleet(server, make):
    problem = make.problem(code="trust.expired", thing="assignment", reason="expired", fix="Check the clock")
    server.devices = {
        "edge-1": make.device("edge-1"),
        "edge-2": make.device("edge-2", problem=problem),
        "edge-3": make.device("edge-3", drift=["main"], desired={"main": make.ref("2")}),
        "edge-4": make.device("edge-4", online=False),
    }
    server.versions = [
        {"model": "vision", "version": "1", "devices": 3, "healthy": 2, "desired": 3, "per_second": 12.5,
         "error_rate": 0.02, "p50_us": 850, "p95_us": 1900},
    ]  # fmt: skip
    server.rollouts = {7: make.rollout(7, "vision", "2", counts={"committed": 3, "rejected": 1})}
    server.telemetry["hosts"] = [host("edge-1", 12, 83.0).model_dump(mode="json"), host("edge-2", 97).model_dump()]
    server.telemetry["hosts"][1]["at"] = make.started.isoformat()
    return server


def host(name, cpu, heat=None, memory=10, **fields):
    return HostTelemetry(
        **fields,
        device=name, at="2026-03-01T12:00:00Z", cpu_percent=cpu, memory_used_bytes=memory, memory_total_bytes=100,
        disk_used_bytes=1, disk_total_bytes=2, temperatures={} if heat is None else {"cpu": heat},
    )  # fmt: skip


def test_top_once(operator, fleet):
    shown = operator("top", "--once").out
    for part in (
        "4 devices", "3 online", "1 offline", "1 drifting", "1 problem ", "vision 1", "12.5", "2.0 %", "0.85 ms",
        "assignment expired. Check the clock.", "main: runs vision 1, should run vision 2", "last seen",
        "3 of 4 devices committed", "97 %", "83 °C",
    ):  # fmt: skip
        assert part in shown, shown
    assert shown.index("edge-2") < shown.index("edge-3") < shown.index("edge-4")


def test_top_for_programs(operator, fleet):
    found = operator("top", "--once", "--json").json
    assert (found["fleet"]["online"], found["rollouts"][0]["id"], found["at"][:2]) == (3, 7, "20")
    assert [view["id"] for view in found["troubled"]] == ["edge-2", "edge-3", "edge-4"]


def test_top_of_an_empty_fleet_says_how_to_begin(operator):
    assert "Start with `wherry push MODEL`" in operator("top", "--once").out


def test_top_streams_and_lives_through_a_server_that_is_away(operator, fleet, monkeypatch):
    monkeypatch.setattr("wherry_cli.client.RETRY_WAITS", ())
    rests = []

    def sleep(seconds):
        rests.append(seconds)
        fleet.failing[:] = [502] if len(rests) == 1 else []
        if len(rests) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("wherry_cli.looking.time.sleep", sleep)
    shown = operator("top", "--json", "--interval", "0.3")
    assert shown.code == 0
    assert ["error" in item for item in shown.lines] == [False, True, False]
    assert min(rests) >= 0.3


def test_boards_that_slow_themselves_down_are_named_first_with_the_cause(operator, fleet):
    assert "SLOWED" not in operator("top", "--once").out
    told = [
        host("edge-1", 99, throttled=[]),
        host("edge-2", 5, throttled=["heat", "under-voltage"]),
        host("edge-3", 4, throttled=[], throttled_since_boot=["heat"]),
        host("edge-4", 3),
    ]
    fleet.telemetry["hosts"] = [one.model_dump(mode="json") for one in told]
    shown = operator("top", "--once").out
    section = shown[shown.index("Busiest devices") :]
    assert "SLOWED" in section
    assert [line.split()[0] for line in section.splitlines() if "edge-" in line] == [
        "edge-2",
        "edge-1",
        "edge-3",
        "edge-4",
    ]
    assert "by heat, under-voltage" in section
    assert "not now; since boot by heat" in section


def test_the_busiest_are_those_nearest_to_a_limit():
    found = [host("a", 10), host("hot", 20, 88.0), host("full", 5, memory=91), host("busy", 99)]
    assert [one.device for one in busiest(found, 3)] == ["busy", "full", "hot"]


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40)])
def test_top_keeps_to_the_terminal(make, width, height):
    devices = [make.device(f"edge-{number}", online=False, last_seen=None) for number in range(20)]
    rollouts = [make.rollout(number, "vision", "2", counts={"committed": 3}) for number in range(5)]
    version = {"model": "vision", "devices": 3, "healthy": 2, "desired": 3, "per_second": 1.0}
    versions = [{**version, "version": str(number)} for number in range(30)]
    view = FleetView(devices=9000, online=8000, drifting=7, problems=5, versions=versions)
    glance = Glance(make.started, view, devices, True, rollouts, [host(f"d{number}", 5) for number in range(5)])
    console = Console(width=width, height=height, color_system=None, force_terminal=False)
    with console.capture() as captured:
        console.print(TopPage(glance, height))
    shown = captured.get()
    assert len(shown.splitlines()) <= height
    for part in ("9,000 devices", "8,000 online", "vision 3", "edge-0 and 19 more", "… and more", "3 of 3 devices"):
        assert part in shown
    assert ("d2 " in shown) == (height == 40)  # the lower sections give way


def test_audit(operator, server, make):
    server.audit = [
        {"id": 2, "at": make.started.isoformat(), "actor": "ci", "action": "rollout.create", "thing": "3",
         "detail": "vision 2: 4 devices"},
        {"id": 1, "at": (make.started - timedelta(days=2)).isoformat(), "action": "enrol.refused", "thing": "edge-9",
         "detail": "ab" * 32},
    ]  # fmt: skip
    shown = operator("audit", "--action", "rollout", "--actor", "ci", "--limit", "9")
    assert [row.split()[2] for row in shown.out.splitlines()[1:]] == ["ci", "-"]
    assert "abababababab…" in shown.out
    path, query = server.queries[-1]
    assert (path, query) == ("/v1/audit", {"limit": ["9"], "action": ["rollout"], "actor": ["ci"]})
    assert len(operator("audit", "--json").json["items"]) == 2
    assert operator("audit", "--limit", "1", "--json").json["items"][0]["id"] == 2
    assert operator("audit", "--since", "7d", "--json").json == {"items": []}  # they are older
    server.audit = []
    assert "Nothing like that was done." in operator("audit").out


def test_tokens_are_listed_and_revoked(operator, server):
    assert [row.split()[0] for row in operator("token", "list").out.splitlines()[1:]] == ["admin", "ci"]
    assert "--yes" in operator("token", "revoke", "ci").err
    assert operator("token", "revoke", "ci", "--yes", "--json").json == {"name": "ci", "revoked": True}
    assert [item["name"] for item in operator("token", "list", "--json").json["items"]] == ["admin"]
