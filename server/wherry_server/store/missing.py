"""Errors about names that do not exist, with the names that may be meant."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from wherry.errors import NotFound
from wherry_server.domain.alike import perhaps
from wherry_server.store.schema import Device, Image, RemovedDevice

_LOOKED_AT = 2000
"""Devices that a mistyped id is compared with."""


def no_release(session: Session, model: str, version: str) -> NotFound:
    """No such release."""
    otherwise = "List releases with `wherry release list`"
    versions = list(session.scalars(select(Image.version).where(Image.model == model, Image.listed).distinct()))
    if versions:
        fix = perhaps(version, versions, f"{model} has {', '.join(sorted(versions)[-5:])}")
    else:
        fix = perhaps(model, session.scalars(select(Image.model).where(Image.listed).distinct()), otherwise)
    return NotFound(f"release {model} {version}", "does not exist", fix)


def no_device(session: Session, device: str, reason: str = "does not exist") -> NotFound:
    """No such device. Ids that begin alike are compared, in a large fleet the first of them."""
    removed = session.get(RemovedDevice, device)
    if removed is not None:
        fix = f"Its past: `wherry audit --thing {device}`; `wherry device token {device}` brings it back"
        return NotFound(f"device {device}", f"was removed on {removed.removed:%Y-%m-%d}", fix)
    query = select(Device.id).where(Device.revoked.is_(None)).order_by(Device.id).limit(_LOOKED_AT)
    alike = session.scalars(query.where(Device.id.startswith(device[:1], autoescape=True)))
    return NotFound(f"device {device}", reason, perhaps(device, alike, "List devices with `wherry device list`"))
