"""The same image in a small virtual machine, at its best: kernel started directly, paravirtual disk and network.

There is no boot loader, no init system and no unused device: everything that would make the virtual machine look
worse than it must is left out.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wherry.errors import BuildError
from wherry.release import SERVING_PORT
from wherry_cli.costs.layout import Image, make_disk
from wherry_cli.costs.ways import end
from wherry_cli.packaging.tools import run_tool

_MEMORY_MB = 512
_HOST, _GUEST = "10.199.7.1", "10.199.7.2"
_MODULES = (
    "virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_mmio",
    "failover", "net_failover", "virtio_net", "virtio_blk", "crc16", "mbcache", "jbd2", "ext4",
)  # fmt: skip
"""In the order of their dependencies; those that a kernel has built in are not files."""
_INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /root
/bin/busybox mount -t devtmpfs dev /dev
for module in {modules}; do /bin/busybox insmod /modules/$module.ko; done
/bin/busybox ip link set lo up
/bin/busybox ip addr add {guest}/30 dev eth0
/bin/busybox ip link set eth0 up
until /bin/busybox mount -t ext4 -o ro /dev/vda /root; do /bin/busybox usleep 5000; done
/bin/busybox mount -t proc proc /root/proc
/bin/busybox mount -t sysfs sys /root/sys
/bin/busybox mount -t devtmpfs dev /root/dev
/bin/busybox mount -t tmpfs tmp /root/tmp
exec /bin/busybox env -i {variables} /bin/busybox chroot /root {command}
"""


@dataclass(frozen=True, slots=True)
class _Machine:
    """What differs between architectures."""

    program: str
    kind: str
    console: str
    package: str
    processor: str


# A virtual machine inside a virtual machine often may not set the register that arch-capabilities names.
_MACHINES = {
    "x86_64": _Machine("qemu-system-x86_64", "q35", "ttyS0", "linux-image-cloud-amd64", "host,arch-capabilities=off"),
    "aarch64": _Machine("qemu-system-aarch64", "virt", "ttyAMA0", "linux-image-cloud-arm64", "host"),
}


def why_not() -> str:
    """Why no virtual machine can be measured here; empty when one can."""
    machine = _MACHINES.get(platform.machine())
    if machine is None:
        return f"no virtual machine is known for {platform.machine()}"
    needed = {
        machine.program: f"qemu-system-{'x86' if platform.machine() == 'x86_64' else 'arm'}",
        "busybox": "busybox-static",
        "mke2fs": "e2fsprogs",
        "ip": "iproute2",
        "dpkg-deb": "dpkg",
    }
    paths = os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/bin"
    missing = [package for program, package in needed.items() if shutil.which(program, path=paths) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (apt-get install {' '.join(missing)})"
    if not Path("/dev/net/tun").exists():
        return "this machine has no /dev/net/tun to connect a virtual machine with"
    return ""


def _accelerated() -> bool:
    """Whether the processor runs guests itself: some hosts show /dev/kvm without the means behind it."""
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR))
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return platform.machine() != "x86_64" or re.search(r"^flags.*\b(vmx|svm)\b", flags, re.MULTILINE) is not None


class Machine:
    """A virtual machine that runs the image as its only program.

    Args:
        image: what it runs.
        root: the image's files, unpacked; size: their bytes.
        folder: for disk, kernel and initial file system.
        cache: where a kernel that had to be fetched is kept.

    Raises:
        BuildError: a tool failed, or no kernel can be had.
    """

    name = "virtual machine"
    host, port = _GUEST, SERVING_PORT

    def __init__(self, image: Image, root: Path, size: int, folder: Path, cache: Path) -> None:
        self._machine = _MACHINES[platform.machine()]
        self.emulated = not _accelerated()
        how = "emulated, for want of KVM: its speed says little" if self.emulated else "KVM"
        self.note = f"qemu, {how}; kernel started directly, {_MEMORY_MB} MB"
        self._tap = f"wherry{os.getpid() % 100_000}"
        self._log = folder / "machine.log"
        self._disk, self._initial = folder / "disk.ext4", folder / "initial.cpio"
        self._kernel, modules = _kernel(self._machine.package, cache)
        make_disk(root, size, self._disk)
        _initial_files(image, modules, folder / "initial", self._initial)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def disk_bytes(self) -> int:
        """Disk, kernel and initial file system, as allocated."""
        files = (self._disk, self._kernel, self._initial)
        return sum(path.stat().st_blocks * 512 for path in files)

    def download_bytes(self, folder: Path) -> int:
        """What a device would fetch: the three files, compressed, since a disk has no layers."""
        packed = folder / "machine.tar.gz"
        names = [str(path) for path in (self._disk, self._kernel, self._initial)]
        run_tool(["tar", "--sparse", "-czf", str(packed), *names], "disk of the virtual machine")
        size = packed.stat().st_size
        packed.unlink()
        return size

    def start(self) -> None:
        """Begin to run; returns at once."""
        for step in (
            ["tuntap", "add", "dev", self._tap, "mode", "tap"],
            ["addr", "add", f"{_HOST}/30", "dev", self._tap],
            ["link", "set", self._tap, "up"],
        ):
            run_tool(["/sbin/ip", *step], "network of the virtual machine")
        machine = self._machine
        vhost = ",vhost=on" if Path("/dev/vhost-net").exists() else ""
        command = [
            machine.program, "-machine", machine.kind, "-accel", "tcg" if self.emulated else "kvm",
            "-cpu", "max" if self.emulated else self._machine.processor,
            "-smp", str(os.cpu_count() or 1), "-m", str(_MEMORY_MB),
            "-nodefaults", "-no-user-config", "-display", "none", "-serial", f"file:{self._log}", "-no-reboot",
            "-kernel", str(self._kernel), "-initrd", str(self._initial),
            "-append", f"console={machine.console} quiet panic=-1 loglevel=3",
            "-drive", f"file={self._disk},format=raw,if=none,id=disk,readonly=on",
            "-device", "virtio-blk-pci,drive=disk",
            "-netdev", f"tap,id=net,ifname={self._tap},script=no,downscript=no{vhost}",
            "-device", "virtio-net-pci,netdev=net",
        ]  # fmt: skip
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def stop(self) -> None:
        """End it, and take its network away."""
        end(self._process)
        self._process = None
        subprocess.run(["/sbin/ip", "link", "del", self._tap], capture_output=True, check=False, timeout=30)

    def processes(self) -> list[int]:
        """The emulator, which holds the guest's memory."""
        return [self._process.pid] if self._process else []


def _initial_files(image: Image, modules: Path, folder: Path, target: Path) -> None:
    """Write the file system that the kernel starts with: busybox, drivers, and a script that starts the image."""
    (folder / "bin").mkdir(parents=True)
    (folder / "modules").mkdir()
    busybox = shutil.which("busybox", path=os.environ.get("PATH", "") + ":/bin:/usr/bin") or "busybox"
    shutil.copy(busybox, folder / "bin" / "busybox")
    present = {path.stem: path for path in modules.rglob("*.ko")}
    wanted = [name for name in _MODULES if name in present]
    for name in wanted:
        shutil.copy(present[name], folder / "modules" / f"{name}.ko")
    variables = shlex.join(f"{name}={value}" for name, value in image.environment.items())
    init = folder / "init"
    init.write_text(
        _INIT.format(modules=" ".join(wanted), guest=_GUEST, variables=variables, command=shlex.join(image.command))
    )
    init.chmod(0o755)
    names = "\n".join(str(path.relative_to(folder)) for path in sorted(folder.rglob("*")))
    with target.open("wb") as file:
        done = subprocess.run(
            [busybox, "cpio", "-o", "-H", "newc"], cwd=folder, input=names.encode(), stdout=file,
            stderr=subprocess.PIPE, check=False, timeout=60,
        )  # fmt: skip
    if done.returncode:
        raise BuildError("virtual machine", f"busybox cpio failed: {done.stderr.decode('utf-8', 'replace')[:200]}")


def _kernel(package: str, cache: Path) -> tuple[Path, Path]:
    """A kernel for virtual machines with its modules: this machine's, or Debian's, fetched once."""
    for root in (cache / "kernel", Path("/")):
        for kernel in sorted((root / "boot").glob("vmlinuz-*cloud*"), reverse=True):
            modules = root / "lib" / "modules" / kernel.name.removeprefix("vmlinuz-")
            if modules.is_dir():
                return kernel, modules
    folder = cache / "kernel"
    folder.mkdir(parents=True, exist_ok=True)
    name = next(_kernel_packages(package), "")
    if not name:
        raise BuildError("virtual machine", f"apt knows no {package}", "Install a kernel for cloud machines")
    # apt drops its rights for downloads and cannot enter private folders.
    run_tool(["sh", "-c", f"cd {shlex.quote(str(folder))} && apt-get -q -o APT::Sandbox::User=root download {name}"],
             "kernel of the virtual machine")  # fmt: skip
    for archive in folder.glob("*.deb"):
        run_tool(["dpkg-deb", "-x", str(archive), str(folder)], "kernel of the virtual machine")
        archive.unlink()
    return _kernel(package, cache)


def _kernel_packages(package: str) -> Iterator[str]:
    told = run_tool(["apt-cache", "depends", package], "kernel of the virtual machine")
    for line in told.splitlines():
        if found := re.search(r"Depends: (linux-image-[\w.+-]+)$", line):
            yield found[1]
