"""Routes of rollouts and deployments."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from fastapi import APIRouter, Path, Query

from wherry.api.rollouts import (
    DeploymentPage,
    RolloutPage,
    RolloutPreview,
    RolloutRequest,
    RolloutState,
    RolloutView,
    TargetState,
)
from wherry.identity import DeviceId, ModelName, ModelVersion, SlotName
from wherry.messages import Phase
from wherry_server.api.auth import ActingDep, ContextDep, NeedsOperator
from wherry_server.api.params import After, Limit, number_after
from wherry_server.services import launch, rollouts
from wherry_server.services.preview import preview_rollout
from wherry_server.store import rollout_views

router = APIRouter(prefix="/v1", tags=["rollouts"], dependencies=[NeedsOperator])
RolloutId = Annotated[int, Path(ge=1, le=2**53)]


class Verb(StrEnum):
    """What an operator can do with a rollout."""

    START = "start"
    PAUSE = "pause"
    ABORT = "abort"
    RETRY = "retry"


@router.get("/rollouts", summary="List rollouts")
def list_rollouts(
    context: ContextDep,
    after: After = "",
    limit: Limit = 50,
    state: RolloutState | None = None,
    model: Annotated[ModelName | None, Query()] = None,
) -> RolloutPage:
    """Newest first, with the number of devices by state."""
    with context.store.read() as session:
        return rollout_views.rollout_page(session, number_after(after), limit, state, model)


@router.post("/rollouts", summary="Roll a release out", status_code=201)
def create_rollout(request: RolloutRequest, context: ActingDep) -> RolloutView:
    """To the devices that the selector chooses now. A newer rollout takes over the slot from older ones."""
    return get_rollout(launch.create_rollout(context, request), context)


@router.post("/rollouts/preview", summary="What a rollout would do")
def preview(request: RolloutRequest, context: ContextDep) -> RolloutPreview:
    """What it would replace, make or be refused by; nothing is changed."""
    found = preview_rollout(context, request)
    misfits = [one.sentence for one in found.misfits]
    return RolloutPreview(devices=found.devices, fit=found.fit, notes=list(found.notes), misfits=misfits)


@router.get("/rollouts/{rollout}", summary="One rollout")
def get_rollout(
    rollout: RolloutId,
    context: ContextDep,
    after: After = "",
    limit: Limit = 100,
    state: TargetState | None = None,
) -> RolloutView:
    """With a page of its devices by id, their deployments and the reasons where they failed."""
    with context.store.read() as session:
        return rollout_views.rollout_view(session, rollout, after, limit, state)


@router.post("/rollouts/{rollout}/{verb}", summary="Start, pause, abort or retry a rollout")
def change_rollout(rollout: RolloutId, verb: Verb, context: ActingDep) -> RolloutView:
    """Pause and abort leave devices alone that have their assignment; retry sends failed devices once more."""
    rollouts.change_rollout(context, rollout, verb.value)
    return get_rollout(rollout, context)


@router.get("/deployments", summary="List deployments")
def list_deployments(
    context: ContextDep,
    device: Annotated[DeviceId | None, Query()] = None,
    after: After = "",
    limit: Limit = 50,
    model: Annotated[ModelName | None, Query()] = None,
    version: Annotated[ModelVersion | None, Query()] = None,
    slot: Annotated[SlotName | None, Query()] = None,
    phase: Phase | None = None,
) -> DeploymentPage:
    """The latest change first, each with what its gates found."""
    with context.store.read() as session:
        return rollout_views.deployment_page(session, device, after, limit, model, version, slot, phase)
