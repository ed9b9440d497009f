"""The sweep's installation: a lab inside its own namespaces, with a relay in front of every part that can fail."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import Lab, LabError, Ports
from ports import free_ports

from faults import releases
from faults.engine_room import Engine
from faults.proxy import Proxy, Trouble

MODEL = releases.MODEL


def eventually(condition: Callable[[], Any], seconds: float, otherwise: str, pause: float = 0.05) -> Any:
    """Poll a condition until it holds.

    Raises:
        LabError: it did not in time.
    """
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise LabError(otherwise)
        time.sleep(pause)


@dataclass
class FaultLab(Lab):
    """A lab whose registry is reached through a relay: its port is signed into releases."""

    real_registry: int = 0
    docker_host: str = ""

    @property
    def environment(self) -> dict[str, str]:
        """Commands of the lab speak to the sweep's own engine."""
        return super().environment | {"DOCKER_HOST": self.docker_host}

    def start_registry(self) -> None:
        """Start the registry behind the relay."""
        config = self.folder / "registry.yml"
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(
            "version: 0.1\n"
            "log: {level: warn, accesslog: {disabled: true}}\n"
            f"storage: {{filesystem: {{rootdirectory: {self.folder / 'registry'}}}, delete: {{enabled: true}}}}\n"
            f"http: {{addr: '127.0.0.1:{self.real_registry}'}}\n"
        )
        self.start("registry", ["docker-registry", "serve", str(config)], lambda: self._listens(self.real_registry))


@dataclass
class Rig:
    """Everything that runs, and the relays between.

    Attributes:
        images: version to what was packaged: digest, config_digest, repository.
    """

    folder: Path
    engine: Engine = field(init=False)
    lab: FaultLab = field(init=False)
    registry: Proxy = field(init=False)
    server: Proxy = field(init=False)
    broker: Proxy = field(init=False)
    server_port: int = 0
    broker_port: int = 0
    images: dict[str, dict[str, Any]] = field(default_factory=dict)

    def start(self) -> None:
        """Start all parts and publish the two good versions."""
        self.engine = Engine(self.folder / "engine")
        self.engine.start()
        ports = Ports.free()
        self.lab = FaultLab(self.folder / "lab", ports)
        self.lab.docker_host = f"unix://{self.engine.socket}"
        self.lab.real_registry, self.server_port, self.broker_port = free_ports(3)
        lab = self.lab
        lab.start_registry()
        self.registry = Proxy(ports.registry, lab.real_registry)
        lab.initialise_server()
        lab.start_broker()
        lab.start_server()
        self.server = Proxy(self.server_port, ports.server)
        self.broker = Proxy(self.broker_port, ports.broker)
        lab.login()
        for version in ("1", "2"):
            self.images[version] = releases.package(lab, version)
            releases.publish(lab, version)

    def ready(self, version: str) -> None:
        """Have a version published that only some faults need."""
        if version in self.images:
            return
        if version == releases.WRONG:
            self.images[version] = releases.package_wrong(self.lab, "2", version)
        elif version in releases.GOOD:
            self.images[version] = releases.package(self.lab, version)
        else:
            self.images[version] = releases.package_script(self.lab, self.engine.api, version)
        releases.publish(self.lab, version)

    def heal(self) -> None:
        """No trouble between the parts any more."""
        for proxy in (self.registry, self.server, self.broker):
            proxy.trouble(None)

    def mend(self) -> None:
        """What a fault has left dead or stopped runs again, so that it does not befall the next one."""
        self.engine.mend()
        lab = self.lab
        for name, start in (
            ("registry", lab.start_registry), ("broker", lab.start_broker), ("server", lab.start_server)
        ):  # fmt: skip
            if lab.pid(name) is None:
                start()

    def cut_network(self) -> None:
        """The device reaches nobody: registry, server and broker refuse."""
        for proxy in (self.registry, self.server, self.broker):
            proxy.trouble(Trouble(refuse=True))
            proxy.break_all()

    def stop(self) -> None:
        """End everything that runs."""
        for name in ("server", "broker", "registry"):
            self.lab.kill(name)
        self.engine.stop()

    def roll_out(self, version: str, device: str) -> None:
        """Want a version on a device; the server takes it from there."""
        self.ready(version)
        self.lab.json("wherry", "rollout", "start", MODEL, version, "--to", f"device={device}")

    def back_up_server(self) -> None:
        """Keep the server's folder as it is now."""
        self.lab.kill("server")
        shutil.copytree(self.lab.folder / "server", self.folder / "server.backup")
        self.lab.start_server()

    def kill_server(self) -> None:
        """SIGKILL."""
        self.lab.kill("server", signal.SIGKILL)

    def kill_broker(self) -> None:
        """SIGKILL."""
        self.lab.kill("broker", signal.SIGKILL)


def read_json(path: Path) -> Any:
    """A JSON file, or None."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
