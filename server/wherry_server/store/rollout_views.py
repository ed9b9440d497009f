"""Rollouts with their devices, and the history of deployments."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Select, func, select, tuple_
from sqlalchemy.orm import Session

from wherry.api.rollouts import (
    DeploymentPage,
    DeploymentView,
    RolloutPage,
    RolloutTargetView,
    RolloutView,
    Selector,
    TargetPartView,
)
from wherry.errors import InputError, NotFound
from wherry.messages import DeploymentReport
from wherry_server.domain.parts import telling
from wherry_server.store.documents import read_parts, read_problem, readable
from wherry_server.store.schema import FIRST, Deployment, Device, RolloutRow, RolloutTarget


@dataclass(frozen=True, slots=True)
class TargetListing:
    """A page of a rollout's devices, and how many the filter matches in all."""

    items: list[RolloutTargetView]
    total: int
    next: str | None


def rollout_page(
    session: Session, after: int | None, limit: int, state: str | None = None, model: str | None = None
) -> RolloutPage:
    """Rollouts, newest first, without targets."""
    query = select(RolloutRow).order_by(RolloutRow.id.desc()).limit(limit + 1)
    if after is not None:
        query = query.where(RolloutRow.id < after)
    if state is not None:
        query = query.where(RolloutRow.state == state)
    if model is not None:
        named = RolloutRow.together.contains(f'"model": {json.dumps(model)}', autoescape=True)
        query = query.where((RolloutRow.model == model) | named)
    rows = list(session.scalars(query))
    counts = _counts(session, [row.id for row in rows[:limit]])
    items = [_rollout_view(row, counts.get(row.id, {})) for row in rows[:limit]]
    return RolloutPage(items=items, next=str(items[-1].id) if len(rows) > limit else None)


def rollout_head(session: Session, rollout: int) -> RolloutView:
    """One rollout with the number of its devices by state, without the devices.

    Raises:
        NotFound: no such rollout.
    """
    row = session.get(RolloutRow, rollout)
    if row is None:
        raise NotFound(f"rollout {rollout}", "does not exist", "List rollouts with `wherry rollout list`")
    return _rollout_view(row, _counts(session, [rollout]).get(rollout, {}))


def rollout_view(
    session: Session, rollout: int, after: str = "", limit: int = 100, state: str | None = None
) -> RolloutView:
    """One rollout with a page of its targets.

    Raises:
        NotFound: no such rollout.
    """
    view = rollout_head(session, rollout)
    page = rollout_targets(session, rollout, state, after, limit)
    return view.model_copy(update={"targets": page.items, "next": page.next})


def rollout_targets(
    session: Session, rollout: int, state: str | None = None, after: str = "", limit: int = 100, search: str = ""
) -> TargetListing:
    """Devices of a rollout by id.

    Args:
        session: where to read.
        rollout: its id.
        state: only targets in this state.
        after: `next` of the page before.
        limit: devices a page.
        search: part of the device's id.
    """
    where = [RolloutTarget.rollout == rollout, FIRST]
    if state is not None:
        where.append(RolloutTarget.state == state)
    if search:
        where.append(RolloutTarget.device.contains(search, autoescape=True))
    total = session.scalar(select(func.count()).select_from(RolloutTarget).where(*where)) or 0
    query = _targets().where(*where, RolloutTarget.device > after).order_by(RolloutTarget.device).limit(limit + 1)
    rows = [(target, online) for target, online in session.execute(query)]
    items = _target_views(session, rows[:limit])
    return TargetListing(items, total, items[-1].device if len(rows) > limit else None)


def _targets() -> Select[RolloutTarget, bool]:
    return select(RolloutTarget, Device.online).join(Device, Device.id == RolloutTarget.device)


def _counts(session: Session, rollouts: Sequence[int]) -> dict[int, dict[str, int]]:
    query = (
        select(RolloutTarget.rollout, RolloutTarget.state, func.count())
        .where(RolloutTarget.rollout.in_(rollouts), FIRST)
        .group_by(RolloutTarget.rollout, RolloutTarget.state)
    )
    found: dict[int, dict[str, int]] = {}
    for rollout, state, number in session.execute(query):
        found.setdefault(rollout, {})[state] = number
    return found


def _rollout_view(row: RolloutRow, counts: dict[str, int]) -> RolloutView:
    return RolloutView(
        id=row.id,
        model=row.model,
        version=row.version,
        slot=row.slot,
        together=read_parts(row.together),
        selector=Selector.model_validate_json(row.selector),
        state=row.state,
        reason=row.reason,
        created=row.created,
        ended=row.ended,
        counts=counts,
    )


def troubled_targets(session: Session, rollouts: Sequence[int], limit: int) -> dict[int, list[RolloutTargetView]]:
    """The first devices of each rollout that failed or did not fit."""
    troubled = ("rejected", "refused", "misfit")
    found = {}
    for rollout in rollouts:
        query = _targets().where(RolloutTarget.rollout == rollout, RolloutTarget.state.in_(troubled), FIRST)
        rows = session.execute(query.order_by(RolloutTarget.device).limit(limit))
        found[rollout] = _target_views(session, [(target, online) for target, online in rows])
    return found


def _target_views(session: Session, rows: Sequence[tuple[RolloutTarget, bool]]) -> list[RolloutTargetView]:
    """Devices of one rollout by their first rows, with one query for the others."""
    others: dict[str, list[RolloutTarget]] = {}
    query = select(RolloutTarget).where(
        RolloutTarget.rollout.in_({row.rollout for row, _ in rows}),
        RolloutTarget.device.in_([row.device for row, _ in rows]),
        ~FIRST,
    )
    for row in session.scalars(query.order_by(RolloutTarget.position)) if rows else ():
        others.setdefault(row.device, []).append(row)
    return [_target_view([row, *others.get(row.device, [])], online) for row, online in rows]


def _target_view(rows: Sequence[RolloutTarget], online: bool) -> RolloutTargetView:
    parts = [_part_view(row) for row in rows]
    told = telling(parts)
    return RolloutTargetView(
        device=rows[0].device,
        state=rows[0].state,
        online=online,
        sequence=rows[0].sequence,
        deployment=told.deployment,
        problem=told.problem,
        parts=parts if len(parts) > 1 else [],
    )


def _part_view(row: RolloutTarget) -> TargetPartView:
    return TargetPartView(
        slot=row.slot,
        state=row.own,
        deployment=readable(DeploymentReport, row.deployment) if row.deployment else None,
        problem=read_problem(row.problem),
    )


def deployment_page(
    session: Session,
    device: str | None,
    after: str,
    limit: int,
    model: str | None = None,
    version: str | None = None,
    slot: str | None = None,
    phase: str | None = None,
) -> DeploymentPage:
    """Deployments, the latest change first; all conditions given must hold."""
    order = (Deployment.updated.desc(), Deployment.device.desc(), Deployment.id.desc())
    query = select(Deployment).order_by(*order).limit(limit + 1)
    asked = {"device": device, "model": model, "version": version, "slot": slot, "phase": phase}
    query = query.filter_by(**{name: value for name, value in asked.items() if value is not None})
    if after:
        key = _deployment_key(after)
        query = query.where(tuple_(Deployment.updated, Deployment.device, Deployment.id) < tuple_(*key))
    rows = list(session.scalars(query))
    read = [(row.device, readable(DeploymentReport, row.report)) for row in rows[:limit]]
    items = [DeploymentView(device=device, deployment=report) for device, report in read if report is not None]
    last = rows[limit - 1] if len(rows) > limit else None
    older = f"{last.updated.isoformat()}~{last.device}~{last.id}" if last else None
    return DeploymentPage(items=items, next=older, unreadable=len(read) - len(items))


def _deployment_key(after: str) -> tuple[datetime, str, str]:
    try:
        when, device, deployment = after.split("~", 2)
        return datetime.fromisoformat(when), device, deployment
    except ValueError as error:
        raise InputError("parameter after", "is not the `next` of a page", "Start again without it") from error
