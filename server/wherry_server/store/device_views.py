"""Devices as people and tools read them: twins, searched, filtered and counted. Paged by id."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import ColumnElement, Select, case, func, select
from sqlalchemy.orm import Session

from wherry.api.devices import DevicePage, DeviceView
from wherry.messages import ReleaseRef
from wherry_server.domain.twin import drift
from wherry_server.store.documents import read_lock, read_problem, read_slots
from wherry_server.store.missing import no_device
from wherry_server.store.schema import DesiredSlot, Device, DeviceLabel, Image, ServingSlot

DeviceState = Literal["active", "online", "offline", "drifting", "problem", "locked", "revoked"]
"""What devices can be listed by; all but `revoked` leave revoked devices out."""
FACET_NAMES, FACET_VALUES = 20, 50
_ACTIVE = Device.revoked.is_(None)
_STATES: dict[DeviceState, ColumnElement[bool]] = {
    "active": _ACTIVE,
    "online": _ACTIVE & Device.online,
    "offline": _ACTIVE & ~Device.online,
    "drifting": _ACTIVE & (Device.drifting > 0),
    "problem": _ACTIVE & Device.problem.is_not(None),
    "locked": _ACTIVE & Device.lock.is_not(None),
    "revoked": ~_ACTIVE,
}


@dataclass(frozen=True, slots=True)
class DeviceFilter:
    """Which devices to list: all conditions given must hold.

    Attributes:
        labels: (name, value).
        search: part of the id.
        model, version: what one of its slots serves now.
    """

    profile: str | None = None
    online: bool | None = None
    labels: tuple[tuple[str, str], ...] = ()
    state: DeviceState | None = None
    search: str = ""
    model: str | None = None
    version: str | None = None


@dataclass(frozen=True, slots=True)
class DeviceListing:
    """A page of devices, and how many the filter matches in all."""

    items: list[DeviceView]
    total: int
    next: str | None


@dataclass(frozen=True, slots=True)
class FleetCounts:
    """The fleet in numbers; revoked devices are counted apart."""

    devices: int
    online: int
    drifting: int
    problems: int
    revoked: int = 0
    locked: int = 0


@dataclass(frozen=True, slots=True)
class Facets:
    """What a list of devices can be narrowed down by, with the number of devices; the most frequent first.

    Attributes:
        labels: name to value to devices.
        serving: (model, version, devices that serve it).
    """

    profiles: dict[str, int]
    labels: dict[str, dict[str, int]]
    serving: list[tuple[str, str, int]]


def fleet_counts(session: Session) -> FleetCounts:
    """How many devices there are, and how they are."""

    def count(state: DeviceState) -> ColumnElement[int]:
        return func.coalesce(func.sum(case((_STATES[state], 1), else_=0)), 0)

    states: tuple[DeviceState, ...] = ("active", "online", "drifting", "problem", "revoked", "locked")
    row = session.execute(select(*(count(state) for state in states))).one()
    return FleetCounts(*(int(number) for number in row))


def device_facets(session: Session) -> Facets:
    """Profiles, labels and serving releases of all devices that are not revoked; bounded."""
    number = func.count().label("number")
    profiles = session.execute(
        select(Device.profile, number).where(_ACTIVE).group_by(Device.profile).order_by(number.desc(), Device.profile)
    )
    found: dict[str, dict[str, int]] = {}
    revoked = select(Device.id).where(~_ACTIVE)
    labels = select(DeviceLabel.name, DeviceLabel.value, number).where(DeviceLabel.device.not_in(revoked))
    labels = labels.group_by(DeviceLabel.name, DeviceLabel.value)
    for name, value, devices in session.execute(labels.order_by(number.desc(), DeviceLabel.name, DeviceLabel.value)):
        values = found.setdefault(name, {}) if name in found or len(found) < FACET_NAMES else {}
        if len(values) < FACET_VALUES:
            values[value] = devices
    serving = select(ServingSlot.model, ServingSlot.version, func.count(ServingSlot.device.distinct()).label("number"))
    serving = serving.group_by(ServingSlot.model, ServingSlot.version)
    rows = session.execute(serving.order_by(ServingSlot.model, ServingSlot.version).limit(500))
    return Facets(
        profiles={str(profile): int(devices) for profile, devices in profiles},
        labels=found,
        serving=sorted(((model, version, devices) for model, version, devices in rows), key=lambda row: -row[2]),
    )


def device_page(session: Session, after: str, limit: int, wanted: DeviceFilter) -> DevicePage:
    """Devices by id."""
    rows = list(session.scalars(_page(wanted, after, limit)))
    views = device_views(session, rows[:limit])
    return DevicePage(items=views, next=views[-1].id if len(rows) > limit else None)


def device_listing(session: Session, wanted: DeviceFilter, after: str = "", limit: int = 50) -> DeviceListing:
    """Devices by id, and how many there are of them."""
    page = device_page(session, after, limit, wanted)
    total = session.scalar(select(func.count()).select_from(Device).where(*_conditions(wanted))) or 0
    return DeviceListing(page.items, total, page.next)


def _page(wanted: DeviceFilter, after: str, limit: int) -> Select[Device]:
    return select(Device).where(Device.id > after, *_conditions(wanted)).order_by(Device.id).limit(limit + 1)


def _conditions(wanted: DeviceFilter) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = [_STATES[wanted.state]] if wanted.state else []
    if wanted.profile is not None:
        found.append(Device.profile == wanted.profile)
    if wanted.online is not None:
        found.append(Device.online == wanted.online)
    if wanted.search:
        found.append(Device.id.contains(wanted.search, autoescape=True))
    if wanted.model is not None or wanted.version is not None:
        found.append(Device.id.in_(_serving(wanted)))
    for name, value in wanted.labels:
        having = select(DeviceLabel.device).where(DeviceLabel.name == name, DeviceLabel.value == value)
        found.append(Device.id.in_(having))
    return found


def _serving(wanted: DeviceFilter) -> Select[str]:
    query = select(ServingSlot.device)
    if wanted.model is not None:
        query = query.where(ServingSlot.model == wanted.model)
    return query if wanted.version is None else query.where(ServingSlot.version == wanted.version)


def device_view(session: Session, device: str) -> DeviceView:
    """One device.

    Raises:
        NotFound: no such device.
    """
    row = session.get(Device, device)
    if row is None:
        raise no_device(session, device)
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
        lock=read_lock(row.lock),
        facts=json.loads(row.facts),
        problem=read_problem(row.problem),
    )
