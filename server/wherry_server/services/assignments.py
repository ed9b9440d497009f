"""Assignments: the signed desired state of one device. Desired slots, signed bytes and outbox row commit together."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from wherry.errors import Conflict, NotFound
from wherry.messages import PollNow, ReleaseRef, Retry, SlotReport
from wherry.metadata import SignedImage
from wherry.release import ReleaseImage
from wherry.roles import ASSIGNMENT_DAYS
from wherry.slot_needs import needed_by
from wherry_server.domain.twin import drift
from wherry_server.services import outbox
from wherry_server.services.changes import FLEET, ROLLOUTS, device_topic
from wherry_server.services.context import Context
from wherry_server.services.targets import settle_slot
from wherry_server.store.documents import read_slots
from wherry_server.store.missing import no_device
from wherry_server.store.schema import FIRST, AssignmentRow, DesiredSlot, Device, Image, RolloutTarget


def assign_slots(
    context: Context,
    session: Session,
    device: Device,
    paths: Mapping[str, str | None],
    now: datetime,
    together: int | None = None,
) -> int:
    """Have slots of a device run images, or nothing; sign that and queue it. Returns the new sequence.

    The caller holds the device's row for update; its unit of work commits it all.

    Args:
        context: the server's parts.
        session: the unit of work.
        device: the device.
        paths: slot to image; several go together or not at all.
        now: the time.
        together: the rollout that says so.
    """
    held = {row.slot: row for row in session.scalars(select(DesiredSlot).where(DesiredSlot.device == device.id))}
    group = together if len(paths) > 1 else None
    for slot in paths:
        if slot in held and held[slot].together not in (None, group):
            _take_apart(session, device, held, held[slot].together, paths)
    for slot, path in paths.items():
        before = held[slot].path if slot in held else None
        if path is None:
            session.execute(delete(DesiredSlot).where(DesiredSlot.device == device.id, DesiredSlot.slot == slot))
        elif group is None or slot not in held or held[slot].together != group:  # else it is tried once more
            session.merge(DesiredSlot(device=device.id, slot=slot, path=path, together=group, before=before))
    session.flush()
    return sign_again(context, session, device, now)


def _take_apart(
    session: Session, device: Device, held: dict[str, DesiredSlot], rollout: int | None, taken: Collection[str]
) -> None:
    """Slots that went together part; where the device does not have all of it yet, each goes back to what it had."""
    state = session.scalar(
        select(RolloutTarget.state).where(RolloutTarget.rollout == rollout, RolloutTarget.device == device.id, FIRST)
    )
    for slot, row in list(held.items()):
        if row.together != rollout:
            continue
        row.together = None
        if state == "committed":
            continue
        if row.before is not None:
            row.path, row.before = row.before, None
        else:
            del held[slot]
            if slot not in taken:
                session.delete(row)
    session.flush()


def sign_again(context: Context, session: Session, device: Device, now: datetime) -> int:
    """Sign the desired state of a device with the next sequence and queue it. Returns the sequence."""
    images = desired_images(session, device.id)
    device.sequence += 1
    payload = context.signer.sign_assignment(device.id, device.sequence, images, now, _groups(session, device.id))
    session.merge(AssignmentRow(device=device.id, sequence=device.sequence, payload=payload, signed=now))
    outbox.put_assignment(session, device.id, payload, now)
    device.drifting = len(drift({slot: _ref(image) for slot, image in images.items()}, read_slots(device.slots)))
    return device.sequence


def _groups(session: Session, device: str) -> list[list[str]]:
    """Slots of a device that go together or not at all."""
    found: dict[int | None, list[str]] = {}
    query = select(DesiredSlot.together, DesiredSlot.slot).where(
        DesiredSlot.device == device, DesiredSlot.together.is_not(None)
    )
    for rollout, slot in session.execute(query):
        found.setdefault(rollout, []).append(slot)
    return [slots for slots in found.values() if len(slots) > 1]


def desired_images(session: Session, device: str) -> dict[str, SignedImage]:
    """What each slot of a device is to run."""
    query = (
        select(DesiredSlot.slot, Image).join(Image, Image.path == DesiredSlot.path).where(DesiredSlot.device == device)
    )
    return {slot: signed_image(image) for slot, image in session.execute(query)}


def signed_image(row: Image) -> SignedImage:
    """A stored image as the signer wants it."""
    image = ReleaseImage.model_validate_json(row.image)
    return SignedImage(path=row.path, digest=row.digest, manifest_bytes=row.manifest_bytes, image=image)


def update_drift(session: Session, device: Device, reported: list[SlotReport]) -> None:
    """Keep the count of drifting slots, by which the fleet page sorts out its devices."""
    columns = (DesiredSlot.slot, Image.model, Image.version, Image.counter, Image.digest)
    query = select(*columns).join(Image, Image.path == DesiredSlot.path).where(DesiredSlot.device == device.id)
    desired = {
        slot: ReleaseRef(model=model, version=version, counter=counter, digest=digest)
        for slot, model, version, counter, digest in session.execute(query)
    }
    device.drifting = len(drift(desired, reported))


def _ref(found: SignedImage) -> ReleaseRef:
    image = found.image
    return ReleaseRef(model=image.model, version=image.version, counter=image.counter, digest=found.digest)


def get_device(session: Session, device: str) -> Device:
    """A device's row, held for update.

    Raises:
        NotFound: it does not exist, or is revoked.
    """
    row = session.get(Device, device, with_for_update=True)
    if row is None or row.revoked is not None:
        raise no_device(session, device, "does not exist" if row is None else "is revoked")
    return row


def current_assignment(context: Context, device: str) -> bytes:
    """The signed bytes as published.

    Raises:
        NotFound: the device has none.
    """
    with context.store.read() as session:
        row = session.get(AssignmentRow, device)
        if row is None:
            raise NotFound(f"assignment of device {device}", "does not exist", "Roll a release out to it")
        return row.payload


def unassign(context: Context, device: str, slot: str) -> None:
    """Empty a slot: a new assignment without it.

    Raises:
        NotFound: the device or the slot does not exist.
        Conflict: a release in another slot needs this one.
    """
    now = context.clock()
    with context.store.write() as session:
        row = get_device(session, device)
        if session.get(DesiredSlot, (device, slot)) is None:
            raise NotFound(f"slot {slot} of device {device}", "has nothing assigned")
        _check_not_needed(session, device, slot)
        settle_slot(session, device, slot, f"slot {slot} of device {device}", "was emptied")
        assign_slots(context, session, row, {slot: None}, now)
        context.record(session, "unassign", device, slot)
        context.announce(session, device_topic(device), FLEET, ROLLOUTS)
    context.wake()


def _check_not_needed(session: Session, device: str, slot: str) -> None:
    needs = {other: found.image.needs.slots for other, found in desired_images(session, device).items()}
    others = needed_by(needs, slot)
    if others:
        reason = f"is needed by slot {others[0]}"
        raise Conflict(f"slot {slot} of device {device}", reason, f"Empty slot {others[0]} first")


def retry(context: Context, device: str, slot: str, digest: str) -> None:
    """Have a device forget that it rejected an image, and send it its assignment anew.

    Raises:
        NotFound: the device does not exist.
    """
    now = context.clock()
    with context.store.write() as session:
        row = get_device(session, device)
        queue_retry(context, session, row, slot, digest, now)
        context.record(session, "retry", device, f"{slot} {digest}")
        context.announce(session, device_topic(device), FLEET)
    context.wake()


def queue_retry(context: Context, session: Session, device: Device, slot: str, digest: str, now: datetime) -> int:
    """The retry command, then the assignment under a new sequence: in this order on the wire."""
    outbox.put_command(session, device.id, Retry(slot=slot, digest=digest), now)
    return sign_again(context, session, device, now)


def poll_now(context: Context, device: str) -> None:
    """Ask a device to fetch its assignment over HTTPS.

    Raises:
        NotFound: the device does not exist.
    """
    now = context.clock()
    with context.store.write() as session:
        get_device(session, device)
        outbox.put_command(session, device, PollNow(), now)
        context.record(session, "poll", device)
    context.wake()


def sign_due(context: Context, limit: int = 200) -> int:
    """Sign assignments again that have lived half of their life; how many. Bounded, so a tick stays short."""
    now = context.clock()
    due = now - timedelta(days=ASSIGNMENT_DAYS / 2)
    query = (
        select(Device)
        .join(AssignmentRow, AssignmentRow.device == Device.id)
        .where(AssignmentRow.signed < due, Device.revoked.is_(None))
        .order_by(Device.id)  # rows are locked in the order that rollouts lock them
        .limit(limit)
        .with_for_update(of=Device)
    )
    with context.store.write() as session:
        devices = list(session.scalars(query))
        for device in devices:
            sign_again(context, session, device, now)
    if devices:
        context.wake()
    return len(devices)
