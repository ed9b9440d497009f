"""What a rollout would do, before it is created: which devices it is for, and which of them cannot run the release."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from wherry.api import RolloutRequest
from wherry.release import ReleaseImage
from wherry_server.domain.selector import Candidate, misfit
from wherry_server.services.context import Context
from wherry_server.services.forecast import forecast
from wherry_server.services.rollouts import check_request, release_images, select_devices

SHOWN = 5


@dataclass(frozen=True, slots=True)
class Misfits:
    """Devices that cannot run the release, for one reason; `devices` names the first of them."""

    reason: str
    fix: str
    count: int
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Preview:
    """The devices of a rollout to be.

    Attributes:
        profiles: devices that fit, by profile.
        notes: what the operator may not have meant, see `forecast`.
    """

    devices: int
    fit: int
    profiles: dict[str, int]
    misfits: tuple[Misfits, ...]
    notes: tuple[str, ...] = ()


def preview_rollout(context: Context, request: RolloutRequest) -> Preview:
    """Choose devices and compare them with the release, as `create_rollout` would now; nothing is changed.

    Raises:
        NotFound: no such release, or a device that the selector names.
        InputError: the request makes no sense, or its selector chooses no device.
    """
    check_request(request)
    with context.store.read() as session:
        images = release_images(session, request.model, request.version)
        signed = {profile: ReleaseImage.model_validate_json(image.image) for profile, image in images.items()}
        devices = select_devices(session, request.selector)
        found = _compare(context, request, devices, signed)
        fitting = {device.id: device.profile for device in devices if device.profile in found.profiles}
        return replace(found, notes=tuple(forecast(session, request, images, fitting)))


def _compare(
    context: Context, request: RolloutRequest, devices: Sequence[Candidate], signed: Mapping[str, ReleaseImage]
) -> Preview:
    name = f"{request.model} {request.version}"
    by_profile: dict[str, list[Candidate]] = {}
    for device in devices:
        by_profile.setdefault(device.profile, []).append(device)
    fitting: Counter[str] = Counter()
    troubled: dict[tuple[str, str], list[str]] = {}
    for profile, members in by_profile.items():
        problem = misfit(members[0], name, signed, context.profiles)  # the same for all devices of a profile
        if problem is None:
            fitting[profile] = len(members)
        else:
            names = troubled.setdefault((problem.reason, problem.fix), [])
            names.extend(device.id for device in members)
    ordered = sorted(troubled.items(), key=lambda item: -len(item[1]))
    return Preview(
        devices=len(devices),
        fit=fitting.total(),
        profiles=dict(fitting.most_common()),
        misfits=tuple(Misfits(*key, len(names), tuple(names[:SHOWN])) for key, names in ordered),
    )
