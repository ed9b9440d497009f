"""The server's settings: one frozen value, read from DATA/server.toml and WHERRY_SERVER_* variables."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wherry.errors import ConfigError

SETTINGS_FILE = "server.toml"
ENVIRONMENT_PREFIX = "WHERRY_SERVER_"


class ServerConfig(BaseModel):
    """Every setting and limit of the server.

    Attributes:
        data: folder that holds everything the server keeps.
        host: name or address under which devices and operators reach the server.
        names: further names and addresses for the server's and the broker's certificates.
        bind, port: where the HTTPS server listens; the broker's configuration uses the same address.
        broker_host, broker_port: where devices find the MQTT broker; the host defaults to `host`.
        link: whether this server talks to the broker at all.
        link_host: where this server itself finds the broker, if not where devices do (in a cluster); one of `names`.
        broker_folder: the folder that `broker-config` wrote; its acl is rewritten when a device is revoked.
        database_url: SQLAlchemy URL; SQLite in `data` by default.
        device_days: life of a device certificate.
        renew_grace_days: how long after its expiry a device may still renew.
        answer_seconds: how long to wait for a device's answer to a question.
        presence_stale_seconds: a device that sends nothing for so long counts as offline.
        telemetry_days: how long telemetry is kept.
        history_days: how long ended deployments and the audit trail are kept.
        timestamp_hours: how often the TUF timestamp is signed anew.
        max_body_bytes, max_upload_bytes: largest request body, and largest repository upload.
        session_hours: life of a dashboard session.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Path
    host: str = Field(min_length=1, max_length=253)
    names: tuple[str, ...] = ()
    bind: str = "0.0.0.0"  # noqa: S104  devices reach the server from outside
    port: int = Field(default=8470, ge=1, le=65535)
    broker_host: str = ""
    broker_port: int = Field(default=8883, ge=1, le=65535)
    link: bool = True
    link_host: str = ""
    broker_folder: Path | None = None
    database_url: str = ""
    device_days: int = Field(default=7, ge=1, le=397)
    renew_grace_days: int = Field(default=90, ge=0, le=3650)
    answer_seconds: float = Field(default=10.0, gt=0, le=120)
    presence_stale_seconds: int = Field(default=180, ge=30)
    telemetry_days: int = Field(default=14, ge=1, le=3650)
    history_days: int = Field(default=365, ge=1, le=3650)
    timestamp_hours: int = Field(default=6, ge=1, le=72)
    max_body_bytes: int = Field(default=262_144, ge=4096)
    max_upload_bytes: int = Field(default=16_777_216, ge=65_536)
    session_hours: int = Field(default=12, ge=1, le=24 * 30)

    @property
    def broker(self) -> str:
        """Host name or address of the broker."""
        return self.broker_host or self.host

    @property
    def database(self) -> str:
        """The database URL with its default."""
        return self.database_url or f"sqlite:///{self.data.absolute()}/server.db"

    @property
    def pki(self) -> Path:
        """Folder of the certificate authority."""
        return self.data / "pki"

    @property
    def keys(self) -> Path:
        """Folder of the online signing keys."""
        return self.data / "keys"

    @property
    def public_url(self) -> str:
        """Base URL of the API as others reach it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"https://{host}:{self.port}"


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in environment.items():
        if name.startswith(ENVIRONMENT_PREFIX):
            field = name.removeprefix(ENVIRONMENT_PREFIX).lower()
            found[field] = tuple(value.split(",")) if field == "names" else value
    return found


def load_config(data: Path, environment: Mapping[str, str] | None = None) -> ServerConfig:
    """Read the settings of a data folder; variables win over the file.

    Raises:
        ConfigError: the folder was not initialised, or a setting is unknown or wrong.
    """
    path = data / SETTINGS_FILE
    try:
        settings: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"data folder {data}", f"has no {SETTINGS_FILE}", f"Run `wherry-server init --data {data} --host NAME`"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"settings file {path}", f"cannot be read ({error})") from error
    settings.update(_from_environment(os.environ if environment is None else environment))
    settings.pop("data", None)
    return make_config(data, settings)


def make_config(data: Path, settings: Mapping[str, Any]) -> ServerConfig:
    """Check settings and freeze them.

    Raises:
        ConfigError: a setting is unknown or wrong; the error names it.
    """
    try:
        return ServerConfig(data=data, **settings)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"]) or "settings"
        reason = (
            "is not a setting" if first["type"] == "extra_forbidden" else first["msg"][:1].lower() + first["msg"][1:]
        )
        raise ConfigError(f"setting {name}", reason) from error


def _toml_value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def write_settings(path: Path, settings: Mapping[str, object]) -> None:
    """Write or extend a settings file; lines that stand are kept, named settings are replaced.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [line for line in lines if line.split("=")[0].strip() not in settings]
        added = [f"{name} = {_toml_value(value)}" for name, value in settings.items()]
        path.write_text("\n".join([*kept, *added]) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"settings file {path}", f"cannot be written ({error})") from error
