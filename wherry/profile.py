"""Device profiles: hardware classes as data, how one is detected, and whether an image fits one."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wherry.agent_release import AGENT_RUNTIME
from wherry.errors import ConfigError, InputError, UnsupportedSchema
from wherry.identity import ProfileName
from wherry.release import Needs, ReleaseImage

PROFILE_SCHEMA = 1
Platform = Literal["linux/amd64", "linux/arm64", "linux/arm/v7"]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Detect(_Model):
    """Rules that recognise the hardware; every rule given must hold.

    Attributes:
        architecture: `uname -m` values, any of which matches.
        device_tree_model: a regular expression searched in /proc/device-tree/model.
        l4t_release: the Jetson L4T majors ("36") the profile is for.
        min_memory_mb / max_memory_mb: installed memory, MiB.
        priority: the highest matching priority wins; generic profiles have 0.
    """

    architecture: list[str] = []
    device_tree_model: str | None = None
    l4t_release: list[str] = []
    min_memory_mb: int | None = None
    max_memory_mb: int | None = None
    priority: int = 0


class RunOptions(_Model):
    """How the engine must run a container to reach this hardware (never taken from MQTT).

    Attributes:
        runtime: engine runtime name ("nvidia") or None for the default.
        devices: device nodes to pass through.
        groups: supplementary groups (names) that own these devices.
        env: environment set by the agent, overriding the image's.
    """

    runtime: str | None = None
    devices: list[str] = []
    groups: list[str] = []
    env: dict[str, str] = {}


class Capabilities(_Model):
    """What the hardware can run. `sm` lists GPU architectures ("87"), `cuda`/`tensorrt` majors."""

    runtimes: list[str]
    providers: list[str]
    precisions: list[str]
    memory_mb: int
    l4t: list[str] = []
    sm: list[str] = []
    cuda: list[str] = []
    tensorrt: list[str] = []
    image_limit_mb: int = 2048


class BaseImage(_Model):
    """The base layer for images of this profile.

    Attributes:
        kind: "debian" builds it from Debian packages; "registry" pulls `reference`.
        reference: OCI reference, for kind "registry".
        suite: Debian suite, for kind "debian".
        python: the image's CPython version ("3.11"); decides the wheels.
        glibc: newest manylinux glibc tag usable ("2.36").
    """

    kind: Literal["debian", "registry"]
    reference: str | None = None
    suite: str = "bookworm"
    python: str = "3.11"
    glibc: str = "2.36"


class Sensor(_Model):
    """A temperature (or power) file in sysfs. `scale` turns its integer into `unit`."""

    name: str
    path: str
    unit: Literal["celsius", "watt", "percent"] = "celsius"
    scale: float = 0.001


class DeviceProfile(_Model):
    """One hardware class: one TOML file in device_profiles/."""

    schema_: Annotated[int, Field(alias="schema")] = PROFILE_SCHEMA
    name: ProfileName
    title: str
    platform: Platform
    detect: Detect
    run: RunOptions = RunOptions()
    capabilities: Capabilities
    base: BaseImage
    sensors: list[Sensor] = []


class HostFacts(_Model):
    """What the agent read of the machine it runs on (see `wherry_agent.host`)."""

    architecture: str
    memory_mb: int
    device_tree_model: str | None = None
    l4t_release: str | None = None
    cuda: str | None = None
    tensorrt: str | None = None
    sm: str | None = None
    system: str | None = None
    kernel: str | None = None
    python: str | None = None

    def by_name(self) -> dict[str, str]:
        """What is known, as text, for reports and pages."""
        return {name: str(value) for name, value in self.model_dump(exclude_none=True).items()}


def load_profile(text: str, name: str = "profile") -> DeviceProfile:
    """Read one profile from TOML.

    Raises:
        ConfigError: not TOML, or a field is missing or wrong.
        UnsupportedSchema: a schema version this program does not know.
    """
    try:
        data = tomllib.loads(text)
        if data.get("schema", PROFILE_SCHEMA) != PROFILE_SCHEMA:
            raise UnsupportedSchema(f"device profile {name}", f"has schema {data['schema']}, known is {PROFILE_SCHEMA}")
        return DeviceProfile.model_validate(data)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"device profile {name}", f"is not TOML ({error})") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"device profile {name}", f"field {where}: {first['msg']}") from error


def profiles_folder() -> Path:
    """Where the shipped profiles are: in the wheel, or beside the packages in a checkout."""
    here = Path(__file__).parent
    packaged = here / "device_profiles"
    return packaged if packaged.is_dir() else here.parent / "device_profiles"


def load_profiles(folder: Path | None = None) -> dict[str, DeviceProfile]:
    """All profiles of a folder (default: the shipped ones), by name.

    Raises:
        ConfigError: a file is not a usable profile, or its name differs from the file's.
    """
    profiles = {}
    for path in sorted((folder or profiles_folder()).glob("*.toml")):
        profile = load_profile(path.read_text(encoding="utf-8"), path.stem)
        if profile.name != path.stem:
            raise ConfigError(f"device profile {path.name}", f"calls itself {profile.name!r}", "Rename one of them")
        profiles[profile.name] = profile
    return profiles


def get_profile(name: str, profiles: Mapping[str, DeviceProfile]) -> DeviceProfile:
    """The profile of that name.

    Raises:
        InputError: there is none; the message lists those that exist.
    """
    try:
        return profiles[name]
    except KeyError:
        known = ", ".join(sorted(profiles))
        raise InputError(f"device profile {name!r}", "does not exist", f"Use one of: {known}") from None


def _rule_holds(rule: Detect, facts: HostFacts) -> bool:

    tree = facts.device_tree_model or ""
    l4t_major = (facts.l4t_release or "").split(".")[0]
    return all(
        (
            not rule.architecture or facts.architecture in rule.architecture,
            rule.device_tree_model is None or re.search(rule.device_tree_model, tree) is not None,
            not rule.l4t_release or l4t_major in rule.l4t_release,
            rule.min_memory_mb is None or facts.memory_mb >= rule.min_memory_mb,
            rule.max_memory_mb is None or facts.memory_mb <= rule.max_memory_mb,
        )
    )


def detect_profile(facts: HostFacts, profiles: Iterable[DeviceProfile]) -> DeviceProfile | None:
    """The profile with the highest priority whose rules all hold, or None."""
    matching = [profile for profile in profiles if _rule_holds(profile.detect, facts)]
    return max(matching, key=lambda profile: (profile.detect.priority, profile.name), default=None)


def misfits(image: ReleaseImage, profile: DeviceProfile, facts: HostFacts | None = None) -> list[str]:
    """Why an image cannot run on a device of this profile, in words; empty when it fits.

    Decided from signed metadata alone, before a byte is fetched. With `facts`, the device's own
    memory, L4T release, CUDA, TensorRT and GPU are compared instead of its class's.
    """
    able, needs = profile.capabilities, image.needs
    reasons = []
    if image.profile != profile.name:
        reasons.append(f"the image is made for profile {image.profile}, this device is {profile.name}")
    if image.platform != profile.platform:
        reasons.append(f"the image is for {image.platform}, this device runs {profile.platform}")
    for what, wanted, offered in (
        ("runtime", image.runtime, able.runtimes),
        ("execution provider", image.provider, able.providers),
        ("precision", image.precision, able.precisions),
    ):
        if wanted not in (*offered, AGENT_RUNTIME):
            reasons.append(f"{what} {wanted} is not among this device's: {', '.join(offered)}")
    memory_mb = facts.memory_mb if facts else able.memory_mb
    if needs.memory_mb > memory_mb:
        reasons.append(f"needs {needs.memory_mb} MB of memory, this device has {memory_mb} MB")
    if needs.python and facts and facts.python and facts.python not in needs.python:
        reasons.append(f"is made for Python {' or '.join(needs.python)}, this device has {facts.python}")
    return reasons + _gpu_misfits(needs, able, facts)


def _gpu_misfits(needs: Needs, able: Capabilities, facts: HostFacts | None) -> list[str]:
    """What an image needs of L4T, CUDA, TensorRT and the GPU, and this device has otherwise."""
    reasons = []
    for words, wanted, here, offered in (
        ("L4T ", needs.l4t, facts and facts.l4t_release, able.l4t),
        ("CUDA ", needs.cuda, facts and facts.cuda, able.cuda),
        ("TensorRT ", needs.tensorrt, facts and facts.tensorrt, able.tensorrt),
        ("GPU architecture sm_", needs.sm, facts and facts.sm, able.sm),
    ):
        # What the device says of itself is truer than what its class may have.
        has = [here.split(".")[0]] if here else offered
        if wanted and not set(wanted) & set(has):
            reasons.append(f"needs {words}{' or '.join(wanted)}, this device has {' or '.join(has) or 'none'}")
    return reasons
