"""Docker Swarm as a peer: a service with a health check, an update order and rollback on failure.

Starting the new version first needs Swarm's routing mesh, as two tasks cannot hold one port of the host. The mesh
needs IPVS in the kernel. Where that lacks, only the other order can run, and the report says so.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from swap_load import MODEL
from swap_methods import Peer, Unavailable, answering, wait_until

HEALTH = "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/v2/health/ready', timeout=5)"


def has_ipvs() -> bool:
    """Whether this kernel balances as Swarm's routing mesh wants it."""
    return Path("/proc/net/ip_vs").exists()


class Swarm(Peer):
    """`docker stack deploy` of a service with one replica; the swarm is made by `up` and left by `down`."""

    name = "docker_swarm"
    order, mode, settle = "start-first", "ingress", 6.0
    how = "docker stack deploy: order start-first, health check, rollback on failure, routing mesh"
    _joined = False

    def check(self) -> None:
        """Refuse where it cannot run.

        Raises:
            Unavailable: the text says why.
        """
        with contextlib.suppress(OSError):  # no modprobe: a kernel without modules
            self._lab.run("modprobe", "-q", "ip_vs", check=False)
        if not has_ipvs():
            raise Unavailable(
                "this kernel has no IPVS, which Swarm's routing mesh needs, and without the mesh two tasks cannot "
                "share the published port, so that a new version cannot be started before the old one ends"
            )

    def up(self, version: str) -> None:
        """Make this engine a swarm of one, then serve a version."""
        self.check()
        state = self._lab.run("docker", "info", "-f", "{{.Swarm.LocalNodeState}}").stdout.strip()
        if state != "inactive":
            raise Unavailable(f"the engine's swarm is {state} already: somebody else's, it is left alone")
        self._networks = self._network_names()
        self._joined = True
        self._lab.run("docker", "swarm", "init", "--advertise-addr", "127.0.0.1", "--listen-addr", "127.0.0.1:0")
        super().up(version)

    def _stack(self, version: str) -> dict[str, Any]:
        update = {"order": self.order, "failure_action": "rollback", "monitor": "3s", "parallelism": 1}
        # Patient: on a busy machine a check that gives up early would have Swarm roll a good version back.
        health = {
            "test": ["CMD", "python3", "-c", HEALTH],
            "interval": "2s", "timeout": "10s", "retries": 5, "start_period": "30s",
        }  # fmt: skip
        deploy = {"replicas": 1, "update_config": update, "rollback_config": {"order": self.order}}
        if self.mode == "host":
            deploy["endpoint_mode"] = "dnsrr"
        service = {
            "image": self._images[version],
            "init": True,
            "read_only": True,
            "healthcheck": health,
            "ports": [{"target": 8080, "published": self.port, "mode": self.mode}],
            "deploy": deploy,
        }
        return {"version": "3.8", "services": {MODEL: service}}

    def swap(self, version: str) -> None:
        """Deploy, and wait until Swarm says that the update is completed."""
        path = self._lab.folder / f"{self._title}.json"
        path.write_text(json.dumps(self._stack(version)))
        first = not self._updates()
        self._lab.run("docker", "stack", "deploy", "--resolve-image", "never", "-c", str(path), self._title)
        if first:
            return
        wanted = (self._images[version], "completed")
        try:
            wait_until(lambda: self._updates() == wanted, "Swarm's update was not completed")
        except RuntimeError as error:
            raise RuntimeError(f"{error}; Swarm says: {self._updates()}") from error

    def _updates(self) -> tuple[str, str] | None:
        """The image that the service wants and the state of its last update; None without a service."""
        shown = self._lab.run("docker", "service", "inspect", f"{self._title}_{MODEL}", check=False)
        if shown.returncode:
            return None
        service = json.loads(shown.stdout)[0]
        image = service["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"]
        return image, (service.get("UpdateStatus") or {}).get("State", "")

    def _network_names(self) -> set[str]:
        return set(self._lab.run("docker", "network", "ls", "--format", "{{.Name}}").stdout.split())

    def down(self) -> None:
        """Leave the swarm, and remove the networks that came with it."""
        if self._joined:
            self._lab.run("docker", "stack", "rm", self._title, check=False)
            wait_until(lambda: answering(self.port) is None, "Swarm's service does not end")
            self._lab.run("docker", "swarm", "leave", "--force", check=False)
            for network in self._network_names() - self._networks:
                if network == "docker_gwbridge" or network.startswith(self._title):
                    self._lab.run("docker", "network", "rm", network, check=False)
            self._joined = False
        super().down()


class SwarmStopFirst(Swarm):
    """The order that needs no routing mesh: the port belongs to the host, the old task ends first."""

    name = "docker_swarm_stop_first"
    order, mode, settle = "stop-first", "host", 1.0
    how = "docker stack deploy: order stop-first, health check, rollback on failure, port of the host"

    def check(self) -> None:
        """It runs on every kernel that has overlay networks."""
