"""The fleet page: `/`."""

from __future__ import annotations

from collections import defaultdict
from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy.orm import Session

from wherry.api.telemetry import SlotTelemetry
from wherry_server.dashboard import fleet, words
from wherry_server.dashboard.frame import FrameDep, page_router
from wherry_server.services.context import Context
from wherry_server.store import rollout_views
from wherry_server.store.device_views import device_facets, device_listing, fleet_counts
from wherry_server.store.telemetry_views import telemetry_summary

PAGE = 50
ROLLOUTS = 3
WINDOW = timedelta(minutes=15)


def fleet_routes() -> APIRouter:
    """`/`."""
    router = page_router()
    router.add_api_route("/", _fleet, methods=["GET"])
    return router


def _fleet(
    request: Request,
    frame: FrameDep,
    q: Annotated[str, Query(max_length=64)] = "",
    state: Annotated[str, Query(max_length=16)] = "",
    profile: Annotated[str, Query(max_length=64)] = "",
    version: Annotated[str, Query(max_length=140)] = "",
    label: Annotated[list[str], Query(max_length=20)] = [],  # noqa: B006
    after: Annotated[str, Query(max_length=64)] = "",
) -> Response:
    labels = tuple(pair[:330] for pair in label if pair)
    query = fleet.FleetQuery(q.strip(), state, profile, version, labels)
    with frame.context.store.read() as session:
        page = read_page(frame.context, session, query, after)
    return frame.render(request, "fleet.html", nav="fleet", page=page)


def read_page(context: Context, session: Session, query: fleet.FleetQuery, after: str) -> fleet.FleetPage:
    """Read what the page shows."""
    now = context.clock()
    listing = device_listing(session, query.filter(), after, PAGE)
    summary = telemetry_summary(session, now - WINDOW, [view.id for view in listing.items])
    hosts = {host.device: host for host in summary.hosts}
    usage: dict[str, list[SlotTelemetry]] = defaultdict(list)
    for used in summary.slots:
        usage[used.device].append(used)
    newest = rollout_views.rollout_page(session, None, ROLLOUTS).items
    troubled = rollout_views.troubled_targets(session, [view.id for view in newest], 1)
    profiles, versions, groups = fleet.facet_choices(device_facets(session))
    devices = [fleet.device_row(view, usage[view.id], hosts.get(view.id), now) for view in listing.items]
    rollouts = [fleet.rollout_card(view, troubled.get(view.id, []), now) for view in newest]
    return fleet.FleetPage(
        query=query,
        tiles=fleet.make_tiles(fleet_counts(session), query),
        devices=devices,
        rollouts=rollouts,
        total=words.number(listing.total),
        first=query.address() if after else "",
        next=query.address(after=listing.next) if listing.next else "",
        profiles=profiles,
        versions=versions,
        label_groups=groups,
        watch=fleet.watch_keys(devices, rollouts),
        clock=f"{now:%H:%M:%S}",
    )
