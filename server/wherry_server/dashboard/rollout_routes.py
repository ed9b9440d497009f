"""Rollouts: the list, one rollout with its devices, and what an operator does about it."""

from __future__ import annotations

from typing import Annotated, get_args

from fastapi import APIRouter, Query, Request, Response

from wherry.api.rollouts import RolloutState
from wherry.errors import InputError
from wherry_server.dashboard import rollout_rows as rows
from wherry_server.dashboard.addresses import address, number_after
from wherry_server.dashboard.frame import ActingDep, FormDep, FrameDep, VisitorDep, done, page_router
from wherry_server.services.rollouts import change_rollout
from wherry_server.store import rollout_views as views

LIST_PAGE = 25
DEVICE_PAGE = 50
SEARCHED = 12
"""Devices that one finds without a search."""
EXAMINED = 200
"""Devices that failed whose reasons are read for the summary; their number is in the counts anyway."""
_VERBS = ("start", "pause", "abort", "retry")
Text = Annotated[str, Query(max_length=100)]


def rollout_routes() -> APIRouter:
    """`/rollouts` and `/rollouts/ID`."""
    router = page_router()
    router.add_api_route("/rollouts", _list, methods=["GET"])
    router.add_api_route("/rollouts/{rollout}", _one, methods=["GET"])
    router.add_api_route("/rollouts/{rollout}/change", _change, methods=["POST"])
    return router


def _list(
    request: Request, _visitor: VisitorDep, frame: FrameDep, after: Text = "", state: Text = "", model: Text = ""
) -> Response:
    now = frame.context.clock()
    state = state if state in get_args(RolloutState) else ""
    with frame.context.store.read() as session:
        page = views.rollout_page(session, number_after(after), LIST_PAGE, state or None, model or None)
    filters = {"state": state, "model": model}
    return frame.render(
        request,
        "rollouts.html",
        nav="rollouts",
        rollouts=[rows.summary(view, now) for view in page.items],
        states=[("All", address("/rollouts", filters | {"state": ""}), not state)]
        + [
            (name.capitalize(), address("/rollouts", filters | {"state": name}), name == state)
            for name in get_args(RolloutState)
        ],
        model=model,
        state=state,
        first=address("/rollouts", filters) if after else "",
        next=address("/rollouts", filters | {"after": page.next}) if page.next else "",
    )


def _one(
    request: Request,
    _visitor: VisitorDep,
    frame: FrameDep,
    rollout: int,
    after: Text = "",
    state: Text = "",
    search: Text = "",
) -> Response:
    now = frame.context.clock()
    state = state if state in rows.STATES else ""
    with frame.context.store.read() as session:
        view = views.rollout_head(session, rollout)
        listing = views.rollout_targets(session, rollout, state or None, after, DEVICE_PAGE, search)
        troubled = views.troubled_targets(session, [rollout], EXAMINED)[rollout]
    filters = {"state": state, "search": search}
    here = f"/rollouts/{rollout}"
    return frame.render(
        request,
        "rollout.html",
        nav="rollouts",
        rollout=rows.summary(view, now),
        actions=rows.actions(view),
        reasons=rows.reasons(troubled) if sum(view.counts.values()) > 1 else [],
        examined=EXAMINED if len(troubled) == EXAMINED else 0,
        states=rows.state_choices(view, state, lambda name: address(here, filters | {"state": name})),
        devices=[rows.target_row(target, now) for target in listing.items],
        total=rows.devices(listing.total),
        filtered=bool(state or search),
        searchable=bool(search) or sum(view.counts.values()) > SEARCHED,
        state=state,
        search=search,
        first=address(here, filters) if after else "",
        next=address(here, filters | {"after": listing.next}) if listing.next else "",
    )


def _change(acting: ActingDep, form: FormDep, rollout: int) -> Response:
    verb = form.get("verb", "")
    if verb not in _VERBS:
        raise InputError("field verb", f"is not one of {', '.join(_VERBS)}", "Use the buttons of the rollout's page")
    change_rollout(acting, rollout, verb)  # type: ignore[arg-type]  # checked above
    return done(f"/rollouts/{rollout}", f"rollout-{verb}")
