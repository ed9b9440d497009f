"""What a rollout would do to what serves now, in sentences: what it replaces, new slots, devices that will refuse."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from sqlalchemy import select
from sqlalchemy.orm import Session

from wherry.agent_release import AGENT_SLOT
from wherry.api.base import DEFAULT_SLOT
from wherry.api.rollouts import RolloutPart
from wherry_server.store.schema import Deployment, Image, ServingSlot

GO_BACK = (
    "sign it again with `wherry release publish PACKAGE --again` (packages are kept in "
    "$WHERRY_HOME/packages/MODEL-VERSION), then start the rollout"
)


def forecast(session: Session, part: RolloutPart, images: Mapping[str, Image], devices: Mapping[str, str]) -> list[str]:
    """Sentences about what an operator may not have meant; empty when there is nothing to say.

    Args:
        session: reads what serves, and what was deployed before.
        part: the release and its slot.
        images: the release's newest image of each profile.
        devices: that the release fits, id to profile.
    """
    columns = (ServingSlot.device, ServingSlot.slot, ServingSlot.model, ServingSlot.version)
    serving = [
        (slot, model, version)
        for device, slot, model, version in session.execute(select(*columns))
        if device in devices
    ]
    holders = set(session.scalars(select(ServingSlot.device).where(ServingSlot.slot == part.slot)))
    replaced = Counter(
        f"{model} {version}" for slot, model, version in serving if slot == part.slot and model != part.model
    )
    found = [f"It replaces {name} in slot {part.slot} on {_devices(count)}." for name, count in replaced.most_common()]
    fresh = sum(device not in holders for device in devices)
    if fresh and part.slot not in (DEFAULT_SLOT, AGENT_SLOT):
        others = sorted({slot for slot, _, _ in serving} - {part.slot})
        beside = f"; beside {', '.join(others)}" if others else ""
        found.append(f"Slot {part.slot} is new on {_devices(fresh)}{beside}.")
    ahead = _ahead(session, part, images, devices)
    if ahead:
        found.append(
            f"{_devices(len(ahead))} {'has' if len(ahead) == 1 else 'have'} had a release of {part.model} that was "
            f"signed later and will refuse {part.version}. To go back to it, {GO_BACK}."
        )
    return found


def _ahead(session: Session, part: RolloutPart, images: Mapping[str, Image], devices: Mapping[str, str]) -> set[str]:
    """Devices that have had a release with a higher counter, and so refuse this one."""
    columns = (ServingSlot.device, ServingSlot.slot, ServingSlot.digest, ServingSlot.counter)
    now = session.execute(select(*columns).where(ServingSlot.model == part.model)).all()
    content = {
        device
        for device, slot, digest, _ in now
        if device in devices and slot == part.slot and digest == images[devices[device]].digest
    }
    newer = {device for device, _, _, counter in now if device in devices and counter > images[devices[device]].counter}
    versions = _later_versions(session, part.model, images)
    before = select(Deployment.device, Deployment.version).where(
        Deployment.model == part.model, Deployment.version.in_({version for _, version in versions})
    )
    newer |= {device for device, version in session.execute(before) if (devices.get(device), version) in versions}
    return newer - content


def _later_versions(session: Session, model: str, images: Mapping[str, Image]) -> Collection[tuple[str | None, str]]:
    """(profile, version) of a model's images that were all signed later than these."""
    first: dict[tuple[str | None, str], int] = {}
    query = select(Image.profile, Image.version, Image.counter).where(Image.model == model)
    for profile, version, counter in session.execute(query):
        first[profile, version] = min(counter, first.get((profile, version), counter))
    return {key for key, counter in first.items() if key[0] in images and counter > images[str(key[0])].counter}


def _devices(count: int) -> str:
    return f"{count:,} {'device' if count == 1 else 'devices'}"
