"""The audit trail in words. Pure."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import datetime

from wherry.api.operators import AuditEntry
from wherry_server.dashboard import words

_SAYS = {
    "rollout.create": "started",
    "rollout.start": "resumed",
    "rollout.failed": "noted the failure of",
    "rollout.completed": "noted the end of",
    "repository.publish": "published metadata",
    "token.create": "made",
    "enrol.token": "made a join token for",
    "enrol": "enrolled",
    "enrol.refused": "was refused enrolment of",
    "renew": "renewed the certificate of",
    "unassign": "emptied a slot of",
    "retry": "let try again",
    "device.labels": "labelled",
    "device.remove": "removed",
    "device.logs": "read logs of",
    "device.diagnose": "examined",
    "login": "logged in to",
    "login.refused": "was refused a login to",
}
_VERBS = {"pause": "paused", "abort": "aborted", "retry": "retried", "revoke": "revoked"}
_WARNED = ("refused", "failed", "revoke", "abort", "remove")
_OF_DEVICE = re.compile(r"(device\..+|enrol(\..+)?|renew|revoke|unassign|retry|poll_now|logs|diagnose)")


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
    actor = entry.actor or "server"
    kind = thing_kind(entry.action)
    return AuditRow(
        id=entry.id,
        at=f"{entry.at:%H:%M:%S}",
        day=f"{entry.at.day} {entry.at:%B %Y}",
        age=words.age(entry.at, now),
        actor=actor,
        actor_link=link("device", actor.removeprefix("device ")) if actor.startswith("device ") else "",
        says=says(entry.action),
        action=entry.action,
        thing=f"{kind} {entry.thing}".strip(),
        link=link(kind, entry.thing),
        detail=_detail(entry.detail),
        tone="warn" if any(word in entry.action for word in _WARNED) else "quiet",
    )


def says(action: str) -> str:
    """What was done, as one says it before the thing that it was done to."""
    last = action.rpartition(".")[2]
    return _SAYS.get(action) or _VERBS.get(last) or action.replace(".", " ").replace("_", " ")


def thing_kind(action: str) -> str:
    """What sort of thing an action is about; empty where its name says it."""
    if action.startswith("rollout."):
        return "rollout"
    if action.startswith("token."):
        return "API token"
    return "device" if _OF_DEVICE.fullmatch(action) else ""


def link(kind: str, thing: str) -> str:
    """Where a thing has a page; empty when it has none."""
    if kind == "rollout" and re.fullmatch(r"[0-9]{1,15}", thing):
        return f"/rollouts/{thing}"
    if kind == "device" and re.fullmatch(r"[a-z0-9][a-z0-9-]{0,63}", thing):
        return f"/devices/{thing}"
    return ""


def _detail(text: str) -> str:
    """Labels come as JSON."""
    try:
        found = json.loads(text)
    except ValueError:
        return text
    return ", ".join(f"{name}={value}" for name, value in found.items()) if isinstance(found, dict) else text
