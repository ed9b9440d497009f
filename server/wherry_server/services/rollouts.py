"""Rollouts under way: followed, paused, ended; `launch` begins them. What to do next is decided in `domain.rollout`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from wherry.errors import NotFound
from wherry.messages import Retry
from wherry_server.domain import rollout as plan
from wherry_server.services import outbox
from wherry_server.services.assignments import assign_slots
from wherry_server.services.changes import FLEET, ROLLOUTS, rollout_topic
from wherry_server.services.context import SERVER, Context
from wherry_server.services.follow import follow_rows
from wherry_server.services.targets import has_open_targets, supersede
from wherry_server.store.schema import FIRST, Device, RolloutRow, RolloutTarget

ASSIGN_LIMIT = 200
"""Assignments signed in one transaction; the rest follows with the next tick, so other writers get their turn."""
Verb = Literal["start", "pause", "abort", "retry"]


def change_rollout(context: Context, rollout: int, verb: Verb) -> None:
    """An operator starts, pauses, aborts or retries a rollout. Retry sends every failed device once more.

    Raises:
        NotFound: no such rollout.
        Conflict: its state does not allow this.
    """
    now = context.clock()
    with context.store.write() as session:
        row = _get(session, rollout)
        row.state = plan.change_state(row.state, verb)  # type: ignore[arg-type]  # only such states are stored
        row.ended = now if row.state == "aborted" else None
        row.reason = ""
        if verb == "retry":
            _queue_retries(session, rollout, now)
            session.flush()
            supersede(session, row)
        context.record(session, f"rollout.{verb}", str(rollout))
        context.announce(session, rollout_topic(rollout), ROLLOUTS)
    advance(context, rollout)
    context.wake()


def advance(context: Context, rollout: int, limit: int = ASSIGN_LIMIT) -> bool:
    """Do what a rollout needs next; whether more is left to do at once."""
    now = context.clock()
    with context.store.write() as session:
        row = _get(session, rollout)
        moved = _follow_problems(session, rollout, now)
        actions = plan.next_actions(_to_domain(session, row))
        assigns = [action for action in actions if isinstance(action, plan.Assign)]
        chosen = [*(action for action in actions if not isinstance(action, plan.Assign)), *assigns[:limit]]
        _apply(context, session, row, chosen, now)
        if chosen or moved:
            context.announce(session, rollout_topic(rollout), ROLLOUTS, FLEET)
    if assigns:
        context.wake()
    return len(assigns) > limit


def advance_all(context: Context) -> None:
    """The tick: look after every rollout that waits for something other than a device's report."""
    with context.store.read() as session:
        running = session.scalars(select(RolloutRow.id).where(RolloutRow.state == "running").order_by(RolloutRow.id))
        due = [rollout for rollout in running if needs_attention(session, rollout)]
    for rollout in due:
        while advance(context, rollout):
            pass


def needs_attention(session: Session, rollout: int) -> bool:
    """Whether there is something to do about a running rollout; asked often, so it loads no targets."""
    pending = select(RolloutTarget.device).where(RolloutTarget.rollout == rollout, RolloutTarget.state == "pending")
    if session.scalar(pending.limit(1)) is not None or not has_open_targets(session, rollout):
        return True
    return session.scalar(_with_problems(rollout).limit(1)) is not None


def _with_problems(rollout: int) -> Select[RolloutTarget, Device]:
    return (
        select(RolloutTarget, Device)
        .join(Device, Device.id == RolloutTarget.device)
        .where(RolloutTarget.rollout == rollout, RolloutTarget.state == "assigned", Device.problem.is_not(None))
    )


def _follow_problems(session: Session, rollout: int, now: datetime) -> bool:
    """Devices that say why they do not go on: time alone may turn that into a refusal. Whether any did."""
    devices = {device.id: device for _, device in session.execute(_with_problems(rollout))}
    rows = _rows_of(session, rollout, list(devices))
    found = [follow_rows(parts, devices[device], now) is not None for device, parts in rows.items()]
    session.flush()
    return any(found)


def _get(session: Session, rollout: int) -> RolloutRow:
    row = session.get(RolloutRow, rollout, with_for_update=True)
    if row is None:
        raise NotFound(f"rollout {rollout}", "does not exist")
    return row


def _to_domain(session: Session, row: RolloutRow) -> plan.Rollout:
    """The rollout with all its devices; without making objects of rows that nothing will change in."""
    waves: dict[int, list[str]] = {}
    targets = {}
    columns = (RolloutTarget.wave, RolloutTarget.device, RolloutTarget.state)
    for wave, device, state in session.execute(select(*columns).where(RolloutTarget.rollout == row.id, FIRST)):
        waves.setdefault(wave, []).append(device)
        targets[device] = plan.Target(device, state=state)  # type: ignore[arg-type]  # only such states are stored
    ordered = tuple(plan.Wave(tuple(sorted(waves[number]))) for number in sorted(waves))
    return plan.Rollout(row.state, ordered, targets)  # type: ignore[arg-type]


def _apply(context: Context, session: Session, row: RolloutRow, actions: Sequence[plan.Action], now: datetime) -> None:
    assigned = [action.device for action in actions if isinstance(action, plan.Assign)]
    parts = _rows_of(session, row.id, assigned)
    held = select(Device).where(Device.id.in_(assigned)).order_by(Device.id).with_for_update()
    devices = {device.id: device for device in session.scalars(held)} if assigned else {}
    for action in actions:
        match action:
            case plan.Assign(device=device):
                if device in devices:  # else it was removed just now, and its targets with it
                    _assign(context, session, parts[device], devices[device], now)
            case plan.Pause(reason=reason):
                row.state, row.reason = "paused", reason
                context.acting_as(SERVER).record(session, "rollout.pause", str(row.id), reason)
            case plan.Finish(state=state):
                row.state, row.ended = state, now
                context.acting_as(SERVER).record(session, f"rollout.{state}", str(row.id))


def _rows_of(session: Session, rollout: int, devices: Sequence[str]) -> dict[str, list[RolloutTarget]]:
    """The rows of some devices, the first release first."""
    found: dict[str, list[RolloutTarget]] = {}
    query = select(RolloutTarget).where(RolloutTarget.rollout == rollout, RolloutTarget.device.in_(devices))
    for target in session.scalars(query.order_by(RolloutTarget.position)) if devices else ():
        found.setdefault(target.device, []).append(target)
    return found


def _assign(context: Context, session: Session, parts: list[RolloutTarget], device: Device, now: datetime) -> None:
    """One assignment for all slots of a device."""
    if device.revoked is not None:
        for part in parts:
            part.state = part.own = "superseded"
        return
    paths = {part.slot: part.path for part in parts}
    sequence = assign_slots(context, session, device, paths, now, together=parts[0].rollout)
    for part in parts:
        part.sequence, part.assigned, part.problem = sequence, now, None
        part.state = part.own = "assigned"


def _queue_retries(session: Session, rollout: int, now: datetime) -> None:
    """Every slot of a device that failed is tried again: what was not rejected does not mind."""
    failed = session.scalars(
        select(RolloutTarget).where(RolloutTarget.rollout == rollout, RolloutTarget.state.in_(sorted(plan.FAILED)))
    )
    for target in failed:
        outbox.put_command(session, target.device, Retry(slot=target.slot, digest=target.digest), now)
        target.state = target.own = "pending"
        target.problem = target.deployment = None
