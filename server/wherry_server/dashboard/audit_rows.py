"""The audit trail in words. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

from wherry.api import AuditEntry
from wherry_server.dashboard import words

_SAYS = {
    "rollout.create": "started rollout",
    "rollout.start": "resumed rollout",
    "rollout.pause": "paused rollout",
    "rollout.abort": "aborted rollout",
    "rollout.retry": "retried rollout",
    "repository.publish": "published metadata",
    "token.create": "made API token",
    "token.revoke": "revoked API token",
    "enrol.token": "made an enrolment token for",
    "enrol": "enrolled",
    "enrol.refused": "was refused enrolment of",
    "renew": "renewed the certificate of",
    "revoke": "revoked device",
    "unassign": "emptied a slot of",
    "retry": "let try again",
    "device.labels": "labelled",
    "login": "logged in",
    "login.refused": "was refused a login",
}
_BAD = ("refused", "failed", "denied", "revoke", "abort")


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One line of the trail.

    Attributes:
        link: page of the thing, if it has one.
    """

    id: int
    at: str
    day: str
    age: str
    actor: str
    actor_link: str
    says: str
    action: str
    thing: str
    link: str
    detail: str
    tone: str


def audit_row(entry: AuditEntry, now: datetime) -> AuditRow:
    """An entry as the page shows it."""
    return AuditRow(
        id=entry.id,
        at=f"{entry.at:%H:%M:%S}",
        day=f"{entry.at:%Y-%m-%d}",
        age=words.age(entry.at, now),
        actor=entry.actor or "server",
        actor_link=f"/devices/{entry.actor.removeprefix('device ')}" if entry.actor.startswith("device ") else "",
        says=_SAYS.get(entry.action, entry.action.replace(".", " ").replace("_", " ")),
        action=entry.action,
        thing=entry.thing,
        link=link(entry.action, entry.thing),
        detail=entry.detail,
        tone="warn" if any(word in entry.action for word in _BAD) else "quiet",
    )


_OF_DEVICE = re.compile(r"(device\..+|enrol(\..+)?|renew|revoke|unassign|retry|logs|diagnose)")


def link(action: str, thing: str) -> str:
    """Where a thing has a page; empty when it has none."""
    if action.startswith("rollout.") and re.fullmatch(r"[0-9]{1,15}", thing):
        return f"/rollouts/{thing}"
    if _OF_DEVICE.fullmatch(action) and re.fullmatch(r"[a-z0-9][a-z0-9-]{0,63}", thing):
        return f"/devices/{thing}"
    return ""
