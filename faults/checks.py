"""The invariants, looked at from outside: engine, packet filter and journal, never the agent's own word."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import docker

from faults import releases
from faults.device import Device

Found = tuple[str, str | None]
"""What was checked, and what is wrong with it, or None."""


def after_convergence(device: Device, expected: str) -> Iterator[Found]:
    """All of them, once nothing is under way."""
    containers = device.containers()
    running = [item for item in containers if item["running"]]
    routes = dict(device.route.read())
    one = len(running) == 1 and running[0]["version"] == expected
    yield "one release runs", None if one else f"{[c['version'] for c in running]} run, {expected} should"
    target = running[0]["port"] if running else None
    yield "the route leads to it", None if routes == {device.port: target} else f"routes are {routes}, not {target}"
    yield "it answers", None if _answers(device, expected) else "the stable port does not answer as it should"
    yield "it survives a reboot", _mortal(device, running)
    yield from signed(device, containers)
    yield from journal(device)
    good = (device.read_rows_safely().get("slot/main") or {}).get("known_good") or {}
    known = (good.get("image") or {}).get("version")
    yield "the journal knows it as known-good", None if known == expected else f"the journal's known-good is {known}"


def _answers(device: Device, expected: str) -> bool:
    """A model that was started anew by the fault may need a while until it answers."""
    deadline = time.monotonic() + 30
    while not device.answers(expected):
        if time.monotonic() > deadline:
            return False
    return True


def _mortal(device: Device, running: list[dict[str, Any]]) -> str | None:
    for item in running:
        policy = device.rig.engine.api.inspect_container(item["id"])["HostConfig"]["RestartPolicy"]["Name"]
        if policy != "unless-stopped":
            return f"{item['name']} would not come back after a reboot (policy {policy})"
    return None


def after_death(device: Device) -> Iterator[Found]:
    """What must hold in the very moment of a crash. Memory always holds two releases here: the slot answers."""
    good = device.answers("1") or device.answers(device.wants)
    yield "something serves while the agent is dead", None if good else "nothing answers at the stable port"
    routes = dict(device.route.read())
    one = set(routes) == {device.port}
    yield "at most one release is active", None if one else f"routes are {routes}"
    yield from signed(device, device.containers())
    yield from journal(device)


def signed(device: Device, containers: list[dict[str, Any]]) -> Iterator[Found]:
    """Nothing that the owner did not sign is there, and it is confined as it should be."""
    api = device.rig.engine.api
    by_digest = {image["digest"]: image for image in device.rig.images.values()}
    for item in containers:
        image = by_digest.get(item["digest"])
        wrong = None
        if image is None or item["image"] != image["config_digest"]:
            wrong = f"{item['name']} runs image {item['image'][:19]}, which nobody signed"
        elif item["running"]:
            wrong = _loose(api, item["id"])
        yield "what is there was signed", wrong


def _loose(api: Any, identity: str) -> str | None:
    try:
        host = api.inspect_container(identity)["HostConfig"]
    except docker.errors.NotFound:
        return None  # it was removed a moment ago
    confined = host["ReadonlyRootfs"] and host["CapDrop"] == ["ALL"] and not host["Privileged"]
    return None if confined else f"container {identity[:12]} is not confined as signed"


def journal(device: Device) -> Iterator[Found]:
    """Marks never fall; known-good is there; and it was proven before it was believed."""
    rows = device.read_rows_safely()
    marks = rows.get("marks")
    yield "the journal is readable", None if marks else "it cannot be read"
    if not marks:
        return
    fallen = fell(device.marks, marks)
    yield "counters never fall", f"{fallen} fell" if fallen else None
    device.marks = marks
    for key, slot in rows.items():
        good = slot.get("known_good") if key.startswith("slot/") else None
        if good:
            yield "the known-good is on the device", _missing(device, good)


def fell(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Names of marks that are lower than they were."""
    found = []
    for name, value in before.items():
        now = after.get(name)
        if isinstance(value, dict):
            found += [
                f"{name}.{key}"
                for key, old in value.items()
                if isinstance(old, int) and not (isinstance(now, dict) and now.get(key, -1) >= old)
            ]
        elif isinstance(value, int | str) and name != "keys" and (now is None or now < value):
            found.append(name)
    return found


def _missing(device: Device, good: Mapping[str, Any]) -> str | None:
    version = good["image"]["version"]
    if version not in releases.GOOD:
        return f"version {version}, which answers wrongly or not at all, was committed"
    image = device.rig.images[version]
    try:
        device.rig.engine.api.inspect_image(f"{image['repository']}@{image['digest']}")
    except docker.errors.ImageNotFound:
        return f"image of known-good version {version} was pruned"
    except docker.errors.DockerException:
        return None  # the engine is the fault just now
    return None
