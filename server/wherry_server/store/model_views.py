"""Models in the field: which versions serve on how many devices, and how they answer."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from wherry.errors import NotFound
from wherry_server.domain.histogram import merge, percentile
from wherry_server.store.schema import DesiredSlot, Device, Image, ModelUsage, ServingSlot
from wherry_server.store.series_views import usage_step


@dataclass(frozen=True, slots=True)
class VersionInField:
    """A version of a model. Numbers are of the window.

    Attributes:
        devices, healthy: that serve it now; of these, whose gates and probes are content.
        desired: that should serve it.
        profiles: device profile to devices that serve it.
        published: None when the owner's metadata does not name it.
        per_second: answered requests, over the whole window.
        error_rate: part of requests that failed; None without requests.
    """

    model: str
    version: str
    devices: int
    desired: int
    healthy: int
    profiles: dict[str, int]
    published: datetime | None
    requests: int
    failures: int
    p50_us: int | None
    p95_us: int | None
    p99_us: int | None
    per_second: float
    error_rate: float | None


@dataclass(frozen=True, slots=True)
class ModelInField:
    """A model with its versions, those on most devices first."""

    model: str
    devices: int
    requests: int
    failures: int
    p95_us: int | None
    per_second: float
    versions: list[VersionInField]


@dataclass(slots=True)
class _Version:
    devices: int = 0
    desired: int = 0
    healthy: int = 0
    profiles: dict[str, int] = field(default_factory=dict)
    published: datetime | None = None
    requests: int = 0
    failures: int = 0
    latency: list[int] = field(default_factory=list)


_Key = tuple[str, str]


def models_in_field(session: Session, since: datetime, now: datetime) -> list[ModelInField]:
    """All models, those on most devices first; also those that no device serves."""
    return _models(session, None, since, now)


def model_in_field(session: Session, model: str, since: datetime, now: datetime) -> ModelInField:
    """One model.

    Raises:
        NotFound: nobody released or serves it.
    """
    found = _models(session, model, since, now)
    if not found:
        raise NotFound(f"model {model}", "does not exist", "List releases with `wherry release list`")
    return found[0]


def _models(session: Session, model: str | None, since: datetime, now: datetime) -> list[ModelInField]:
    versions: dict[_Key, _Version] = {}
    _add_releases(session, model, versions)
    _add_serving(session, model, versions)
    _add_desired(session, model, versions)
    _add_usage(session, model, since, now, versions)
    seconds = max(1.0, (now - since).total_seconds())
    models: dict[str, list[_Key]] = {}
    for key in versions:
        models.setdefault(key[0], []).append(key)
    found = [_model(name, {key: versions[key] for key in keys}, seconds) for name, keys in models.items()]
    return sorted(found, key=lambda one: (-one.devices, one.model))


def _add_releases(session: Session, model: str | None, versions: dict[_Key, _Version]) -> None:
    query = select(Image.model, Image.version, func.max(Image.published)).where(Image.listed)
    if model is not None:
        query = query.where(Image.model == model)
    for name, version, published in session.execute(query.group_by(Image.model, Image.version)):
        versions.setdefault((name, version), _Version()).published = published


def _add_serving(session: Session, model: str | None, versions: dict[_Key, _Version]) -> None:
    columns = (ServingSlot.model, ServingSlot.version, ServingSlot.profile, ServingSlot.healthy)
    query = select(*columns, func.count(ServingSlot.device.distinct())).group_by(*columns)
    if model is not None:
        query = query.where(ServingSlot.model == model)
    for name, version, profile, healthy, devices in session.execute(query):
        found = versions.setdefault((name, version), _Version())
        found.devices += devices
        found.healthy += devices if healthy else 0
        found.profiles[profile] = found.profiles.get(profile, 0) + devices


def _add_desired(session: Session, model: str | None, versions: dict[_Key, _Version]) -> None:
    query = (
        select(Image.model, Image.version, func.count(DesiredSlot.device.distinct()))
        .join(DesiredSlot, DesiredSlot.path == Image.path)
        .where(DesiredSlot.device.not_in(select(Device.id).where(Device.revoked.is_not(None))))
        .group_by(Image.model, Image.version)
    )
    if model is not None:
        query = query.where(Image.model == model)
    for name, version, devices in session.execute(query):
        versions.setdefault((name, version), _Version()).desired = devices


def _add_usage(
    session: Session, model: str | None, since: datetime, now: datetime, versions: dict[_Key, _Version]
) -> None:
    columns = (ModelUsage.model, ModelUsage.version, ModelUsage.requests, ModelUsage.failures, ModelUsage.latency)
    query = select(*columns).where(
        ModelUsage.step == usage_step(since, now), ModelUsage.bucket >= since, ModelUsage.bucket < now
    )
    if model is not None:
        query = query.where(ModelUsage.model == model)
    for name, version, requests, failures, latency in session.execute(query):
        found = versions.setdefault((name, version), _Version())
        found.requests += requests
        found.failures += failures
        found.latency = merge(found.latency, json.loads(latency))


def _model(name: str, versions: dict[_Key, _Version], seconds: float) -> ModelInField:
    total = _sum(versions.values())
    views = [_version(key, found, seconds) for key, found in versions.items()]
    views.sort(key=lambda view: (-view.devices, -(view.published.timestamp() if view.published else 0), view.version))
    return ModelInField(
        model=name,
        devices=total.devices,
        requests=total.requests,
        failures=total.failures,
        p95_us=percentile(total.latency, 0.95),
        per_second=total.requests / seconds,
        versions=views,
    )


def _sum(versions: Iterable[_Version]) -> _Version:
    total = _Version()
    for version in versions:
        total.devices += version.devices
        total.requests += version.requests
        total.failures += version.failures
        total.latency = merge(total.latency, version.latency)
    return total


def _version(key: _Key, found: _Version, seconds: float) -> VersionInField:
    asked = found.requests + found.failures
    p50, p95, p99 = (percentile(found.latency, part) for part in (0.5, 0.95, 0.99))
    return VersionInField(
        model=key[0],
        version=key[1],
        devices=found.devices,
        desired=found.desired,
        healthy=found.healthy,
        profiles=found.profiles,
        published=found.published,
        requests=found.requests,
        failures=found.failures,
        p50_us=p50,
        p95_us=p95,
        p99_us=p99,
        per_second=found.requests / seconds,
        error_rate=found.failures / asked if asked else None,
    )
