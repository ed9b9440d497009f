"""What every use case needs: settings, store, keys, clock; put together once, in `wherry_server.app`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.orm import Session

from wherry.profile import DeviceProfile
from wherry_server.config import ServerConfig
from wherry_server.pki import Authority
from wherry_server.signing import OnlineSigner
from wherry_server.store.database import Store
from wherry_server.store.schema import Audit


@dataclass(frozen=True, slots=True)
class Context:
    """The server's parts as the use cases see them.

    Attributes:
        profiles: device profiles by name.
        clock: the time now, UTC.
        wake: tells the link that the outbox holds something; called after the commit.
    """

    config: ServerConfig
    store: Store
    authority: Authority
    signer: OnlineSigner
    profiles: Mapping[str, DeviceProfile]
    clock: Callable[[], datetime]
    wake: Callable[[], None]


def record(session: Session, now: datetime, action: str, thing: str, detail: str = "") -> None:
    """Add a line to the audit trail."""
    session.add(Audit(at=now, action=action, thing=thing[:200], detail=detail))
