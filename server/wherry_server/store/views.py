"""What people and tools read: devices, releases, rollouts, deployments. Straight from tables, paged by key."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select, tuple_
from sqlalchemy.orm import Session

from wherry.api import (
    DeploymentPage,
    DeploymentView,
    DevicePage,
    DeviceView,
    ReleaseImageView,
    ReleasePage,
    ReleaseView,
    RolloutPage,
    RolloutTargetView,
    RolloutView,
    Selector,
)
from wherry.errors import InputError, NotFound
from wherry.messages import DeploymentReport, ReleaseRef
from wherry.release import ReleaseImage
from wherry_server.domain.twin import drift
from wherry_server.store.documents import read_problem, read_slots
from wherry_server.store.schema import (
    Deployment,
    DesiredSlot,
    Device,
    DeviceLabel,
    Image,
    RolloutRow,
    RolloutTarget,
)


@dataclass(frozen=True, slots=True)
class DeviceFilter:
    """Which devices to list: all conditions given must hold; `drifting` and `problem` leave out all others."""

    profile: str | None = None
    online: bool | None = None
    labels: tuple[tuple[str, str], ...] = ()
    drifting: bool = False
    problem: bool = False


@dataclass(frozen=True, slots=True)
class FleetCounts:
    """The fleet in four numbers; revoked devices are not among them."""

    devices: int
    online: int
    drifting: int
    problems: int


def fleet_counts(session: Session) -> FleetCounts:
    """How many devices there are, and how they are."""

    def count(*where: object) -> int:
        query = select(func.count()).select_from(Device).where(Device.revoked.is_(None), *where)  # type: ignore[arg-type]
        return session.scalar(query) or 0

    return FleetCounts(count(), count(Device.online), count(Device.drifting > 0), count(Device.problem.is_not(None)))


def device_page(session: Session, after: str, limit: int, wanted: DeviceFilter) -> DevicePage:
    """Devices by id."""
    query = select(Device).where(Device.id > after).order_by(Device.id).limit(limit + 1)
    if wanted.profile is not None:
        query = query.where(Device.profile == wanted.profile)
    if wanted.online is not None:
        query = query.where(Device.online == wanted.online)
    if wanted.drifting:
        query = query.where(Device.drifting > 0)
    if wanted.problem:
        query = query.where(Device.problem.is_not(None))
    for name, value in wanted.labels:
        having = select(DeviceLabel.device).where(DeviceLabel.name == name, DeviceLabel.value == value)
        query = query.where(Device.id.in_(having))
    rows = list(session.scalars(query))
    views = device_views(session, rows[:limit])
    return DevicePage(items=views, next=views[-1].id if len(rows) > limit else None)


def device_view(session: Session, device: str) -> DeviceView:
    """One device.

    Raises:
        NotFound: no such device.
    """
    row = session.get(Device, device)
    if row is None:
        raise NotFound(f"device {device}", "does not exist", "List devices with `wherry device list`")
    return device_views(session, [row])[0]


def device_views(session: Session, rows: Sequence[Device]) -> list[DeviceView]:
    """Twins of some devices, with one query for what is desired of all of them."""
    desired: dict[str, dict[str, ReleaseRef]] = {row.id: {} for row in rows}
    query = (
        select(DesiredSlot.device, DesiredSlot.slot, Image.model, Image.version, Image.counter, Image.digest)
        .join(Image, Image.path == DesiredSlot.path)
        .where(DesiredSlot.device.in_(desired))
    )
    for device, slot, model, version, counter, digest in session.execute(query):
        desired[device][slot] = ReleaseRef(model=model, version=version, counter=counter, digest=digest)
    return [_device_view(row, desired[row.id]) for row in rows]


def _device_view(row: Device, desired: dict[str, ReleaseRef]) -> DeviceView:
    slots = read_slots(row.slots)
    return DeviceView(
        id=row.id,
        profile=row.profile,
        labels=json.loads(row.labels),
        online=row.online,
        revoked=row.revoked is not None,
        agent_version=row.agent_version,
        enrolled=row.enrolled,
        last_seen=row.last_seen,
        sequence=row.sequence,
        reported_sequence=row.reported_sequence,
        desired=desired,
        slots=slots,
        drift=drift(desired, slots),
        problem=read_problem(row.problem),
    )


def release_page(session: Session, after: str, limit: int, model: str | None) -> ReleasePage:
    """Releases, newest first. The owner's metadata is bounded, so all of it may be sorted here."""
    query = select(Image).where(Image.listed)
    if model is not None:
        query = query.where(Image.model == model)
    found = _releases(session.scalars(query))
    keys = [f"{view.model}/{view.version}" for view in found]
    if after and after not in keys:
        raise InputError("parameter after", "names no release", "Start again without it")
    start = keys.index(after) + 1 if after else 0
    chosen = found[start : start + limit]
    return ReleasePage(items=chosen, next=keys[start + limit - 1] if start + limit < len(found) else None)


def release_view(session: Session, model: str, version: str) -> ReleaseView:
    """One release.

    Raises:
        NotFound: no such release.
    """
    query = select(Image).where(Image.listed, Image.model == model, Image.version == version)
    found = _releases(session.scalars(query))
    if not found:
        raise NotFound(f"release {model} {version}", "does not exist", "List releases with `wherry release list`")
    return found[0]


def _releases(rows: Iterable[Image]) -> list[ReleaseView]:
    groups: dict[tuple[str, str], list[Image]] = {}
    for row in rows:
        groups.setdefault((row.model, row.version), []).append(row)
    views = [_release_view(group) for group in groups.values()]
    return sorted(
        views, key=lambda view: (view.published, max(i.counter for i in view.images), view.model), reverse=True
    )


def _release_view(rows: Sequence[Image]) -> ReleaseView:
    images = {row.path: ReleaseImage.model_validate_json(row.image) for row in rows}
    ordered = sorted(rows, key=lambda row: (row.profile, row.counter))
    return ReleaseView(
        model=rows[0].model,
        version=rows[0].version,
        stage=images[ordered[-1].path].stage,
        published=max(row.published for row in rows),
        images=[
            ReleaseImageView(
                profile=row.profile,
                counter=row.counter,
                digest=row.digest,
                repository=images[row.path].repository,
                download_bytes=images[row.path].download_bytes,
                unpacked_bytes=images[row.path].unpacked_bytes,
                runtime=images[row.path].runtime,
                precision=images[row.path].precision,
            )
            for row in ordered
        ],
    )


def rollout_page(session: Session, after: int | None, limit: int) -> RolloutPage:
    """Rollouts, newest first, without targets."""
    query = select(RolloutRow).order_by(RolloutRow.id.desc()).limit(limit + 1)
    if after is not None:
        query = query.where(RolloutRow.id < after)
    rows = list(session.scalars(query))
    counts = _counts(session, [row.id for row in rows[:limit]])
    items = [_rollout_view(row, counts.get(row.id, {})) for row in rows[:limit]]
    return RolloutPage(items=items, next=str(items[-1].id) if len(rows) > limit else None)


def rollout_view(session: Session, rollout: int) -> RolloutView:
    """One rollout with its targets.

    Raises:
        NotFound: no such rollout.
    """
    row = session.get(RolloutRow, rollout)
    if row is None:
        raise NotFound(f"rollout {rollout}", "does not exist", "List rollouts with `wherry rollout list`")
    targets = session.scalars(
        select(RolloutTarget).where(RolloutTarget.rollout == rollout).order_by(RolloutTarget.device)
    )
    view = _rollout_view(row, _counts(session, [rollout]).get(rollout, {}))
    return view.model_copy(update={"targets": [_target_view(target) for target in targets]})


def _counts(session: Session, rollouts: Sequence[int]) -> dict[int, dict[str, int]]:
    query = (
        select(RolloutTarget.rollout, RolloutTarget.state, func.count())
        .where(RolloutTarget.rollout.in_(rollouts))
        .group_by(RolloutTarget.rollout, RolloutTarget.state)
    )
    found: dict[int, dict[str, int]] = {}
    for rollout, state, number in session.execute(query):
        found.setdefault(rollout, {})[state] = number
    return found


def _rollout_view(row: RolloutRow, counts: dict[str, int]) -> RolloutView:
    return RolloutView(
        id=row.id,
        model=row.model,
        version=row.version,
        slot=row.slot,
        selector=Selector.model_validate_json(row.selector),
        state=row.state,
        created=row.created,
        ended=row.ended,
        counts=counts,
    )


def troubled_targets(session: Session, rollouts: Sequence[int], limit: int) -> dict[int, list[RolloutTargetView]]:
    """The first devices of each rollout that failed or did not fit."""
    troubled = ("rejected", "refused", "misfit")
    found = {}
    for rollout in rollouts:
        query = (
            select(RolloutTarget)
            .where(RolloutTarget.rollout == rollout, RolloutTarget.state.in_(troubled))
            .order_by(RolloutTarget.device)
            .limit(limit)
        )
        found[rollout] = [_target_view(row) for row in session.scalars(query)]
    return found


def _target_view(row: RolloutTarget) -> RolloutTargetView:
    return RolloutTargetView(
        device=row.device,
        state=row.state,
        sequence=row.sequence,
        deployment=DeploymentReport.model_validate_json(row.deployment) if row.deployment else None,
        problem=read_problem(row.problem),
    )


def deployment_page(session: Session, device: str | None, after: str, limit: int) -> DeploymentPage:
    """Deployments, the latest change first."""
    order = (Deployment.updated.desc(), Deployment.device.desc(), Deployment.id.desc())
    query = select(Deployment).order_by(*order).limit(limit + 1)
    if device is not None:
        query = query.where(Deployment.device == device)
    if after:
        key = _deployment_key(after)
        query = query.where(tuple_(Deployment.updated, Deployment.device, Deployment.id) < tuple_(*key))
    rows = list(session.scalars(query))
    items = [
        DeploymentView(device=row.device, deployment=DeploymentReport.model_validate_json(row.report))
        for row in rows[:limit]
    ]
    last = rows[limit - 1] if len(rows) > limit else None
    return DeploymentPage(items=items, next=f"{last.updated.isoformat()}~{last.device}~{last.id}" if last else None)


def _deployment_key(after: str) -> tuple[datetime, str, str]:
    try:
        when, device, deployment = after.split("~", 2)
        return datetime.fromisoformat(when), device, deployment
    except ValueError as error:
        raise InputError("parameter after", "is not the `next` of a page", "Start again without it") from error
