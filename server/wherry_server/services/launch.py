"""Rollouts begin: which releases, which devices, and what older rollouts lose."""

from __future__ import annotations

import json
from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from wherry.agent_release import misplaced
from wherry.api.rollouts import RolloutRequest, Selector
from wherry.errors import InputError
from wherry_server.domain.selector import Candidate, is_empty, selects
from wherry_server.services import rollouts
from wherry_server.services.changes import ROLLOUTS
from wherry_server.services.context import Context
from wherry_server.services.fitness import Part, load_parts, unfit
from wherry_server.services.targets import supersede
from wherry_server.store.documents import write, write_parts
from wherry_server.store.missing import no_device
from wherry_server.store.schema import Device, DeviceLabel, RolloutRow, RolloutTarget

MAX_IDS = 5000


def create_rollout(context: Context, request: RolloutRequest) -> int:
    """Bring releases to a selection of devices; a newer rollout takes over their slots from older ones.

    Returns:
        The rollout's id. Its first devices have their assignments signed already.

    Raises:
        NotFound: no such release, or a device that the selector names.
        InputError: the request makes no sense, or its selector chooses no device.
    """
    check_request(request)
    now, wanted = context.clock(), request.parts
    with context.store.write() as session:
        parts = load_parts(session, wanted)
        devices = select_devices(session, request.selector)
        row = RolloutRow(
            model=wanted[0].model,
            version=wanted[0].version,
            slot=wanted[0].slot,
            together=write_parts(request.together),
            selector=write(request.selector) or "",
            state="running",
            created=now,
        )
        session.add(row)
        session.flush()
        _add_targets(context, session, row, devices, parts)
        supersede(session, row)
        number = "1 device" if len(devices) == 1 else f"{len(devices)} devices"
        releases = " + ".join(part.label for part in wanted)
        context.record(session, "rollout.create", str(row.id), f"{releases}: {number}")
        context.announce(session, ROLLOUTS)
        rollout = row.id
    rollouts.advance(context, rollout)
    return rollout


def check_request(request: RolloutRequest) -> None:
    """Refuse what makes no sense whatever the fleet is like.

    Raises:
        InputError: it selects nothing, names too many devices, or puts a release where it does not belong.
    """
    if is_empty(request.selector):
        raise InputError("selector", "selects nothing", "Name devices, profiles or labels, or say everything")
    if len(request.selector.ids) > MAX_IDS:
        raise InputError("selector", f"names {len(request.selector.ids)} devices, the limit is {MAX_IDS}", "Use labels")
    for part in request.parts:
        reason = misplaced(part.model, part.slot)
        if reason:
            raise InputError(f"release {part.label}", reason, "Name another slot")


def select_devices(session: Session, selector: Selector) -> list[Candidate]:
    """The devices that a selector chooses now, by id.

    Raises:
        NotFound: a device that it names does not exist.
        InputError: it chooses none.
    """
    query = select(Device.id, Device.profile, Device.labels).where(Device.revoked.is_(None)).order_by(Device.id)
    if selector.ids:
        query = query.where(Device.id.in_(selector.ids))
    if selector.profiles:
        query = query.where(Device.profile.in_(selector.profiles))
    for name, value in selector.labels.items():
        having = select(DeviceLabel.device).where(DeviceLabel.name == name, DeviceLabel.value == value)
        query = query.where(Device.id.in_(having))
    found = [Candidate(device, profile, json.loads(labels)) for device, profile, labels in session.execute(query)]
    chosen = [device for device in found if selects(selector, device)]
    missing = sorted(set(selector.ids) - {device.id for device in chosen}) if not chosen or selector.ids else []
    if missing and not (selector.profiles or selector.labels):
        raise no_device(session, missing[0], "does not exist or is revoked")
    if not chosen:
        raise InputError("selector", "selects no device", "List devices with `wherry device list`")
    return chosen


def _add_targets(
    context: Context, session: Session, row: RolloutRow, devices: Sequence[Candidate], parts: Sequence[Part]
) -> None:
    problems = unfit(context, session, parts, devices)
    for device in devices:
        problem = problems.get(device.id)
        state = "misfit" if problem else "pending"
        for position, part in enumerate(parts):
            image = None if problem else part.images[device.profile]
            session.add(
                RolloutTarget(
                    rollout=row.id,
                    device=device.id,
                    slot=part.slot,
                    position=position,
                    path=image.path if image else None,
                    digest=image.digest if image else "",
                    state=state,
                    own=state,
                    problem=write(problem),
                )
            )
    session.flush()
