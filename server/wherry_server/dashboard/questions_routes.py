"""Questions to a device from its page: logs of a slot, and a diagnosis. Asked over MQTT, answered or not in words."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from wherry.api.devices import LogsQuestion
from wherry.errors import WherryError
from wherry.identity import DeviceId, SlotName
from wherry_server.dashboard.fleet import slot_names
from wherry_server.dashboard.frame import FrameDep, VisitorDep, page_router
from wherry_server.services.questions import ask_diagnose, ask_logs
from wherry_server.store.device_views import device_view

_TONES = {"ok": "good", "warning": "warn", "error": "bad"}
DevicePath = Annotated[DeviceId, Path()]


def question_routes() -> APIRouter:
    """`/devices/{id}/logs`, `/devices/{id}/diagnose`: pages of their own, and parts of the device page."""
    router = page_router()
    router.add_api_route("/devices/{device}/logs", _logs, methods=["GET"])
    router.add_api_route("/devices/{device}/diagnose", _diagnose, methods=["GET"])
    return router


async def _logs(
    request: Request,
    frame: FrameDep,
    visitor: VisitorDep,
    device: DevicePath,
    slot: Annotated[SlotName, Query()],
    lines: Annotated[int, Query(ge=1, le=500)] = 100,
) -> Response:
    answer, problem = None, None
    try:
        answer = await ask_logs(frame.context.acting_as(visitor.name), device, LogsQuestion(slot=slot, lines=lines))
    except WherryError as error:
        problem = error.as_dict()
    return await _answer(request, frame, device, f"Logs of slot {slot}", logs=answer, slot=slot, problem=problem)


async def _diagnose(request: Request, frame: FrameDep, visitor: VisitorDep, device: DevicePath) -> Response:
    answer, problem = None, None
    try:
        answer = await ask_diagnose(frame.context.acting_as(visitor.name), device)
    except WherryError as error:
        problem = error.as_dict()
    return await _answer(request, frame, device, "Diagnosis", diagnosis=answer, problem=problem)


async def _answer(request: Request, frame: FrameDep, device: str, title: str, **found: Any) -> Response:
    values = {"logs": None, "diagnosis": None, "slot": "", "problem": None} | found
    return await run_in_threadpool(_render, request, frame, device, title, values)


def _render(request: Request, frame: FrameDep, device: str, title: str, values: dict[str, Any]) -> Response:
    with frame.context.store.read() as session:
        slots = slot_names(device_view(session, device))
    now = frame.context.clock()
    return frame.render(
        request,
        "questions.html",
        nav="fleet",
        device=device,
        slots=slots,
        title=title,
        tones=_TONES,
        clock=f"{now:%H:%M:%S}",
        **values,
    )
