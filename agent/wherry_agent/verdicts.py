"""What `wherry-agent doctor` concludes from what was found: facts in, a check out. Pure; `examination` looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from wherry.profile import DeviceProfile, HostFacts
from wherry.questions import Check

_GB = 1_000_000_000
_OLDEST_API = (1, 40)
_POOR_DRIVERS = {"vfs", "devicemapper", "aufs"}
_VOLATILE = {"tmpfs", "ramfs", "overlay", "squashfs"}


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What the engine says of itself; `problem` when it says nothing.

    Attributes:
        socket: "absent", "forbidden" or "usable"; empty when the engine is not on a socket of this machine.
    """

    url: str
    socket: str = ""
    problem: str = ""
    version: str = ""
    api: tuple[int, ...] = ()
    driver: str = ""
    root: str = ""
    memory_limits: bool = True
    runtimes: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class DiskFacts:
    """A filesystem."""

    path: str
    free_bytes: int = 0
    total_bytes: int = 0
    free_inodes: int = 0
    inodes: int = 0
    kind: str = ""
    writable: bool = True
    problem: str = ""


@dataclass(frozen=True, slots=True)
class IdentityFacts:
    """The device's certificate, where there is one.

    Attributes:
        problem: the identity is there but not usable.
    """

    device: str
    profile: str = ""
    begins: datetime | None = None
    expires: datetime | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class PeerFacts:
    """Another machine: how it was reached, or why not.

    Attributes:
        ahead: by how much this device's clock is ahead of the peer's, if the peer told its time.
        fix: what to do about the problem, if that is known.
    """

    address: str
    problem: str = ""
    detail: str = ""
    ahead: timedelta | None = None
    fix: str = ""


@dataclass(frozen=True, slots=True)
class AcceleratorFacts:
    """What of the profile's hardware access is missing."""

    missing_devices: Sequence[str] = ()
    missing_groups: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class ServiceFacts:
    """The agent itself.

    Attributes:
        unit: what systemd says of it ("active", "inactive", …); empty where there is no systemd.
    """

    running: bool
    unit: str = ""


def ok(name: str, detail: str) -> Check:
    """Nothing to mend."""
    return Check(name=name, level="ok", detail=detail)


def warning(name: str, detail: str, fix: str) -> Check:
    """It works, for now."""
    return Check(name=name, level="warning", detail=detail, fix=fix)


def error(name: str, detail: str, fix: str) -> Check:
    """It does not work."""
    return Check(name=name, level="error", detail=detail, fix=fix)


def profile(facts: HostFacts, found: DeviceProfile | None, enrolled: str) -> Check:
    """Which device profile this machine has."""
    machine = facts.device_tree_model or facts.system or "this machine"
    what = f"{machine}, {facts.architecture}, {facts.memory_mb} MB"
    if found is None and not enrolled:
        return error("profile", f"none fits {what}", "Name one with `wherry-agent enroll --profile NAME`")
    if enrolled and (found is None or found.name != enrolled):
        detected = found.name if found else "none"
        return warning(
            "profile", f"enrolled as {enrolled}, detected {detected} ({what})", "Enrol again if the board changed"
        )
    return ok("profile", f"{enrolled or (found.name if found else '')} ({what})")


def engine(facts: EngineFacts) -> Check:
    """The container engine answers and is new enough."""
    if facts.socket == "absent":
        fix = "Install Docker (Debian: `apt-get install docker.io`) and start it: `systemctl start docker`"
        return error("engine", f"there is no socket at {facts.url}", fix)
    if facts.socket == "forbidden":
        return error("engine", f"this user may not use {facts.url}", "Run as root, or add the user to group docker")
    if facts.problem:
        return error("engine", f"{facts.url} does not answer: {facts.problem}", "Start it: `systemctl start docker`")
    said = f"Docker {facts.version} at {facts.url}"
    if facts.api < _OLDEST_API:
        return error("engine", f"{said} is too old", "Install Docker 20.10 or newer")
    return ok("engine", said)


def storage(facts: EngineFacts) -> Check:
    """How the engine keeps images."""
    if facts.driver in _POOR_DRIVERS:
        fix = 'Set "storage-driver": "overlay2" in /etc/docker/daemon.json on an ext4 or xfs disk'
        return warning("storage driver", f"{facts.driver} wastes disk and time", fix)
    return ok("storage driver", f"{facts.driver} in {facts.root}")


def cgroups(facts: EngineFacts) -> Check:
    """Whether a model's memory limit is kept by the kernel."""
    if facts.memory_limits:
        return ok("memory limits", "the kernel keeps models to their memory limit")
    fix = "Add `cgroup_enable=memory cgroup_memory=1` to the kernel's command line (Raspberry Pi: cmdline.txt), reboot"
    return error("memory limits", "the kernel does not limit containers' memory", fix)


def disk(facts: DiskFacts, watermark_bytes: int) -> Check:
    """Room for images."""
    if facts.problem:
        return error("disk", f"{facts.path}: {facts.problem}", "Mount it again or check the disk")
    free, total = facts.free_bytes / _GB, facts.total_bytes / _GB
    said = f"{free:.1f} of {total:.1f} GB free at {facts.path}"
    if facts.free_bytes < watermark_bytes:
        fix = "Free disk (`docker system df` shows what images take), or set watermark_mb in agent.toml"
        return error("disk", f"{said}, {watermark_bytes / _GB:.1f} GB must stay free", fix)
    if facts.free_bytes < watermark_bytes + _GB:
        return warning("disk", f"{said}: little room for another image", "Free disk before the next release")
    return ok("disk", said)


def inodes(facts: DiskFacts) -> Check:
    """Room for files."""
    if not facts.inodes:  # btrfs and the like make them as needed
        return ok("inodes", f"made as needed at {facts.path}")
    share = 100 * facts.free_inodes / facts.inodes
    said = f"{share:.0f} % free at {facts.path}"
    if share < 1:
        return error("inodes", said, "Remove what holds many small files: `docker image prune`, old logs, caches")
    return warning("inodes", said, "Remove what holds many small files soon") if share < 5 else ok("inodes", said)


def state_folder(facts: DiskFacts) -> Check:
    """The agent's memory outlives a reboot."""
    if facts.problem or not facts.writable:
        words = facts.problem or "cannot be written"
        return error(
            "state folder", f"{facts.path}: {words}", "Run as root, mount it read-write, or use another --state"
        )
    if facts.kind in _VOLATILE:
        fix = "Use a folder on a real disk, or mount a volume there: what the device has accepted must outlive a reboot"
        return warning("state folder", f"{facts.path} is on {facts.kind}, which forgets", fix)
    return ok("state folder", f"{facts.path} on {facts.kind or 'disk'}, writable")


def clock(now: datetime, built: datetime, identity: IdentityFacts | None, ahead: timedelta | None) -> Check:
    """Certificates and signed metadata are judged by it."""
    said = f"{now:%F %T}Z"
    fix = "Set it: `timedatectl set-ntp true`, or `date -s`; without network a battery-backed clock"
    if ahead is not None and abs(ahead) > timedelta(minutes=5):
        side = "ahead of" if ahead > timedelta(0) else "behind"
        return error("clock", f"{said} is {_length(abs(ahead))} {side} the server's", fix)
    if now < built:
        return error("clock", f"{said} is before this program was made ({built:%F})", fix)
    if identity and identity.begins and now < identity.begins:
        return error("clock", f"{said} is before the device's certificate begins ({identity.begins:%F %T}Z)", fix)
    if ahead is not None and abs(ahead) > timedelta(seconds=30):
        return warning("clock", f"{said}, {_length(abs(ahead))} off the server's", fix)
    return ok("clock", said + (", agrees with the server's" if ahead is not None else ""))


def identity(facts: IdentityFacts | None, now: datetime) -> Check:
    """Who the device is, and for how long it can prove it."""
    if facts is None:
        fix = "Make a join token with `wherry device token` and run `wherry-agent enroll TOKEN`"
        return warning("identity", "not enrolled: broker, server and registry were not asked", fix)
    if facts.problem or facts.begins is None or facts.expires is None:
        return error("identity", facts.problem, "Enrol again with a new join token (`wherry device token`)")
    said = f"{facts.device}, certificate valid until {facts.expires:%F %T}Z"
    if facts.expires <= now:
        fix = "Start the agent: it renews for 90 days after the end; later, enrol again"
        return error("identity", f"{facts.device}, certificate expired on {facts.expires:%F %T}Z", fix)
    if now > facts.begins + (facts.expires - facts.begins) * 0.8:
        return warning(
            "identity", f"{said}: should have been renewed", "Start the agent and see that it reaches the server"
        )
    return ok("identity", said)


def broker(facts: PeerFacts) -> Check:
    """The control channel."""
    if facts.problem:
        fix = "Check the broker's address and port (firewall) and that this device was not revoked"
        return error("broker", f"{facts.address}: {facts.problem}", fix)
    return ok("broker", f"{facts.address} accepts this device's certificate")


def server(facts: PeerFacts) -> Check:
    """The HTTPS API."""
    if facts.problem:
        return error("server", f"{facts.address}: {facts.problem}", "Check the address, the network and that it runs")
    return ok("server", f"{facts.address} answers")


def registry(found: Sequence[PeerFacts]) -> Check:
    """Where images come from. Which registries is known once something was assigned."""
    if not found:
        return ok("registry", "nothing was assigned yet, so none was asked")
    broken = [facts for facts in found if facts.problem]
    if broken:
        words = "; ".join(f"{facts.address}: {facts.problem}" for facts in broken)
        usual = "Check the registry's address and the network; models that serve go on serving"
        return error("registry", words, broken[0].fix or usual)
    return ok("registry", "; ".join(f"{facts.address} {facts.detail or 'lets this device in'}" for facts in found))


def packet_filter(problem: str) -> Check:
    """Slots' stable ports are turned with nftables."""
    if not problem:
        return ok("nftables", "a table of our own can be made")
    if "No such file" in problem and "nft" in problem:
        return error("nftables", "nft is not installed", "Install it (Debian: `apt-get install nftables`)")
    if "not permitted" in problem:
        return error("nftables", "this user may not change the packet filter", "Run as root or with CAP_NET_ADMIN")
    return error("nftables", problem, "Check that the kernel has nf_tables and nft_redir (`modprobe nft_redir`)")


def proxy(lacks: str, version: str, slots: Sequence[int]) -> Check:
    """haproxy, for what the kernel's redirect cannot do.

    Args:
        lacks: why it cannot be used; empty when it can.
        version: of the program.
        slots: stable ports that it is to lead, by what is written.
    """
    if lacks:
        lost = (
            f"{lacks}. Without it, a swap may lose requests of images that cannot drain, and callers do not "
            "wait where memory holds one version only: they fail for seconds"
        )
        return warning("haproxy", lost, "`apt-get install haproxy`, then `systemctl disable --now haproxy`")
    used = f"knows slots at {', '.join(map(str, slots))}" if slots else "starts when a slot needs it"
    return ok("haproxy", f"{version}: {used}")


def memory(total_mb: int, available_mb: int) -> Check:
    """Room for a candidate beside what serves."""
    said = f"{available_mb} of {total_mb} MB available"
    if available_mb < 64:
        return error("memory", said, "Stop what is not needed, or give models smaller limits")
    if available_mb < 192:
        return warning("memory", f"{said}: swaps stop the old model first", "Stop what is not needed")
    return ok("memory", said)


def accelerator(wanted: DeviceProfile, facts: AcceleratorFacts, runtimes: frozenset[str]) -> Check | None:
    """What the profile passes into containers; None when it passes nothing."""
    run = wanted.run
    if not (run.runtime or run.devices or run.groups):
        return None
    if run.runtime and run.runtime not in runtimes:
        fix = "Install the NVIDIA container toolkit, `nvidia-ctk runtime configure`, restart Docker"
        return error("accelerator", f"the engine has no runtime {run.runtime!r}", fix)
    missing = [f"device {node}" for node in facts.missing_devices] + [f"group {name}" for name in facts.missing_groups]
    if missing:
        fix = f"Load the driver, or enrol with a profile other than {wanted.name}"
        return error("accelerator", f"missing: {', '.join(missing)}", fix)
    parts = [f"runtime {run.runtime}"] if run.runtime else []
    return ok("accelerator", ", ".join([*parts, *run.devices, *run.groups]))


def service(facts: ServiceFacts, enrolled: bool) -> Check:
    """Something carries releases here."""
    if facts.running:
        tail = f", unit {facts.unit}" if facts.unit else ""
        if facts.unit and facts.unit != "active":
            return warning(
                "agent", f"runs, but not as a service (unit {facts.unit})", "`systemctl enable --now wherry-agent`"
            )
        return ok("agent", f"runs{tail}")
    if not enrolled:
        return ok("agent", "does not run: not enrolled yet")
    fix = "`systemctl start wherry-agent`" if facts.unit else "Run `wherry-agent run`"
    return error("agent", "does not run; what serves goes on serving", fix)


def unknown(name: str, problem: str) -> Check:
    """A probe did not end, or broke."""
    return error(
        name, f"could not be examined: {problem}", "Run `wherry-agent doctor` on the device and see if it stays"
    )


def _length(length: timedelta) -> str:
    seconds = length.total_seconds()
    for size, word in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {word}"
    return f"{seconds:.0f} s"
