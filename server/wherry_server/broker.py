"""The files of the Mosquitto broker: its configuration, acl and certificates."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from wherry.errors import StoreError
from wherry_server.config import ServerConfig
from wherry_server.pki import LINK_NAME, Authority

_BROKER_USER = "mosquitto"
_CONFIGURATION = """\
# Written by `wherry-server broker-config`; run it again instead of editing this file.
user {user}
per_listener_settings false
allow_anonymous false
allow_zero_length_clientid false
acl_file {folder}/acl
pid_file {folder}/mosquitto.pid
persistence true
persistence_location {folder}/
autosave_interval 30
persistent_client_expiration 30d
max_packet_size 262144
max_inflight_messages 20
max_queued_messages 200
max_queued_bytes 4194304
max_keepalive 300
log_dest stderr
log_type error
log_type warning
log_type notice
listener {port}{bind}
cafile {folder}/ca.crt
certfile {folder}/broker.crt
keyfile {folder}/broker.key
tls_version tlsv1.3
require_certificate true
use_identity_as_username true
use_username_as_clientid true
max_qos 1
"""
_ACL = """\
# Written by `wherry-server`. A device reads its own cmd and assign and writes its own up/#.
# The server clears what the broker retains of a device that is gone.
user {server}
topic write wherry/v1/d/+/cmd
topic write wherry/v1/d/+/assign
topic write wherry/v1/d/+/up/state
topic write wherry/v1/d/+/up/presence
topic read wherry/v1/d/+/up/#
{denied}
pattern read wherry/v1/d/%u/cmd
pattern read wherry/v1/d/%u/assign
pattern write wherry/v1/d/%u/up/#
"""


def acl_text(denied: Iterable[str]) -> str:
    """The broker's acl. A deny rule of a user wins over the patterns, so a device that was shut out is mute."""
    rules = "".join(f"\nuser {device}\ntopic deny wherry/v1/d/{device}/#\n" for device in sorted(denied))
    return _ACL.format(server=LINK_NAME, denied=rules)


def certificate_names(config: ServerConfig, first: str) -> tuple[str, ...]:
    """Names for a certificate of this server, without repetition."""
    return tuple(dict.fromkeys((first, *config.names, "localhost", "127.0.0.1")))


def write_broker_folder(
    config: ServerConfig, authority: Authority, out: Path, denied: Iterable[str], now: datetime
) -> Path:
    """Write all that Mosquitto needs into a folder and return the configuration's path.

    Raises:
        StoreError: the folder cannot be written.
    """
    out = out.absolute()
    certificate, key = authority.ensure_own("broker", config.broker, certificate_names(config, config.broker), now)
    try:
        out.mkdir(mode=0o750, parents=True, exist_ok=True)
        for source, name in ((certificate, "broker.crt"), (key, "broker.key"), (authority.ca_file, "ca.crt")):
            shutil.copyfile(source, out / name)
        (out / "broker.key").chmod(0o600)
        _write(out / "acl", acl_text(denied))
        (out / "acl").chmod(0o600)
        target = out / "mosquitto.conf"
        _write(target, _configuration(config, out))
        _give_to_broker(out)
    except OSError as error:
        raise StoreError(f"broker folder {out}", str(error)) from error
    return target


def _configuration(config: ServerConfig, out: Path) -> str:
    # Without an address the broker listens on all of them, IPv6 as well.
    bind = "" if config.bind == "0.0.0.0" else f" {config.bind}"  # noqa: S104
    return _CONFIGURATION.format(folder=out, port=config.broker_port, bind=bind, user=_broker_user(out))


def rewrite_acl(folder: Path, denied: Iterable[str]) -> bool:
    """Replace the acl and have a broker on this machine read it again; whether it was told.

    Raises:
        StoreError: the acl cannot be written.
    """
    try:
        _write(folder / "acl", acl_text(denied))
        (folder / "acl").chmod(0o600)
        _give_to_broker(folder)
    except OSError as error:
        raise StoreError(f"broker acl {folder / 'acl'}", str(error)) from error
    return _reload(folder / "mosquitto.pid")


def _reload(pid_file: Path) -> bool:
    with contextlib.suppress(OSError, ValueError):
        pid = int(pid_file.read_text())
        # A stale pid file may name a stranger: only a mosquitto gets the signal.
        if "mosquitto" in Path(f"/proc/{pid}/comm").read_text():
            os.kill(pid, signal.SIGHUP)
            return True
    return False


def _write(path: Path, text: str) -> None:
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text, encoding="utf-8")
    fresh.rename(path)


def _broker_user(folder: Path) -> str:
    """As whom Mosquitto is to run: as its own user if root starts it and that user can reach the folder."""
    reachable = all(parent.stat().st_mode & 0o001 for parent in folder.parents)
    with contextlib.suppress(KeyError):
        if os.geteuid() == 0 and reachable and pwd.getpwnam(_BROKER_USER):
            return _BROKER_USER
    return pwd.getpwuid(os.geteuid()).pw_name


def _give_to_broker(folder: Path) -> None:
    """Its own user must read and write here, and read the acl again when it is told to."""
    if os.geteuid() == 0 and _broker_user(folder) == _BROKER_USER:
        for path in (folder, *folder.iterdir()):
            shutil.chown(path, _BROKER_USER)
