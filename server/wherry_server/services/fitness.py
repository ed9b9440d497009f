"""Which devices can take what a rollout brings: hardware, other slots that a release needs, what the agent knows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from wherry.agent_release import AGENT_SLOT
from wherry.api.rollouts import RolloutPart
from wherry.errors import FitError
from wherry.messages import Problem
from wherry.release import ReleaseImage
from wherry.slot_needs import circle
from wherry_server.domain.selector import Candidate, misfit
from wherry_server.services.context import Context
from wherry_server.store.missing import no_release
from wherry_server.store.schema import DesiredSlot, Device, Image


@dataclass(frozen=True, slots=True)
class Part:
    """A release of a rollout with its newest image for each profile.

    Attributes:
        signed: what the owner signed of them.
    """

    part: RolloutPart
    images: Mapping[str, Image]
    signed: Mapping[str, ReleaseImage]

    @property
    def slot(self) -> str:
        """Where it goes."""
        return self.part.slot


def load_parts(session: Session, parts: Sequence[RolloutPart]) -> list[Part]:
    """The releases of a rollout.

    Raises:
        NotFound: one of them does not exist.
    """
    return [_load(session, part) for part in parts]


def _load(session: Session, part: RolloutPart) -> Part:
    query = select(Image).where(Image.model == part.model, Image.version == part.version, Image.listed)
    images = {image.profile: image for image in session.scalars(query.order_by(Image.counter))}
    if not images:
        raise no_release(session, part.model, part.version)
    signed = {profile: ReleaseImage.model_validate_json(image.image) for profile, image in images.items()}
    return Part(part, images, signed)


def unfit(
    context: Context, session: Session, parts: Sequence[Part], devices: Sequence[Candidate]
) -> dict[str, Problem]:
    """Devices that cannot take all of it, with the reason, which names the release."""
    found: dict[str, Problem] = {}
    by_profile: dict[str, Problem | None] = {}
    for device in devices:
        if device.profile not in by_profile:  # the same for all devices of a profile but for the name
            by_profile[device.profile] = _unfit_profile(context, parts, device)
        if by_profile[device.profile]:
            problem = _unfit_profile(context, parts, device)
            found |= {device.id: problem} if problem else {}
    rest = [device for device in devices if device.id not in found]
    found |= dict(_unable(session, parts, rest))
    rest = [device for device in rest if device.id not in found]
    return found | dict(_needy(session, parts, rest))


def _unfit_profile(context: Context, parts: Sequence[Part], device: Candidate) -> Problem | None:
    problems = (misfit(device, part.part.label, part.signed, context.profiles) for part in parts)
    return next((problem for problem in problems if problem), None)


def _unable(session: Session, parts: Sequence[Part], devices: Sequence[Candidate]) -> Iterator[tuple[str, Problem]]:
    """Devices whose agent would ignore what this asks for, or refuse the whole assignment for it."""
    asks = {"together": "several slots together"} if len(parts) > 1 else {}
    if any(image.needs.slots for part in parts for image in part.signed.values()):
        asks["needs.slots"] = "releases that need other slots"
    fix = "Update the agent of this device"
    if any(part.slot == AGENT_SLOT for part in parts):
        asks["agent"] = "releases of the agent"
        fix = "Run install.sh on this device once; releases of the agent reach it from then on"
    if not asks:
        return
    chosen = {device.id for device in devices}
    query = select(Device.id, Device.agent_version, Device.understands).where(Device.report_number >= 0)
    for device, version, understands in session.execute(query):
        lacking = [words for name, words in asks.items() if name not in json.loads(understands)]
        if device in chosen and lacking:
            reason = f"its agent ({version or 'of unknown version'}) does not know {' and '.join(lacking)}"
            yield device, _problem(f"device {device}", reason, fix)


def _needy(session: Session, parts: Sequence[Part], devices: Sequence[Candidate]) -> Iterator[tuple[str, Problem]]:
    """Devices where a slot that a release needs serves nothing, or needs it in turn."""
    if not any(image.needs.slots for part in parts for image in part.signed.values()):
        return
    chosen = {device.id for device in devices}
    desired: dict[str, dict[str, list[str]]] = {}
    used = select(Image.path, Image.image).where(Image.path.in_(select(DesiredSlot.path)))
    needs = {path: ReleaseImage.model_validate_json(image).needs.slots for path, image in session.execute(used)}
    for device, slot, path in session.execute(select(DesiredSlot.device, DesiredSlot.slot, DesiredSlot.path)):
        if device in chosen:
            desired.setdefault(device, {})[slot] = needs[path]
    for candidate in devices:
        problem = _need(parts, candidate, desired.get(candidate.id, {}))
        if problem:
            yield candidate.id, problem


def _need(parts: Sequence[Part], device: Candidate, desired: Mapping[str, list[str]]) -> Problem | None:
    wanted = dict(desired) | {part.slot: part.signed[device.profile].needs.slots for part in parts}
    for part in parts:
        thing = f"{part.part.label} on {device.id}"
        missing = sorted(set(wanted[part.slot]) - desired.keys() - {part.slot})
        if missing:
            reason = f"needs slot {missing[0]}, which serves nothing there yet"
            return _problem(thing, reason, f"Roll a release out to slot {missing[0]} first")
        way = circle(wanted, part.slot)
        if way:
            reason = f"needs itself: {' needs '.join(f'slot {slot}' for slot in way)}"
            return _problem(thing, reason, "Package one of them without --needs-slot")
    return None


def _problem(thing: str, reason: str, fix: str) -> Problem:
    return Problem.model_validate(FitError(thing, reason, fix).as_dict())
