"""What every use case needs: settings, store, keys, clock; put together once, in `wherry_server.app`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Self

from sqlalchemy import event, select
from sqlalchemy.orm import Session

from wherry.profile import DeviceProfile
from wherry_server.config import ServerConfig
from wherry_server.pki import Authority
from wherry_server.services.changes import AUDIT, Changes
from wherry_server.services.wire import Line, Questions
from wherry_server.signing import OnlineSigner
from wherry_server.store.database import Store
from wherry_server.store.schema import Audit

SERVER = "server"
"""The actor of what the server decides by itself, and of its command line."""
ANONYMOUS = "anonymous"
REFUSALS_AN_HOUR = 60
"""Refusals of one kind in the audit trail: strangers must not fill the database."""


@dataclass(frozen=True, slots=True)
class Context:
    """The server's parts as the use cases see them.

    Attributes:
        profiles: device profiles by name.
        clock: the time now, UTC.
        wake: tells the link that the outbox holds something; called after the commit.
        actor: for whom it is done, as the audit trail says it.
        changes: the bell for those who show something live; rung after the commit.
        line: the link to the devices, once there is one.
        questions: those that wait for a device's answer.
    """

    config: ServerConfig
    store: Store
    authority: Authority
    signer: OnlineSigner
    profiles: Mapping[str, DeviceProfile]
    clock: Callable[[], datetime]
    wake: Callable[[], None]
    actor: str = SERVER
    changes: Changes = field(default_factory=Changes)
    line: Line = field(default_factory=Line)
    questions: Questions = field(default_factory=Questions)

    def acting_as(self, actor: str) -> Self:
        """The same parts, for somebody: name of an API token, `device ID`, or `server`."""
        return dataclasses.replace(self, actor=actor[:100])

    def record(self, session: Session, action: str, thing: str, detail: str = "") -> None:
        """Add a line to the audit trail, in the unit of work of what it tells."""
        line = Audit(at=self.clock(), actor=self.actor, action=action, thing=thing[:200], detail=detail[:2000])
        session.add(line)
        self.announce(session, AUDIT)

    def announce(self, session: Session, *topics: str) -> None:
        """Ring the bell for these topics once a unit of work is committed."""
        if not session.info:
            event.listen(session, "after_commit", lambda done: self.changes.ring(*done.info), once=True)
        session.info.update(dict.fromkeys(topics))

    def record_refusal(self, session: Session, action: str, thing: str, detail: str) -> None:
        """Add a line about what was refused, unless there were very many within the hour."""
        since = self.clock() - timedelta(hours=1)
        newest = select(Audit.at).where(Audit.action == action).order_by(Audit.id.desc()).limit(REFUSALS_AN_HOUR)
        recent = sum(at > since for at in session.scalars(newest))
        if recent + 1 == REFUSALS_AN_HOUR:
            detail = f"{detail} (further ones of this hour are in the server's log only)"
        if recent < REFUSALS_AN_HOUR:
            self.record(session, action, thing, detail)
