"""The agent's settings: STATE/agent.toml, then environment WHERRY_AGENT_<NAME>. Every limit is here."""

from __future__ import annotations

import json
import logging
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wherry.errors import ConfigError
from wherry.identity import SlotName
from wherry_agent.asking import Patience
from wherry_agent.entry import Limits
from wherry_agent.registry_credentials import FOLDER, RegistryCredentials
from wherry_agent.supervision import RUNS_AS

_log = logging.getLogger(__name__)
ENV_PREFIX = "WHERRY_AGENT_"
_Port = Annotated[int, Field(ge=1, le=65535)]
_Seconds = Annotated[float, Field(gt=0, le=86_400)]


class AgentConfig(BaseModel):
    """Frozen settings.

    Attributes:
        engine_url: the container engine's address.
        engine_timeout_seconds: how long it may take to answer.
        images_folder: on the filesystem whose free space admission looks at.
        slots: stable ports of slots by name; others are counted up from `slot_base_port`.
        first_port, last_port: loopback ports for containers.
        expose: more addresses of this host where the stable ports are reachable (default: loopback only).
        route: the way to what serves: "kernel", "haproxy", or "auto": the one that the image needs.
        route_table: nftables table; empty makes one of the device's name.
        hold_seconds: how long haproxy lets callers wait while versions change that memory does not hold both; 0: not.
        tick_seconds: how often the world is looked at.
        route_check_seconds: how often the packet filter is read back when nothing happens.
        report_seconds: how often an unchanged state is reported.
        unready_restarts: unanswered health checks in a row before a known-good is started anew.
        poll_seconds: how often the assignment is fetched over HTTPS besides MQTT.
        sample_seconds, flush_seconds, renew_check_seconds: telemetry samples, sending, certificate check.
        soak_seconds: how long a candidate is watched after the switch.
        agent_soak_seconds: how long a new agent watches itself before it stays.
        reserve_mb: memory to stay free beside a candidate in overlap mode.
        watermark_mb: disk that must stay free.
        backoff_base_seconds, backoff_max_seconds: waits after failures.
        pull_stall_seconds, pull_deadline_seconds: longest silence and length of a pull.
        golden_limit_mb: largest golden.json read.
        golden_seconds: how often the golden cases of what serves are asked again.
        spool_mb: disk for telemetry that waits.
        registry_credentials: logins for private registries, as `docker login` writes them, for root's eyes only
            (default: registries/config.json in the state folder).
        local_group: members of this group of the device may hold the update lock through the local API.
        log_level: of the log on standard error.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine_url: str = "unix:///var/run/docker.sock"
    engine_timeout_seconds: int = Field(default=15, ge=1, le=600)
    images_folder: Path = Path("/var/lib/docker")
    slots: dict[SlotName, _Port] = {}
    slot_base_port: _Port = 8500
    first_port: _Port = 18500
    last_port: _Port = 18999
    expose: list[str] = []
    route: Literal["auto", "kernel", "haproxy"] = "auto"
    hold_seconds: int = Field(default=60, ge=0, le=600)
    route_table: str = Field(default="", pattern=r"^[A-Za-z0-9_]{0,64}$")
    tick_seconds: _Seconds = 5
    route_check_seconds: _Seconds = 30
    report_seconds: _Seconds = 300
    unready_restarts: int = Field(default=6, ge=1)
    poll_seconds: _Seconds = 300
    sample_seconds: _Seconds = 15
    flush_seconds: _Seconds = 5
    renew_check_seconds: _Seconds = 3600
    soak_seconds: float = Field(default=0.5, ge=0, le=3600)
    agent_soak_seconds: float = Field(default=10, ge=0, le=3600)
    reserve_mb: int = Field(default=64, ge=0)
    watermark_mb: int = Field(default=256, ge=0)
    backoff_base_seconds: _Seconds = 2
    backoff_max_seconds: _Seconds = 600
    pull_stall_seconds: _Seconds = 60
    pull_deadline_seconds: _Seconds = 1800
    golden_limit_mb: int = Field(default=64, ge=1)
    golden_seconds: _Seconds = 900
    spool_mb: int = Field(default=16, ge=1)
    registry_credentials: Path | None = None
    local_group: str = ""
    log_level: str = "INFO"

    def limits(self) -> Limits:
        """How patient decisions are."""
        return Limits(
            backoff_base_seconds=self.backoff_base_seconds,
            backoff_max_seconds=self.backoff_max_seconds,
            reserve_mb=self.reserve_mb,
        )

    def patience(self) -> Patience:
        """How long a candidate is looked at."""
        return Patience(soak_seconds=self.soak_seconds)

    def credentials(self, state: Path) -> RegistryCredentials:
        """What private registries are shown."""
        return RegistryCredentials(self.registry_credentials or state / FOLDER / "config.json")

    def table(self, device: str) -> str:
        """The nftables table of this device, so that two agents on one machine do not meet."""
        return self.route_table or "wherry_" + device.replace("-", "_")

    def addresses(self) -> tuple[str, ...]:
        """Where callers reach the stable ports."""
        return ("127.0.0.1", *self.expose)


def load_config(state: Path, file: Path | None = None, environ: Mapping[str, str] = os.environ) -> AgentConfig:
    """Settings of a state folder.

    Args:
        state: the state folder; its agent.toml may be absent.
        file: another file instead, which must exist.
        environ: the environment, which wins.

    Raises:
        ConfigError: a file that is not TOML, or a setting that is unknown or out of range; it is named. An agent
            that a supervisor started passes over unknown ones: it may be older than the one they were written for.
    """
    path = file or state / "agent.toml"
    values: dict[str, Any] = {}
    try:
        if file or path.exists():
            values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"settings {path}", f"cannot be read ({error})") from error
    if "DOCKER_HOST" in environ:
        values.setdefault("engine_url", environ["DOCKER_HOST"])
    for name, field in AgentConfig.model_fields.items():
        text = environ.get(ENV_PREFIX + name.upper())
        if text is not None:
            values[name] = _from_text(name, text, field.annotation)
    if RUNS_AS in environ:
        for unknown in sorted(values.keys() - AgentConfig.model_fields.keys()):
            _log.warning("setting %s in %s is unknown to this agent and has no effect", unknown, path)
            del values[unknown]
    try:
        return AgentConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"setting {where}", f"{first['msg']} (in {path} or {ENV_PREFIX}{where.upper()})") from error


def _from_text(name: str, text: str, annotation: Any) -> Any:
    """Lists and tables are JSON in the environment; pydantic reads the rest."""
    if annotation in (str, Path) or not text.startswith(("[", "{")):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(f"setting {ENV_PREFIX}{name.upper()}", f"is not JSON ({error})") from error
