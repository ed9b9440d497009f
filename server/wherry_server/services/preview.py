"""What a rollout would do, before it is created: which devices it is for, and which of them cannot run the release."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from wherry.api.rollouts import RolloutRequest
from wherry.messages import Problem
from wherry_server.domain.selector import Candidate
from wherry_server.services.context import Context
from wherry_server.services.fitness import load_parts, unfit
from wherry_server.services.forecast import forecast
from wherry_server.services.launch import check_request, select_devices

SHOWN = 5


@dataclass(frozen=True, slots=True)
class Misfits:
    """Devices that cannot run the release, for one reason; `devices` names the first of them."""

    reason: str
    fix: str
    count: int
    devices: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """`2 of them (cam-1, cam-2) cannot take it: …`."""
        names = ", ".join(self.devices) + (", …" if self.count > len(self.devices) else "")
        return f"{self.count:,} of them ({names}) cannot take it: {self.reason}. {self.fix}."


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
        parts = load_parts(session, request.parts)
        devices = select_devices(session, request.selector)
        problems = unfit(context, session, parts, devices)
        fitting = {device.id: device.profile for device in devices if device.id not in problems}
        notes = [note for part in parts for note in forecast(session, part.part, part.images, fitting)]
        return replace(_compare(devices, problems, several=len(parts) > 1), notes=tuple(notes))


def _compare(devices: Sequence[Candidate], problems: Mapping[str, Problem], several: bool) -> Preview:
    fitting = Counter(device.profile for device in devices if device.id not in problems)
    troubled: dict[tuple[str, str], list[str]] = {}
    for device, problem in sorted(problems.items()):
        release = problem.thing.removesuffix(f" on {device}")
        reason = f"{release} {problem.reason}" if several and release != problem.thing else problem.reason
        troubled.setdefault((reason, problem.fix), []).append(device)
    ordered = sorted(troubled.items(), key=lambda item: -len(item[1]))
    return Preview(
        devices=len(devices),
        fit=fitting.total(),
        profiles=dict(fitting.most_common()),
        misfits=tuple(Misfits(*key, len(names), tuple(names[:SHOWN])) for key, names in ordered),
    )
