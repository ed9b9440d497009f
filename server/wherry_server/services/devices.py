"""Labels of devices."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from sqlalchemy import delete
from sqlalchemy.orm import Session

from wherry.errors import InputError, NotFound
from wherry_server.services.changes import FLEET, device_topic
from wherry_server.services.context import Context
from wherry_server.store.schema import Device, DeviceLabel

MAX_LABELS = 32
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,63}")


def check_labels(labels: Mapping[str, str]) -> None:
    """Refuse labels that cannot be stored or selected by.

    Raises:
        InputError: too many, or a name or value is not usable.
    """
    if len(labels) > MAX_LABELS:
        raise InputError("labels", f"are {len(labels)}, the limit is {MAX_LABELS}")
    for name, value in labels.items():
        if not _NAME.fullmatch(name):
            raise InputError(f"label {name[:80]!r}", "has a name that is not letters, digits, dots, dashes or slashes")
        if len(value) > 256 or "\x00" in value:
            raise InputError(f"label {name}", "has a value of more than 256 characters, or one that is not text")


def set_labels(session: Session, device: Device, labels: Mapping[str, str]) -> None:
    """Replace a device's labels.

    Raises:
        InputError: see `check_labels`.
    """
    check_labels(labels)
    device.labels = json.dumps(dict(labels), sort_keys=True)
    session.execute(delete(DeviceLabel).where(DeviceLabel.device == device.id))
    session.add_all(DeviceLabel(device=device.id, name=name, value=value) for name, value in labels.items())


def change_labels(context: Context, device: str, labels: Mapping[str, str]) -> None:
    """An operator gives a device its labels; they replace the old ones.

    Raises:
        NotFound: no such device.
        InputError: a label is not usable.
    """
    with context.store.write() as session:
        row = session.get(Device, device, with_for_update=True)
        if row is None:
            raise NotFound(f"device {device}", "does not exist")
        set_labels(session, row, labels)
        context.record(session, "device.labels", device, row.labels)
        context.announce(session, device_topic(device), FLEET)
