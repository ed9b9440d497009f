"""Containers of releases are made, and dead ones are brought back to life; part of the executor."""

from __future__ import annotations

import logging
import zlib
from dataclasses import dataclass

from wherry.errors import EngineError
from wherry_agent import steps
from wherry_agent.assignment import TrustedImage
from wherry_agent.entry import container_name
from wherry_agent.ports import Cancel, Engine, Fetcher, Host, Route

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Settings:
    """What the executor needs of the configuration.

    Attributes:
        ports: loopback ports that containers may be published on.
        reserve_mb: memory to stay free beside a release that is started beside another one.
    """

    device: str
    ports: range
    reserve_mb: int = 64


class Maker:
    """Makes and revives containers, in the worker's thread."""

    def __init__(self, settings: Settings, engine: Engine, fetcher: Fetcher, route: Route, host: Host) -> None:
        self._settings = settings
        self._engine = engine
        self._fetcher = fetcher
        self._route = route
        self._host = host

    def name(self, slot: str, image: TrustedImage) -> str:
        """The container's name."""
        return container_name(self._settings.device, slot, image)

    def revive(self, step: steps.EnsureServing) -> None:
        """Bring a dead release back to life, from its image, or from the registry if nothing else is left."""
        name = self.name(step.slot, step.image)
        found = self._engine.inspect(name)
        if found and step.restart:
            self._engine.stop(name, 1)
        if found and self._revived(name):
            return
        if found:
            self._engine.remove(name)
        if not self._engine.has_image(step.image):
            self._fetcher.fetch(step.image, Cancel(), lambda *_: None)
        self.create(step.slot, step.image, step.slot_port)
        self._engine.restart_policy(name, "unless-stopped")
        self._engine.start(name)

    def _revived(self, name: str) -> bool:
        """Whether an existing container could be started; one whose port was taken is made again."""
        try:
            self._engine.restart_policy(name, "unless-stopped")
            self._engine.processor_share(name, "full")
            self._engine.start(name)
        except EngineError as error:
            _log.warning("known-good container does not start and is made again: %s", error)
            if self._engine.inspect(name) is None:
                return False
            return self._reachable_or_raise(error)
        return True

    @staticmethod
    def _reachable_or_raise(error: EngineError) -> bool:
        if "port" in error.reason or "address already in use" in error.reason:
            return False
        raise error

    def create(self, slot: str, image: TrustedImage, slot_port: int) -> None:
        """Create a container, not running, unless the right one is there."""
        name = self.name(slot, image)
        found = self._engine.inspect(name)
        if found is not None and found.digest != image.digest:
            self._engine.remove(name)
            found = None
        if found is None:
            self._engine.create(name, slot, image, self._free_port(), slot_port)

    def _free_port(self) -> int:
        """A loopback port that no container of ours has, no route leads to and nothing listens on.

        Somebody may have removed a container whose route still stands: its callers must not reach another slot's.
        """
        taken = {container.port for container in self._engine.observe().values()} | {*self._route.read().values()}
        ports = self._settings.ports
        # Agents that share an engine begin at different places.
        shift = zlib.crc32(self._settings.device.encode()) % len(ports)
        candidates: list[int] = [*ports[shift:], *ports[:shift]]
        for port in candidates:
            if port not in taken and self._host.port_free(port):
                return port
        raise EngineError(
            "candidate port", f"all of {self._settings.ports.start}-{self._settings.ports.stop - 1} are taken"
        )
