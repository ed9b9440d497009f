"""Operators: their API tokens, and who did what."""

from __future__ import annotations

from datetime import datetime

from wherry.api.base import ApiModel, Page


class AuditEntry(ApiModel):
    """Who did what, or was refused what.

    Attributes:
        actor: name of the API token, `device ID`, or `server`.
        action: what was done: "rollout.create", "token.create", "login", …
    """

    id: int
    at: datetime
    actor: str = ""
    action: str
    thing: str
    detail: str = ""


class AuditPage(Page):
    """`GET /v1/audit?after=&limit=&action=&thing=`; newest first."""

    items: list[AuditEntry]


class ApiTokenView(ApiModel):
    """An operator's API token, without its secret."""

    name: str
    created: datetime
    revoked: datetime | None = None


class ApiTokenList(ApiModel):
    """`GET /v1/api-tokens`."""

    items: list[ApiTokenView]
