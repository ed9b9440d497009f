"""Rollouts: created, followed, paused, ended. What to do next is decided in `domain.rollout`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from sqlalchemy import Select, select, update
from sqlalchemy.orm import Session

from wherry.agent_release import misplaced
from wherry.api import RolloutRequest, Selector
from wherry.errors import InputError, NotFound
from wherry.messages import Problem, Retry
from wherry.release import ReleaseImage
from wherry_server.domain import rollout as plan
from wherry_server.domain.selector import Candidate, is_empty, misfit, selects
from wherry_server.services import outbox
from wherry_server.services.assignments import assign_slot
from wherry_server.services.changes import FLEET, ROLLOUTS, rollout_topic
from wherry_server.services.context import SERVER, Context
from wherry_server.services.follow import TARGET_COLUMNS, device_report, make_target, mark_target
from wherry_server.services.targets import UNSETTLED, has_open_targets
from wherry_server.store.documents import write
from wherry_server.store.missing import no_device, no_release
from wherry_server.store.schema import Device, DeviceLabel, Image, RolloutRow, RolloutTarget

ASSIGN_LIMIT = 200
"""Assignments signed in one transaction; the rest follows with the next tick, so other writers get their turn."""
MAX_IDS = 5000
Verb = Literal["start", "pause", "abort", "retry"]


def create_rollout(context: Context, request: RolloutRequest) -> int:
    """Bring a release to a selection of devices; a newer rollout takes over the slot from older ones.

    Returns:
        The rollout's id. Its first devices have their assignments signed already.

    Raises:
        NotFound: no such release, or a device that the selector names.
        InputError: the request makes no sense, or its selector chooses no device.
    """
    check_request(request)
    now = context.clock()
    with context.store.write() as session:
        images = release_images(session, request.model, request.version)
        devices = select_devices(session, request.selector)
        row = RolloutRow(
            model=request.model,
            version=request.version,
            slot=request.slot,
            selector=write(request.selector) or "",
            state="running",
            created=now,
        )
        session.add(row)
        session.flush()
        _add_targets(context, session, row, devices, images)
        _supersede(session, row)
        number = "1 device" if len(devices) == 1 else f"{len(devices)} devices"
        context.record(session, "rollout.create", str(row.id), f"{request.model} {request.version}: {number}")
        context.announce(session, ROLLOUTS)
        rollout = row.id
    advance(context, rollout)
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
    reason = misplaced(request.model, request.slot)
    if reason:
        raise InputError(f"release {request.model} {request.version}", reason, "Name another slot")


def change_rollout(context: Context, rollout: int, verb: Verb) -> None:
    """An operator starts, pauses, aborts or retries a rollout. Retry sends every failed device once more.

    Raises:
        NotFound: no such rollout.
        Conflict: its state does not allow this.
    """
    now = context.clock()
    with context.store.write() as session:
        row = _get(session, rollout)
        row.state = plan.change_state(row.state, verb)  # type: ignore[arg-type]  # only such states are stored
        row.ended = now if row.state == "aborted" else None
        row.reason = ""
        if verb == "retry":
            _queue_retries(session, rollout, row.slot, now)
            session.flush()
            _supersede(session, row)
        context.record(session, f"rollout.{verb}", str(rollout))
        context.announce(session, rollout_topic(rollout), ROLLOUTS)
    advance(context, rollout)
    context.wake()


def advance(context: Context, rollout: int, limit: int = ASSIGN_LIMIT) -> bool:
    """Do what a rollout needs next; whether more is left to do at once."""
    now = context.clock()
    with context.store.write() as session:
        row = _get(session, rollout)
        actions = plan.next_actions(_to_domain(session, row), _open_problems(session, rollout), now)
        assigns = [action for action in actions if isinstance(action, plan.Assign)]
        chosen = [*(action for action in actions if not isinstance(action, plan.Assign)), *assigns[:limit]]
        _apply(context, session, row, chosen, now)
        if chosen:
            context.announce(session, rollout_topic(rollout), ROLLOUTS, FLEET)
    if assigns:
        context.wake()
    return len(assigns) > limit


def advance_all(context: Context) -> None:
    """The tick: look after every rollout that waits for something other than a device's report."""
    with context.store.read() as session:
        running = session.scalars(select(RolloutRow.id).where(RolloutRow.state == "running").order_by(RolloutRow.id))
        due = [rollout for rollout in running if needs_attention(session, rollout)]
    for rollout in due:
        while advance(context, rollout):
            pass


def needs_attention(session: Session, rollout: int) -> bool:
    """Whether there is something to do about a running rollout; asked often, so it loads no targets."""
    pending = select(RolloutTarget.device).where(RolloutTarget.rollout == rollout, RolloutTarget.state == "pending")
    if session.scalar(pending.limit(1)) is not None or not has_open_targets(session, rollout):
        return True
    return session.scalar(_with_problems(rollout).limit(1)) is not None


def _with_problems(rollout: int) -> Select[RolloutTarget, Device]:
    return (
        select(RolloutTarget, Device)
        .join(Device, Device.id == RolloutTarget.device)
        .where(RolloutTarget.rollout == rollout, RolloutTarget.state == "assigned", Device.problem.is_not(None))
    )


def _open_problems(session: Session, rollout: int) -> dict[str, plan.DeviceReport]:
    """Reports of devices that say why they do not go on: time alone may turn these into refusals."""
    found = session.execute(_with_problems(rollout))
    return {device.id: device_report(device, target.slot) for target, device in found}


def _get(session: Session, rollout: int) -> RolloutRow:
    row = session.get(RolloutRow, rollout, with_for_update=True)
    if row is None:
        raise NotFound(f"rollout {rollout}", "does not exist")
    return row


def _to_domain(session: Session, row: RolloutRow) -> plan.Rollout:
    """The rollout with all its targets; without making objects of rows that nothing will change in."""
    waves: dict[int, list[str]] = {}
    targets = {}
    found = session.execute(select(RolloutTarget.wave, *TARGET_COLUMNS).where(RolloutTarget.rollout == row.id))
    for line in found:
        wave: int = line[0]
        target = make_target(*line[1:])
        waves.setdefault(wave, []).append(target.device)
        targets[target.device] = target
    ordered = tuple(plan.Wave(tuple(sorted(waves[number]))) for number in sorted(waves))
    return plan.Rollout(row.state, ordered, targets)  # type: ignore[arg-type]  # only such states are stored


def _apply(context: Context, session: Session, row: RolloutRow, actions: Sequence[plan.Action], now: datetime) -> None:
    named = [action.device for action in actions if isinstance(action, plan.Assign | plan.Mark)]
    query = select(RolloutTarget).where(RolloutTarget.rollout == row.id, RolloutTarget.device.in_(named))
    targets = {target.device: target for target in session.scalars(query)} if named else {}
    assigned = [action.device for action in actions if isinstance(action, plan.Assign)]
    held = select(Device).where(Device.id.in_(assigned)).order_by(Device.id).with_for_update()
    devices = {device.id: device for device in session.scalars(held)} if assigned else {}
    for action in actions:
        match action:
            case plan.Mark(device=device):
                mark_target(targets[device], action)
            case plan.Assign(device=device):
                _assign(context, session, targets[device], devices[device], now)
            case plan.Pause(reason=reason):
                row.state, row.reason = "paused", reason
                context.acting_as(SERVER).record(session, "rollout.pause", str(row.id), reason)
            case plan.Finish(state=state):
                row.state, row.ended = state, now
                context.acting_as(SERVER).record(session, f"rollout.{state}", str(row.id))


def _assign(context: Context, session: Session, target: RolloutTarget, device: Device, now: datetime) -> None:
    if device.revoked is not None:
        target.state = "superseded"
        return
    target.sequence = assign_slot(context, session, device, target.slot, target.path, now)
    target.state, target.assigned, target.problem = "assigned", now, None


def release_images(session: Session, model: str, version: str) -> dict[str, Image]:
    """The newest image of a release for each profile."""
    query = select(Image).where(Image.model == model, Image.version == version, Image.listed).order_by(Image.counter)
    images = {image.profile: image for image in session.scalars(query)}
    if not images:
        raise no_release(session, model, version)
    return images


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
    context: Context, session: Session, row: RolloutRow, devices: Sequence[Candidate], images: dict[str, Image]
) -> None:
    signed = {profile: ReleaseImage.model_validate_json(image.image) for profile, image in images.items()}
    for device in devices:
        problem = misfit(device, f"{row.model} {row.version}", signed, context.profiles)
        image = None if problem else images[device.profile]
        session.add(
            RolloutTarget(
                rollout=row.id,
                device=device.id,
                slot=row.slot,
                path=image.path if image else None,
                digest=image.digest if image else "",
                state="pending" if image else "misfit",
                problem=write(problem),
            )
        )
    session.flush()


def _supersede(session: Session, row: RolloutRow) -> None:
    """End what older rollouts still wanted of the same slot of the devices that this one goes to."""
    ours = select(RolloutTarget.device).where(RolloutTarget.rollout == row.id, RolloutTarget.state == "pending")
    problem = Problem(
        code="conflict",
        thing=f"slot {row.slot}",
        reason=f"rollout {row.id} ({row.model} {row.version}) took over",
        fix=f"Look at rollout {row.id}",
    )
    session.execute(
        update(RolloutTarget)
        .where(
            RolloutTarget.rollout != row.id,
            RolloutTarget.slot == row.slot,
            RolloutTarget.state.in_(UNSETTLED),
            RolloutTarget.device.in_(ours),
        )
        .values(state="superseded", problem=write(problem))
        .execution_options(synchronize_session=False)
    )


def _queue_retries(session: Session, rollout: int, slot: str, now: datetime) -> None:
    failed = session.scalars(
        select(RolloutTarget).where(RolloutTarget.rollout == rollout, RolloutTarget.state.in_(sorted(plan.FAILED)))
    )
    for target in failed:
        outbox.put_command(session, target.device, Retry(slot=slot, digest=target.digest), now)
        target.state, target.problem, target.deployment = "pending", None, None
