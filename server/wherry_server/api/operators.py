"""Routes of operators: their API tokens, and what they did."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel

from wherry.api.operators import AuditPage
from wherry_server.api.auth import ActingDep, ContextDep, NeedsOperator
from wherry_server.api.params import After, Limit, number_after
from wherry_server.services import access
from wherry_server.store.audit_views import AuditFilter, audit_page

router = APIRouter(prefix="/v1", tags=["operators"])
_Word = Annotated[str | None, Query(max_length=200)]


class TokenView(BaseModel):
    """An API token, without its secret."""

    name: str
    created: datetime
    revoked: datetime | None = None


class TokenList(BaseModel):
    """`GET /v1/api-tokens`."""

    items: list[TokenView]


@router.get("/audit", summary="Who did what", dependencies=[NeedsOperator])
def get_audit(
    context: ContextDep,
    after: After = "",
    limit: Limit = 50,
    action: Annotated[str | None, Query(max_length=40, description="`rollout` also finds `rollout.create`")] = None,
    thing: _Word = None,
    actor: _Word = None,
) -> AuditPage:
    """Newest first: changes, logins, and what was refused."""
    with context.store.read() as session:
        return audit_page(session, AuditFilter(action, thing, actor), number_after(after), limit)


@router.get("/api-tokens", summary="List API tokens", dependencies=[NeedsOperator])
def list_tokens(context: ContextDep) -> TokenList:
    """Oldest first, without secrets. New ones are made on the server: `wherry-server token create NAME --data DIR`."""
    found = access.list_tokens(context)
    return TokenList(
        items=[TokenView(name=token.name, created=token.created, revoked=token.revoked) for token in found]
    )


@router.delete("/api-tokens/{name:path}", summary="Revoke an API token", status_code=204)
def revoke_token(name: Annotated[str, Path(max_length=100)], context: ActingDep) -> None:
    """Useless from now on, in the API and on the dashboard; also when it is the one of this request."""
    access.revoke_token(context, name)
