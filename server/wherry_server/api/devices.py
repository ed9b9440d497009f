"""Routes of devices: enrolment, twins, assignments."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel

from wherry.api.devices import (
    DeviceChange,
    DevicePage,
    DeviceView,
    DiagnoseAnswer,
    EnrolReply,
    EnrolRequest,
    LogsAnswer,
    LogsQuestion,
    RenewRequest,
    TokenCreated,
    TokenRequest,
)
from wherry.errors import NotAllowed
from wherry.identity import Digest, ModelName, ModelVersion, SlotName
from wherry_server.api.auth import ActingDep, AnyoneDep, ContextDep, DeviceDep, NeedsOperator
from wherry_server.api.params import After, DevicePath, Limit, label_conditions
from wherry_server.services import assignments, enrolment, questions, removal
from wherry_server.services.devices import change_labels
from wherry_server.services.enrolment import Caller
from wherry_server.store import device_views
from wherry_server.store.device_views import DeviceState

router = APIRouter(prefix="/v1", tags=["devices"])
enrolment_router = APIRouter(prefix="/v1", tags=["enrolment"])


class RetryRequest(BaseModel):
    """`POST /v1/devices/{id}/retry`: which rejected image to try again."""

    slot: SlotName
    digest: Digest


@enrolment_router.post("/tokens", summary="Make a single-use join token")
def create_token(request: TokenRequest, context: ActingDep) -> TokenCreated:
    """The secret is shown once; the server keeps its hash."""
    return enrolment.create_enrol_token(context, request)


@enrolment_router.post("/enrol", summary="Turn a token and a CSR into a certificate")
def enrol(request: EnrolRequest, context: ContextDep) -> EnrolReply:
    """Called by a device; the token's secret is the authentication. Safe to repeat with the same key."""
    return enrolment.enrol(context, request)


@enrolment_router.post("/renew", summary="Certificate for a device's next key")
def renew(request: RenewRequest, caller: DeviceDep, context: ContextDep) -> EnrolReply:
    """Called by a device, signed with its present key; an expired certificate does for some weeks."""
    return enrolment.renew(context, caller, request)


@enrolment_router.get("/ca", summary="The server's CA certificate")
def certificate_authority(context: ContextDep) -> Response:
    """PEM. Compare its SHA-256 with the one in the join token."""
    return Response(context.authority.ca_pem, media_type="application/x-pem-file")


@router.get("/devices", summary="List devices", dependencies=[NeedsOperator])
def list_devices(
    context: ContextDep,
    after: After = "",
    limit: Limit = 100,
    profile: Annotated[str | None, Query(max_length=64)] = None,
    label: Annotated[list[str], Query(max_length=20, description="NAME=VALUE; all given must hold")] = [],  # noqa: B006
    online: bool | None = None,
    state: DeviceState | None = None,
    search: Annotated[str, Query(max_length=64, description="Part of the id")] = "",
    model: Annotated[ModelName | None, Query(description="What a slot serves now")] = None,
    version: Annotated[ModelVersion | None, Query(description="What a slot serves now")] = None,
) -> DevicePage:
    """By id, a page at a time; all conditions given must hold."""
    labels = label_conditions(label)
    wanted = device_views.DeviceFilter(profile, online, labels, state, search, model, version)
    with context.store.read() as session:
        return device_views.device_page(session, after, limit, wanted)


@router.get("/devices/{device}", summary="One device", dependencies=[NeedsOperator])
def get_device(device: DevicePath, context: ContextDep) -> DeviceView:
    """What is desired of it, what it reports, and where they differ."""
    with context.store.read() as session:
        return device_views.device_view(session, device)


@router.patch("/devices/{device}", summary="Replace a device's labels")
def patch_device(device: DevicePath, change: DeviceChange, context: ActingDep) -> DeviceView:
    """The labels given replace all that it had."""
    change_labels(context, device, change.labels)
    return get_device(device, context)


@router.delete("/devices/{device}", summary="Revoke a device", status_code=204)
def revoke_device(device: DevicePath, context: ActingDep) -> None:
    """No renewal, no signed requests, a deny rule at the broker. A new token brings it back."""
    enrolment.revoke(context, device)


@router.post("/devices/{device}/remove", summary="Remove a device that is gone for good", status_code=204)
def remove_device(device: DevicePath, context: ActingDep, force: bool = False) -> None:
    """Its keys, its history and what the broker retains go; the audit trail stays. 409 while it is online."""
    removal.remove(context, device, force)


@router.get("/devices/{device}/assignment", summary="A device's signed assignment")
def get_assignment(device: DevicePath, caller: AnyoneDep, context: ContextDep) -> Response:
    """The bytes as published over MQTT; for the device itself and for operators."""
    if isinstance(caller, Caller) and caller.device != device:
        raise NotAllowed(f"assignment of device {device}", f"is not for device {caller.device}")
    return Response(assignments.current_assignment(context, device), media_type="application/json")


@router.post("/devices/{device}/poll", summary="Have a device poll now", status_code=202)
def poll_device(device: DevicePath, context: ActingDep) -> None:
    """Asks over MQTT; the device fetches its assignment over HTTPS."""
    assignments.poll_now(context, device)


@router.post("/devices/{device}/retry", summary="Try a rejected image again", status_code=202)
def retry_device(device: DevicePath, request: RetryRequest, context: ActingDep) -> None:
    """The device forgets the rejection and gets its assignment anew."""
    assignments.retry(context, device, request.slot, request.digest)


@router.delete("/devices/{device}/slots/{slot}", summary="Empty a slot", status_code=204)
def unassign_slot(device: DevicePath, slot: SlotName, context: ActingDep) -> None:
    """A new assignment without the slot; the device stops and removes what runs there."""
    assignments.unassign(context, device, slot)


@router.post("/devices/{device}/logs", summary="What a slot's container wrote")
async def ask_logs(device: DevicePath, question: LogsQuestion, context: ActingDep) -> LogsAnswer:
    """Asks the device and waits some seconds; 504 when it says nothing. To follow, ask on with `since`."""
    return await questions.ask_logs(context, device, question)


@router.post("/devices/{device}/diagnose", summary="Have a device examine itself")
async def ask_diagnose(device: DevicePath, context: ActingDep) -> DiagnoseAnswer:
    """Asks the device and waits some seconds; 504 when it says nothing."""
    return await questions.ask_diagnose(context, device)
