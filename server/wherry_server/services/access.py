"""API tokens of operators: made, listed, revoked and checked. The database holds hashes only."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select

from wherry.errors import Conflict, InputError, NotFound
from wherry_server.services.context import ANONYMOUS, Context
from wherry_server.store.schema import ApiToken

TOKEN_PREFIX = "wherry_"  # noqa: S105  a prefix, so that scanners recognise leaked tokens


@dataclass(frozen=True, slots=True)
class Operator:
    """Who calls: an API token by id and name."""

    id: int
    name: str


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """A token as it is listed: never its secret."""

    name: str
    created: datetime
    revoked: datetime | None


def hash_secret(secret: str) -> str:
    """How secrets are stored. They hold 256 random bits, so a plain hash cannot be guessed back."""
    return hashlib.sha256(secret.encode()).hexdigest()


def create_token(context: Context, name: str) -> str:
    """Make an API token and return its secret, which is shown this once.

    Raises:
        InputError: the name is empty or too long.
        Conflict: a token of that name exists.
    """
    if not 0 < len(name) <= 100:
        raise InputError("API token name", "must have 1 to 100 characters")
    secret = TOKEN_PREFIX + secrets.token_urlsafe(32)
    now = context.clock()
    with context.store.write() as session:
        if session.scalar(select(ApiToken.id).where(ApiToken.name == name)) is not None:
            raise Conflict(f"API token {name}", "exists already", "Choose another name")
        session.add(ApiToken(name=name, hash=hash_secret(secret), created=now))
        context.record(session, "token.create", name)
    return secret


def list_tokens(context: Context) -> list[TokenInfo]:
    """All tokens, oldest first, without secrets."""
    with context.store.read() as session:
        rows = session.scalars(select(ApiToken).order_by(ApiToken.id))
        return [TokenInfo(row.name, row.created, row.revoked) for row in rows]


def revoke_token(context: Context, name: str) -> None:
    """Make a token useless from now on, in the API and on the dashboard.

    Raises:
        NotFound: no token has that name.
    """
    now = context.clock()
    with context.store.write() as session:
        row = session.scalar(select(ApiToken).where(ApiToken.name == name))
        if row is None:
            raise NotFound(f"API token {name}", "does not exist", "List them with `wherry-server token list`")
        row.revoked = row.revoked or now
        context.record(session, "token.revoke", name)


def check_token(context: Context, secret: str) -> Operator | None:
    """Whose token this is, or None when it is unknown or revoked."""
    wanted = hash_secret(secret)
    with context.store.read() as session:
        row = session.scalar(select(ApiToken).where(ApiToken.hash == wanted, ApiToken.revoked.is_(None)))
    if row is None or not hmac.compare_digest(row.hash, wanted):
        return None
    return Operator(row.id, row.name)


def login(context: Context, secret: str, origin: str = "") -> Operator | None:
    """As `check_token`, for somebody who wants a session; told in the audit trail either way.

    Args:
        context: the server's parts.
        secret: what was shown.
        origin: address it came from.
    """
    operator = check_token(context, secret)
    acting = context.acting_as(operator.name if operator else ANONYMOUS)
    with context.store.write() as session:
        if operator is not None:
            acting.record(session, "login", "dashboard", origin)
        else:
            acting.record_refusal(session, "login.refused", "dashboard", origin)
    return operator


def operator_of(context: Context, token_id: int) -> Operator | None:
    """Whose dashboard session it is; None when the token behind it is revoked."""
    with context.store.read() as session:
        row = session.get(ApiToken, token_id)
        return Operator(row.id, row.name) if row is not None and row.revoked is None else None
