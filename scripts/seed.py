"""Fills a server's database with a fleet, for tests, benches and looking at pages. The same every time."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Table, insert, text

from wherry.identity import sha256_digest
from wherry.messages import LATENCY_EDGES_US, DeploymentReport, GateResult, Problem, ReleaseRef, SlotReport
from wherry.release import GoldenGate, LatencyGate, ReadyGate, ReleaseImage, SignatureGate
from wherry_server.store import schema
from wherry_server.store.database import Store

PROFILES = ("raspberry-pi-4", "jetson-orin", "generic-arm64", "generic-amd64")
_SITES = ("berlin", "lyon", "osaka", "porto", "turin")
_MODELS = (("vision", ("1.0.0", "1.1.0", "2.0.0"), 14_000), ("speech", ("3.1.0", "3.2.0"), 52_000))
_LAYERS = {"base": 18_400_000, "runtime": 21_900_000, "serving": 2_100_000, "model": 3_400_000}
_Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Seeded:
    """What is there now."""

    devices: list[str]
    models: list[str]
    releases: list[tuple[str, str]]
    rollouts: list[int]


@dataclass(slots=True)
class _Fleet:
    """What is being made: rows by table, and what one step tells the next."""

    now: datetime
    days: float
    random: random.Random
    refs: dict[tuple[str, str, str], ReleaseRef] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)
    devices: list[_Row] = field(default_factory=list)
    serving: dict[str, tuple[str, str]] = field(default_factory=dict)
    rows: dict[Table, list[_Row]] = field(default_factory=dict)

    def add(self, table: type[schema.Base], **row: Any) -> None:
        self.rows.setdefault(table.__table__, []).append(row)  # type: ignore[arg-type]  # each is a Table


def seed(store: Store, devices: int = 120, *, now: datetime, days: float = 2.0, detailed: int = 25) -> Seeded:
    """Fill an empty, migrated database.

    Two models with several versions; one rollout that ended well, one that failed, one that runs, one that is paused.
    Of a hundred devices about five are offline, three hold a problem, four drift because a gate refused the version.

    Args:
        store: where to.
        devices: how many.
        now: the time; everything lies before it.
        days: how far telemetry reaches back.
        detailed: devices with telemetry of their own; sums over the fleet are of all devices.
    """
    fleet = _Fleet(now, days, random.Random(7))
    _add_releases(fleet)
    _add_devices(fleet, devices)
    rollouts = _add_rollouts(fleet)
    _add_device_telemetry(fleet, detailed)
    _add_fleet_telemetry(fleet)
    _add_audit(fleet)
    with store.write() as session:
        for table in schema.Base.metadata.sorted_tables:
            if table in fleet.rows:
                session.execute(insert(table), fleet.rows[table])
        if session.get_bind().dialect.name == "postgresql":  # it knows only the numbers that it gave itself
            session.execute(text("SELECT setval(pg_get_serial_sequence('rollout', 'id'), 5)"))
    releases = [(model, version) for model, versions, _ in _MODELS for version in versions]
    return Seeded([row["id"] for row in fleet.devices], [one[0] for one in _MODELS], releases, rollouts)


def _add_releases(fleet: _Fleet) -> None:
    for model, versions, _ in _MODELS:
        for number, version in enumerate(versions):
            for profile in PROFILES:
                _add_image(fleet, model, version, profile, number + 1, len(versions) - number)


def _add_image(fleet: _Fleet, model: str, version: str, profile: str, counter: int, age: int) -> None:
    digest = sha256_digest(f"{model} {version} {profile}".encode())
    layers = {name: size + (200_000 * counter if name == "model" else 0) for name, size in _LAYERS.items()}
    gates = [ReadyGate(), SignatureGate(), GoldenGate(digest=digest, cases=8), LatencyGate(p95_ms=80)]
    image = ReleaseImage(
        model=model, version=version, profile=profile, counter=counter, repository=f"registry.example/wherry/{model}",
        platform="linux/amd64" if profile.endswith("amd64") else "linux/arm64", config_digest=digest,
        unpacked_bytes=3 * sum(layers.values()), download_bytes=sum(layers.values()), layers=layers,
        runtime="onnx", provider="CPUExecutionProvider", precision="int8" if "pi" in profile else "fp32",
        gates=list(gates), min_counter=2 if model == "vision" and counter == len(_MODELS[0][1]) else 0,
    )  # fmt: skip
    path = f"models/{model}/{profile}/{counter}.manifest.json"
    fleet.refs[model, version, profile] = ReleaseRef(model=model, version=version, counter=counter, digest=digest)
    fleet.paths[digest] = path
    fleet.add(
        schema.Image, path=path, model=model, version=version, profile=profile, counter=counter, digest=digest,
        manifest_bytes=1400, image=image.model_dump_json(by_alias=True, exclude_none=True),
        published=fleet.now - timedelta(days=age), listed=True,
    )  # fmt: skip


def _add_devices(fleet: _Fleet, devices: int) -> None:
    for number in range(devices):
        model = _MODELS[1 if number % 5 == 4 else 0]
        name = f"{'camera' if model[0] == 'vision' else 'desk'}-{number + 1:04}"
        _add_device(fleet, number, name, model[0], model[1])


def _add_device(fleet: _Fleet, number: int, name: str, model: str, versions: Sequence[str]) -> None:
    profile = PROFILES[number % 7 % len(PROFILES)]
    refused, offline = number % 25 == 11, number % 20 == 13
    old, new = (fleet.refs[model, version, profile] for version in versions[-2:])
    behind = refused or number % 3 == 2
    serving, desired = (old if behind else new), (new if refused or not behind else old)
    fleet.serving[name] = (model, serving.version)
    since = fleet.now - timedelta(hours=fleet.random.uniform(1, 40))
    attempt = _deployment(fleet, name, new if refused else serving, old, since, refused)
    slot = SlotReport(
        slot="main", port=8500, serving=serving, since=since, known_good=serving, desired=desired, healthy=True,
        deployment=attempt,
    )  # fmt: skip
    labels = {"site": _SITES[number % len(_SITES)], "line": str(number % 4 + 1)}
    seen = fleet.now - (timedelta(hours=5, minutes=number % 60) if offline else timedelta(seconds=number % 50))
    row = {
        "id": name, "profile": profile, "labels": json.dumps(labels, sort_keys=True), "agent_version": "0.2.0",
        "enrolled": fleet.now - timedelta(days=30, minutes=number), "revoked": None, "online": not offline,
        "last_seen": seen, "sequence": 3, "reported_sequence": 3, "report_stream": "s1", "report_number": 90,
        "report_received": seen, "slots": f"[{slot.model_dump_json(exclude_none=True)}]",
        "rejected": json.dumps([new.digest] if refused else []), "lock": _lock(fleet, number),
        "facts": json.dumps(_facts(profile), sort_keys=True), "problem": _problem(number), "drifting": int(refused),
    }  # fmt: skip
    fleet.devices.append(row)
    fleet.add(schema.Device, **row)
    for label, value in labels.items():
        fleet.add(schema.DeviceLabel, device=name, name=label, value=value)
    fleet.add(schema.DesiredSlot, device=name, slot="main", path=fleet.paths[desired.digest])
    fleet.add(
        schema.ServingSlot, device=name, slot="main", profile=profile, healthy=True, since=since, **serving.model_dump()
    )  # fmt: skip


def _lock(fleet: _Fleet, number: int) -> str | None:
    expires = (fleet.now + timedelta(minutes=20)).isoformat()
    lock = {"holder": "recorder", "reason": "a shift is being recorded", "expires": expires}
    return json.dumps(lock) if number % 40 == 17 else None


def _facts(profile: str) -> dict[str, str]:
    kinds = {
        "raspberry-pi-4": {"device_tree_model": "Raspberry Pi 4 Model B Rev 1.4", "kernel": "6.6.31+rpt-rpi-v8"},
        "jetson-orin": {"device_tree_model": "NVIDIA Jetson Orin Nano", "l4t_release": "36.4.3", "cuda": "12.6"},
    }
    return {"system": "Debian GNU/Linux 12"} | kinds.get(profile, {"kernel": "6.1.0-21"})


def _problem(number: int) -> str | None:
    fix = "Check the registry's address, its credentials and the network"
    problem = Problem(code="adapter.registry", thing="registry registry.example", reason="no answer", fix=fix)
    return problem.model_dump_json() if number % 33 == 8 else None


def _deployment(
    fleet: _Fleet, name: str, release: ReleaseRef, previous: ReleaseRef, ended: datetime, refused: bool
) -> DeploymentReport:
    """A deployment with its phases and gates, added to the history."""
    started = ended - timedelta(seconds=40)
    worst = 0.0421 if refused else round(fleet.random.uniform(1e-6, 4e-4), 6)
    p95 = round(fleet.random.uniform(9, 32), 1)
    gates = [
        GateResult(kind="ready", ok=True, detail="ready after 1.9 s", seconds=1.9),
        GateResult(kind="signature", ok=True, detail="1 input, 1 output, CPUExecutionProvider", seconds=0.1),
        GateResult(
            kind="golden", ok=not refused, detail=f"worst of 8 cases differs by {worst:g}, allowed 0.001", seconds=0.6,
            numbers={"worst_error": worst, "tolerance": 0.001},
        ),
    ]  # fmt: skip
    if not refused:
        numbers = {"p95_ms": p95, "bound_ms": 80.0}
        gates.append(GateResult(kind="latency", ok=True, detail=f"p95 {p95} ms", seconds=0.4, numbers=numbers))
    names = ["admitted", "fetching", "staging", "starting", "probing"]
    names += ["rejected"] if refused else ["switching", "soaking", "committing", "committed"]
    reason = f"golden case 3 differs by {worst:g}, allowed 0.001"
    fix = "Correct the model or its golden cases and release a new version"
    report = DeploymentReport(
        id=f"main-{release.version}", slot="main", release=release, previous=previous, sequence=3,
        phase="rejected" if refused else "committed", started=started, updated=ended, mode="overlap", gates=gates,
        phases=[(phase, started + timedelta(seconds=4 * step)) for step, phase in enumerate(names)],
        fetched_bytes=3_400_000, total_bytes=3_400_000,
        problem=Problem(code="deployment.gate", thing=f"gate golden of {release.model} {release.version}",
                        reason=reason, fix=fix) if refused else None,
    )  # fmt: skip
    fleet.add(
        schema.Deployment, device=name, id=report.id, slot="main", model=release.model, version=release.version,
        phase=report.phase, updated=ended, report=report.model_dump_json(exclude_none=True),
    )  # fmt: skip
    return report


def _add_rollouts(fleet: _Fleet) -> list[int]:
    told = {(row["device"], row["version"]): row for row in fleet.rows[schema.Deployment.__table__]}  # type: ignore[index]
    plans = (
        (1, "vision", "1.0.0", "completed", "", 3.0), (2, "vision", "1.1.0", "completed", "", 2.0),
        (3, "vision", "2.0.0", "failed", "", 1.6), (4, "speech", "3.2.0", "running", "", 0.2),
        (5, "vision", "2.0.0", "paused", "2 of 20 devices rejected it", 0.1),
    )  # fmt: skip
    for number, model, version, state, reason, age in plans:
        ended = fleet.now - timedelta(days=age - 0.1) if state in ("completed", "failed") else None
        fleet.add(
            schema.RolloutRow, id=number, model=model, version=version, slot="main", state=state, reason=reason,
            selector=json.dumps({"labels": {"site": "berlin"}} if state == "paused" else {"everything": True}),
            created=fleet.now - timedelta(days=age), ended=ended,
        )  # fmt: skip
        for position, device in enumerate(row for row in fleet.devices if fleet.serving[row["id"]][0] == model):
            fleet.add(schema.RolloutTarget, **_target(fleet, number, device, position, (model, version, state), told))
    return [plan[0] for plan in plans]


def _target(
    fleet: _Fleet, rollout: int, device: _Row, position: int, plan: tuple[str, str, str], told: dict[Any, _Row]
) -> _Row:
    model, version, state = plan
    ref = fleet.refs[model, version, device["profile"]]
    row = told.get((device["id"], version))
    state = row["phase"] if row else _unfinished(state, position)
    report = row["report"] if row and state in ("committed", "rejected") else None
    problem = json.loads(report).get("problem") if report else None
    return {
        "rollout": rollout, "device": device["id"], "slot": "main", "wave": position // 20,
        "path": fleet.paths[ref.digest], "digest": ref.digest, "state": state, "own": state, "sequence": 3,
        "assigned": None if state == "pending" else fleet.now - timedelta(hours=2), "deployment": report,
        "problem": json.dumps(problem) if problem else None,
    }  # fmt: skip


def _unfinished(state: str, position: int) -> str:
    ended = {"completed": "committed", "failed": "superseded"}
    return ended.get(state) or ("running", "assigned", "pending", "pending")[position % 4]


def _histogram(chance: random.Random, requests: int, median_us: float) -> list[int]:
    """Latencies of so many requests, spread as a real model's are."""
    counts = [0] * (len(LATENCY_EDGES_US) + 1)
    for part, share in ((0.6, 0.25), (0.9, 0.35), (1.2, 0.25), (1.8, 0.11), (3.1, 0.04)):
        latency = median_us * part * chance.uniform(0.95, 1.05)
        bin_ = next((i for i, edge in enumerate(LATENCY_EDGES_US) if latency <= edge), len(LATENCY_EDGES_US))
        counts[bin_] += round(requests * share)
    counts[counts.index(max(counts))] += requests - sum(counts)
    return counts


def _buckets(fleet: _Fleet, seconds: int, since: timedelta) -> Iterator[datetime]:
    start = fleet.now - since
    at = start - timedelta(seconds=start.timestamp() % seconds)
    while at < fleet.now:
        yield at
        at += timedelta(seconds=seconds)


def _usage(fleet: _Fleet, requests: int, model: str, version: str) -> _Row:
    speed = next(median for name, _, median in _MODELS if name == model)
    newest = next(versions[-1] for name, versions, _ in _MODELS if name == model)
    latency = _histogram(fleet.random, requests, speed * (0.8 if version == newest else 1.0))
    return {
        "model": model, "version": version, "slot": "main", "counter": fleet.refs[model, version, PROFILES[0]].counter,
        "requests": requests, "failures": requests // 400, "latency": json.dumps(latency),
        "latency_sum_us": requests * speed,
    }  # fmt: skip


def _add_device_telemetry(fleet: _Fleet, detailed: int) -> None:
    """By the minute for two hours, by the hour before."""
    for number, device in enumerate(fleet.devices[:detailed]):
        model, version = fleet.serving[device["id"]]
        previous = next(versions[-2] for name, versions, _ in _MODELS if name == model)
        swap = fleet.now - timedelta(hours=6)
        for seconds, since in ((3600, timedelta(days=fleet.days)), (60, timedelta(hours=2))):
            for at in _buckets(fleet, seconds, since):
                if seconds == 3600 and at >= fleet.now - timedelta(hours=3):
                    break
                usage = _usage(fleet, seconds // 60 * (40 + number), model, version if at >= swap else previous)
                last = at + timedelta(seconds=seconds)
                fleet.add(
                    schema.SlotUsage, device=device["id"], bucket=at, first=at, last=last, **usage,
                    memory_bytes=92_000_000 + 1_000_000 * number,
                )  # fmt: skip
        _add_host_samples(fleet, device["id"], number)


def _add_host_samples(fleet: _Fleet, device: str, number: int) -> None:
    for at in _buckets(fleet, 300, timedelta(days=fleet.days)):
        busy = fleet.random.uniform(15, 45)
        sample = {
            "type": "host", "cpu_percent": round(busy, 1), "memory_used_bytes": int(1.1e9 + 1e7 * busy),
            "memory_total_bytes": 4_000_000_000, "disk_used_bytes": 9_000_000_000 + 1_000_000 * number,
            "disk_total_bytes": 31_000_000_000, "temperatures": {"cpu": round(41 + busy / 4, 1)}, "throttled": [],
            "watts": {"total": round(3.1 + busy / 30, 2)}, "agent_rss_bytes": 66_000_000,
        }  # fmt: skip
        fleet.add(schema.HostUsage, device=device, bucket=at, at=at, sample=json.dumps(sample))
    hour = next(_buckets(fleet, 3600, timedelta(hours=1)))
    for kind, received in (("slot", 120), ("host", 60)):
        lost = 12 if number == 3 else 0
        fleet.add(schema.RecordCount, device=device, bucket=hour, type=kind, received=received, dropped=lost)


def _add_fleet_telemetry(fleet: _Fleet) -> None:
    """Sums over all devices: by the minute for two days at most, by ten minutes, and for ever."""
    serving: dict[tuple[str, str], int] = {}
    for key in fleet.serving.values():
        serving[key] = serving.get(key, 0) + 1
    for (model, version), devices in sorted(serving.items()):
        memory = {"memory_sum": 95_000_000 * devices, "memory_samples": devices}
        for step, since in ((60, timedelta(days=min(fleet.days, 2))), (600, timedelta(days=fleet.days))):
            for at in _buckets(fleet, step, since):
                wave = 0.7 + 0.3 * fleet.random.random()
                usage = _usage(fleet, int(step // 60 * 40 * devices * wave), model, version)
                fleet.add(schema.ModelUsage, step=step, bucket=at, **usage, **memory)
        total = _usage(fleet, int(fleet.days * 1440 * 40 * devices), model, version) | {"slot": ""}
        epoch = datetime.fromtimestamp(0, fleet.now.tzinfo)
        fleet.add(schema.ModelUsage, step=0, bucket=epoch, **total, **memory)
    for kind, received in (("slot", 2880), ("host", 576), ("deployment", 9)):
        fleet.add(schema.RecordTotal, type=kind, received=received * len(fleet.devices), dropped=36)


def _add_audit(fleet: _Fleet) -> None:
    lines = [
        ("server", "token.create", "admin", ""), ("admin", "repository.publish", "targets 3", "3.targets.json"),
        ("admin", "rollout.create", "3", "vision 2.0.0"), ("server", "rollout.failed", "3", ""),
        ("anonymous", "login.refused", "dashboard", "203.0.113.9"), ("admin", "login", "dashboard", "192.0.2.10"),
        ("admin", "rollout.create", "5", "vision 2.0.0"), ("server", "rollout.pause", "5", "2 of 20 rejected it"),
        ("device camera-0001", "renew", "camera-0001", ""), ("ci", "device.labels", "camera-0002", '{"site": "lyon"}'),
    ]  # fmt: skip
    enrolled = [(f"device {row['id']}", "enrol", row["id"], "") for row in fleet.devices[:300]]
    everything = [*enrolled, *lines]
    for number, (actor, action, thing, detail) in enumerate(everything):
        at = fleet.now - timedelta(minutes=3 * (len(everything) - number))
        fleet.add(schema.Audit, at=at, actor=actor, action=action, thing=thing, detail=detail)
