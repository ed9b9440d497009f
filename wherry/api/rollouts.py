"""Rollouts: who gets which releases, and how the devices take them; the history of deployments."""

from __future__ import annotations

from datetime import datetime
from typing import Literal, Self

from pydantic import Field, model_validator

from wherry.agent_release import AGENT_MODEL, AGENT_SLOT
from wherry.api.base import DEFAULT_SLOT, ApiModel, Page
from wherry.identity import DeviceId, ModelName, ModelVersion, ProfileName, SlotName
from wherry.messages import DeploymentReport, Problem


class Selector(ApiModel):
    """Which devices: all conditions given must hold. Empty selects nothing unless `everything`."""

    ids: list[DeviceId] = []
    profiles: list[ProfileName] = []
    labels: dict[str, str] = {}
    everything: bool = False


class RolloutPart(ApiModel):
    """A release, and the slot that it goes to."""

    model: ModelName
    version: ModelVersion
    slot: SlotName = DEFAULT_SLOT

    @property
    def label(self) -> str:
        """The release as people say it: `vision 2`."""
        return f"{self.model} {self.version}"


class RolloutRequest(ApiModel):
    """`POST /v1/rollouts`: one release by `model`, `version`, `slot`, or several by `together`.

    Attributes:
        slot: a release of the agent goes into its own slot unless another is named.
        together: releases for different slots of each device, which takes all of them or none.
    """

    model: ModelName | None = None
    version: ModelVersion | None = None
    slot: SlotName = DEFAULT_SLOT
    together: list[RolloutPart] = Field(default=[], max_length=16)
    selector: Selector

    @model_validator(mode="after")
    def _one_or_several(self) -> Self:
        slots = {part.slot for part in self.together}
        if not self.together and (not self.model or not self.version):
            raise ValueError("a model and its version are needed")
        if self.together and (self.model or self.version or not 1 < len(slots) == len(self.together)):
            raise ValueError("releases that go together are named there alone, two at least, for different slots")
        if AGENT_SLOT in slots or any(part.model == AGENT_MODEL for part in self.together):
            raise ValueError("a release of the agent goes together with no other")
        if self.model == AGENT_MODEL and self.slot == DEFAULT_SLOT:
            self.slot = AGENT_SLOT
        return self

    @property
    def parts(self) -> list[RolloutPart]:
        """The releases with their slots, in the order given."""
        if self.together:
            return self.together
        return [RolloutPart(model=self.model or "", version=self.version or "", slot=self.slot)]


class RolloutPreview(ApiModel):
    """`POST /v1/rollouts/preview`: what a rollout would do; nothing is changed.

    Attributes:
        devices, fit: that the selector chooses; of these, that can run the release.
        notes: sentences about what may not be meant: another model replaced, a slot made, devices that will refuse.
        misfits: sentences about the devices that cannot run it.
    """

    devices: int
    fit: int
    notes: list[str] = []
    misfits: list[str] = []


TargetState = Literal["pending", "assigned", "running", "committed", "rejected", "refused", "misfit", "superseded"]
RolloutState = Literal["running", "paused", "aborted", "completed", "failed"]


class TargetPartView(ApiModel):
    """One slot of a device in a rollout of several releases."""

    slot: SlotName
    state: TargetState
    deployment: DeploymentReport | None = None
    problem: Problem | None = None


class RolloutTargetView(ApiModel):
    """One device in a rollout.

    Attributes:
        state: of the whole device. deployment, problem: of the slot that tells most.
        parts: each slot, when the rollout has several releases.
    """

    device: DeviceId
    state: TargetState
    online: bool = False
    sequence: int = 0
    deployment: DeploymentReport | None = None
    problem: Problem | None = None
    parts: list[TargetPartView] = []


class RolloutView(ApiModel):
    """A rollout with its devices.

    Attributes:
        model, version, slot: of the first release; `together` has all of them when there are several.
        counts: the number of devices by state; each is counted once.
        targets: a page of the devices; none in lists of rollouts.
        next: `after` of the page that follows.
    """

    id: int
    model: ModelName
    version: ModelVersion
    slot: SlotName
    together: list[RolloutPart] = []
    selector: Selector
    state: RolloutState
    reason: str = ""
    created: datetime
    ended: datetime | None = None
    counts: dict[str, int] = {}
    targets: list[RolloutTargetView] = []
    next: str | None = None

    @property
    def parts(self) -> list[RolloutPart]:
        """The releases with their slots."""
        return self.together or [RolloutPart(model=self.model, version=self.version, slot=self.slot)]

    @property
    def label(self) -> str:
        """What it brings, as people say it: `vision 2`, `vision 2 + text 3`."""
        return " + ".join(part.label for part in self.parts)


class RolloutPage(Page):
    """`GET /v1/rollouts?after=&limit=`; newest first, without targets."""

    items: list[RolloutView]


class DeploymentView(ApiModel):
    """A deployment as the server's history has it."""

    device: DeviceId
    deployment: DeploymentReport


class DeploymentPage(Page):
    """`GET /v1/deployments?device=&after=&limit=`; newest first.

    Attributes:
        unreadable: deployments of this page that are left out, because what is stored of them cannot be read.
    """

    items: list[DeploymentView]
    unreadable: int = 0
