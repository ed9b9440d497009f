"""The audit trail: who did what, when, to what."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from wherry_server.dashboard.addresses import address, number_after
from wherry_server.dashboard.audit_rows import audit_row, says, thing_kind
from wherry_server.dashboard.frame import FrameDep, VisitorDep, page_router
from wherry_server.store.audit_views import AuditFilter, audit_actions, audit_page

PAGE = 50
Text = Annotated[str, Query(max_length=200)]


def audit_routes() -> APIRouter:
    """`/audit`."""
    router = page_router()
    router.add_api_route("/audit", _audit, methods=["GET"])
    return router


def _audit(
    request: Request,
    _visitor: VisitorDep,
    frame: FrameDep,
    after: Text = "",
    action: Text = "",
    actor: Text = "",
    thing: Text = "",
) -> Response:
    now = frame.context.clock()
    wanted = AuditFilter(action=action or None, thing=thing or None, actor=actor or None)
    with frame.context.store.read() as session:
        page = audit_page(session, wanted, number_after(after), PAGE)
        actions = audit_actions(session)
    filters = {"action": action, "actor": actor, "thing": thing}
    return frame.render(
        request,
        "audit.html",
        nav="audit",
        entries=[audit_row(entry, now) for entry in page.items],
        actions=[(name, f"{says(name)} {thing_kind(name)}".strip()) for name in actions],
        filters=filters,
        filtered=any(filters.values()),
        first=address("/audit", filters) if after else "",
        next=address("/audit", filters | {"after": page.next}) if page.next else "",
    )
