"""The container engine's containers; its images are in `wherry_agent.images`.

Labels say what a container is, so that the engine itself can tell the agent after a restart. A container
without this device's label is never touched.
"""

from __future__ import annotations

import grp
import re
import secrets
from collections.abc import Iterator, Mapping
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError

from wherry.errors import Conflict, EngineError, NotFound, WherryError
from wherry.gates import recorded_requests
from wherry.profile import RunOptions
from wherry.release import LABEL
from wherry_agent.archive import first_file
from wherry_agent.assignment import TrustedImage
from wherry_agent.engine_client import docker, wrapped
from wherry_agent.images import Images
from wherry_agent.observed import Container, ContainerState, RestartPolicy, Share
from wherry_agent.ports import Cancel

_IMAGE = TypeAdapter(TrustedImage)
_USER = "65532:65532"
_DRAIN_MARGIN_SECONDS = 2
_NANO = 1_000_000_000
_SHARES: Mapping[Share, int] = {"full": 1024, "small": 128}
_TOKEN = "WHERRY_CONTROL_TOKEN"  # noqa: S105 - the name of a variable
_UP_FOR_LONG = re.compile(r"Up (About an? |\d+ )(minute|hour|day|week|month|year)")
"""Free of charge with every list; other words mean that a container must be asked when it began."""


class DockerEngine:
    """Implements `ports.Engine`. Thread-safe: each call uses the SDK's connection pool.

    Args:
        device: only containers with this device's label are seen.
        options: the device profile's run options.
        url: the engine's address, `unix:///var/run/docker.sock`.
        addresses: host addresses to publish containers on; loopback, unless told otherwise.
        timeout: seconds that the engine may take to answer.
        log_size: bytes of container log kept by the engine.
    """

    def __init__(
        self,
        device: str,
        options: RunOptions,
        url: str,
        addresses: tuple[str, ...] = ("127.0.0.1",),
        timeout: int = 15,
        log_size: str = "1m",
    ) -> None:
        self._addresses = addresses
        self._device = device
        self._options = options
        self._url = url
        self._timeout = timeout
        self._log_size = log_size
        self._connected: docker.APIClient | None = None
        self._images = Images(lambda: self._client, url)

    @property
    def _client(self) -> Any:
        """Connected at first use: the engine may be down when the agent starts."""
        if self._connected is None:
            self._connected = docker.APIClient(base_url=self._url, version="auto", timeout=self._timeout)
        return self._connected

    def observe(self) -> Mapping[str, Container]:
        """This device's containers, from one list call."""
        with wrapped("containers"):
            found = self._client.containers(all=True, filters={"label": f"{LABEL}device={self._device}"})
        containers = (_from_list(item) for item in found)
        return {container.name: container for container in containers}

    def inspect(self, name: str) -> Container | None:
        """One container with restart policy and exit code; None when absent."""
        with wrapped(f"container {name}"):
            try:
                item = self._client.inspect_container(name)
            except docker.errors.NotFound:
                return None
        if (item["Config"]["Labels"] or {}).get(f"{LABEL}device") != self._device:
            raise Conflict(
                f"container {name}", "exists and was not made by this agent", "Remove or rename that container"
            )  # fmt: skip
        return _from_inspect(item)

    def has_image(self, image: TrustedImage) -> bool:
        """Whether exactly the signed image is on the device."""
        return self._images.id_of(image) is not None

    def verify_image(self, image: TrustedImage, cancel: Cancel) -> None:
        """See that what the engine has on disk is what was signed."""
        self._images.verify(image, cancel)

    def create(self, name: str, slot: str, image: TrustedImage, port: int, slot_port: int) -> None:
        """Create the container, hardened and not running, unless it exists."""
        if self.inspect(name) is not None:
            return
        image_id = self._images.id_of(image)
        if image_id is None:
            raise EngineError(f"image of release {image.image.label()}", "is not on the device (any more)")
        run = image.image.run
        with wrapped(f"container {name}"):
            self._client.create_container(
                image_id,
                command=run.command or None,
                user=_USER,
                environment=_environment(image) | self._options.env,
                ports=[run.port],
                labels=_labels(self._device, slot, image, port, slot_port),
                name=name,
                host_config=self._host_config(image, port),
            )

    def _host_config(self, image: TrustedImage, port: int) -> Any:
        """Read-only, no capabilities, no new privileges, bounded in every direction, not published to the network."""
        run, options = image.image.run, self._options
        extra: dict[str, Any] = {}
        if options.runtime:
            extra["runtime"] = options.runtime
        if float(run.cpus) > 0:
            extra["nano_cpus"] = int(float(run.cpus) * _NANO)
        return self._client.create_host_config(
            port_bindings={run.port: [(address, port) for address in self._addresses]},
            restart_policy={"Name": "no"},
            read_only=True,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges:true"],
            pids_limit=run.pids,
            mem_limit=f"{run.memory_mb}m",
            memswap_limit=f"{run.memory_mb}m",
            ulimits=[
                docker.types.Ulimit(name="nofile", soft=4096, hard=4096),
                docker.types.Ulimit(name="core", soft=0, hard=0),
            ],
            ipc_mode="private",
            init=True,
            log_config=docker.types.LogConfig(type="local", config={"max-size": self._log_size, "max-file": "2"}),
            tmpfs={"/tmp": "rw,noexec,nosuid,nodev,size=8m,uid=65532,gid=65532,mode=0700"},  # noqa: S108
            devices=[f"{node}:{node}:rw" for node in dict.fromkeys([*options.devices, *run.devices])],
            group_add=_group_ids(options.groups),
            **extra,
        )

    def start(self, name: str) -> None:
        """Start a container; nothing when it runs."""
        found = self._ours(name)
        with wrapped(f"container {name}"):
            if found.state == "paused":
                self._client.unpause(name)
            self._client.start(name)

    def stop(self, name: str, drain_seconds: int) -> None:
        """SIGTERM, then SIGKILL after the drain and a margin."""
        found = self.inspect(name)
        if found is None or not (found.running or found.state == "paused"):
            return
        with wrapped(f"container {name}"):
            if found.state == "paused":
                self._client.unpause(name)
            self._client.stop(name, timeout=drain_seconds + _DRAIN_MARGIN_SECONDS)

    def restart_policy(self, name: str, policy: RestartPolicy) -> None:
        """Change the policy of an existing container."""
        if self._ours(name).restart != policy:
            with wrapped(f"container {name}"):
                self._client.update_container(name, restart_policy={"Name": policy})

    def processor_share(self, name: str, share: Share) -> None:
        """Change how much of a busy processor a container gets."""
        if self._ours(name).share != share:
            with wrapped(f"container {name}"):
                self._client.update_container(name, cpu_shares=_SHARES[share])

    def remove(self, name: str) -> None:
        """Kill and remove a container of ours; nothing when absent."""
        if self.inspect(name) is None:
            return
        with wrapped(f"container {name}"):
            try:
                self._client.remove_container(name, force=True, v=True)
            except docker.errors.NotFound:
                return

    def remove_image(self, image: TrustedImage) -> None:
        """Remove the reference by digest; the engine keeps what a container or another name needs."""
        self._images.remove(image)

    def read_file(self, name: str, path: str, limit: int) -> bytes:
        """A file from a container that need not run."""
        self._ours(name)
        with wrapped(f"file {path} of container {name}"):
            try:
                stream, _ = self._client.get_archive(name, path)
            except docker.errors.NotFound:
                raise NotFound(f"file {path} of container {name}", "does not exist") from None
            return first_file(stream, path, limit)

    def read_tree(self, name: str, path: str) -> Iterator[bytes]:
        """A folder of a container that need not run, as a tar stream."""
        self._ours(name)
        with wrapped(f"folder {path} of container {name}"):
            try:
                stream, _ = self._client.get_archive(name, path)
            except docker.errors.NotFound:
                raise NotFound(f"folder {path} of container {name}", "does not exist") from None
            yield from stream

    def memory_bytes(self, name: str) -> int | None:
        """What the container's processes hold; file cache, which the kernel takes back, does not count."""
        self._ours(name)
        with wrapped(f"memory of container {name}"):
            found = self._client.stats(name, stream=False, one_shot=True).get("memory_stats", {})
        if "usage" not in found:
            return None
        detail = found.get("stats", {})
        cache = sum(detail.get(f"total_{kind}", detail.get(kind, 0)) for kind in ("inactive_file", "active_file"))
        return max(0, int(found["usage"]) - int(cache))

    def last_words(self, name: str) -> str:
        """The end of the container's log, one line; empty when there is none to be had."""
        try:
            with wrapped(f"log of container {name}"):
                raw = self._client.logs(name, tail=3, stdout=True, stderr=True)
        except WherryError:
            return ""
        lines = [line.strip() for line in raw.decode("utf-8", "replace").splitlines() if line.strip()]
        return " | ".join(lines)[-300:]

    def logs(self, name: str, lines: int, since: float | None) -> bytes:
        """The newest lines of a container's log, each with its instant. The engine keeps little, so this is little."""
        self._ours(name)
        with wrapped(f"log of container {name}"):
            found: bytes = self._client.logs(name, tail=lines, timestamps=True, since=since)
        return found

    def _ours(self, name: str) -> Container:
        found = self.inspect(name)
        if found is None:
            raise EngineError(f"container {name}", "does not exist")
        return found


def _environment(image: TrustedImage) -> dict[str, str]:
    """What the owner signed, and what the model server must know. Its token is made here and stays in the engine."""
    run, recorded = image.image.run, recorded_requests(image.image.gates)
    keeps = {"WHERRY_REHEARSAL": str(recorded), _TOKEN: secrets.token_urlsafe(24)} if recorded else {}
    return {**run.env, "WHERRY_DRAIN_SECONDS": str(run.drain_seconds), **keeps}


def _labels(device: str, slot: str, image: TrustedImage, port: int, slot_port: int) -> dict[str, str]:
    values = {
        "device": device, "slot": slot, "release": image.digest, "role": "model", "model": image.image.model,
        "version": image.image.version, "counter": str(image.image.counter), "port": str(port),
        "slot-port": str(slot_port), "signed": _IMAGE.dump_json(image, exclude_none=True).decode(),
    }  # fmt: skip
    return {LABEL + key: value for key, value in values.items()}


def _from_labels(name: str, state: str, labels: Mapping[str, str], **extra: Any) -> Container:
    def number(key: str) -> int:
        text = labels.get(LABEL + key, "")
        return int(text) if text.isdigit() else 0

    return Container(
        name=name,
        slot=labels.get(f"{LABEL}slot", ""),
        digest=labels.get(f"{LABEL}release", ""),
        state=cast(ContainerState, state),
        port=number("port"),
        slot_port=number("slot-port"),
        **extra,
    )


def _from_list(item: Mapping[str, Any]) -> Container:
    young = _UP_FOR_LONG.match(item.get("Status") or "") is None
    return _from_labels(item["Names"][0].lstrip("/"), item["State"], item["Labels"], young=young)


def _from_inspect(item: Mapping[str, Any]) -> Container:
    labels, state = item["Config"]["Labels"], item["State"]
    try:
        image = _IMAGE.validate_json(labels.get(f"{LABEL}signed", ""))
    except ValidationError:
        image = None
    return _from_labels(
        item["Name"].lstrip("/"),
        state["Status"],
        labels,
        image=image,
        restart=item["HostConfig"]["RestartPolicy"]["Name"] or "no",
        exit_code=state["ExitCode"],
        oom_killed=state["OOMKilled"],
        restarts=int(item.get("RestartCount") or 0),
        share="small" if item["HostConfig"].get("CpuShares") == _SHARES["small"] else "full",
        token=next((e.partition("=")[2] for e in item["Config"].get("Env") or [] if e.startswith(_TOKEN + "=")), ""),
    )


def _group_ids(names: list[str]) -> list[str]:
    """Group ids of this host; a name means nothing inside the image."""
    found = []
    for name in names:
        try:
            found.append(str(grp.getgrnam(name).gr_gid))
        except KeyError:
            raise EngineError(f"group {name}", "of the device profile does not exist on this device") from None
    return found
