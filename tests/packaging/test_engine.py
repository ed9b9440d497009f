"""Packaged images on a real engine: hardened, without a shell, read-only, on this machine and on arm64 under qemu."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ports import free_port

from wherry.elements import tensor_from_golden
from wherry.golden import compare
from wherry.release import GoldenFile
from wherry.tensors import HEADER_LENGTH, decode_response, encode_request
from wherry_cli.packaging.command import PackageOrder, package
from wherry_cli.packaging.package_file import PackagedImage
from wherry_cli.packaging.progress import Progress

REPOSITORY = Path(__file__).resolve().parent.parent.parent
# qemu-user 7.2 shows the host's x86 /proc/cpuinfo, on which ONNX Runtime for arm64 crashes when it is imported.
ARM_CPU = (
    "processor\t: {}\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd evtstrm crc32 cpuid\nCPU implementer\t: 0x41\n"
    "CPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: 0xd08\nCPU revision\t: 3\n\n"
)

Run = Callable[..., str]


def docker(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=check, timeout=120)


@pytest.fixture(scope="module")
def made(registry: str, package_cache: Path, model_files, tmp_path_factory: pytest.TempPathFactory):
    """magika for both architectures, packaged as users do; with its golden cases."""
    folder = tmp_path_factory.mktemp("packaged")
    told: list[Progress] = []
    order = PackageOrder(
        "magika",
        "1.0.3",
        ("generic-amd64", "generic-arm64"),
        model=model_files["magika-1.0.3"],
        registry=registry,
        output=folder,
        cache=package_cache,
    )
    found = package(order, told.append)
    golden = GoldenFile.model_validate_json((folder / "golden.json").read_bytes())
    return {image.profile: image for image in found.images}, golden


@pytest.fixture
def run() -> Iterator[Run]:
    """Start a packaged image as an agent does; gives its base URL."""
    started: list[tuple[str, str]] = []

    def start(image: PackagedImage, *more: str) -> str:
        if docker("version", check=False).returncode != 0:
            pytest.skip("no Docker engine runs here")
        port = free_port()
        name, reference = f"wherry-packaging-{port}", f"{image.repository}@{image.digest}"
        started.append((name, reference))
        docker("pull", "--quiet", "--platform", image.platform, reference)
        docker(
            "run", "--detach", "--name", name, "--platform", image.platform, "--read-only", "--cap-drop", "ALL",
            "--security-opt", "no-new-privileges:true", "--pids-limit", str(image.run.pids),
            "--memory", f"{image.run.memory_mb}m", "--memory-swap", f"{image.run.memory_mb}m",
            "--ipc", "private", "--init",
            "--tmpfs", "/tmp:rw,noexec,nosuid,nodev,size=8m,uid=65532,gid=65532,mode=0700",
            "--publish", f"127.0.0.1:{port}:{image.run.port}", *more, reference,
        )  # fmt: skip
        return f"http://127.0.0.1:{port}"

    yield start
    for name, reference in started:
        docker("rm", "--force", name, check=False)
        docker("rmi", reference, check=False)


def wait_ready(url: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(f"{url}/v2/health/ready", timeout=5) as answer:
                assert answer.status == 200
                return
        except (OSError, urllib.error.HTTPError):
            if time.monotonic() > deadline:
                name = f"wherry-packaging-{url.rsplit(':', 1)[1]}"
                logs = docker("logs", name, check=False)
                pytest.fail(f"not ready within {seconds} s: {logs.stdout[-500:]}{logs.stderr[-1500:]}")
            time.sleep(0.2)


def check_golden(url: str, golden: GoldenFile) -> None:
    """Every golden case over the wire, as the golden gate does."""
    for case in golden.cases:
        body, length = encode_request([tensor_from_golden(tensor) for tensor in case.inputs])
        headers = {HEADER_LENGTH: str(length), "Content-Type": "application/octet-stream"}
        request = urllib.request.Request(f"{url}/v2/models/{golden.model}/infer", body, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            size = answer.headers.get(HEADER_LENGTH)
            found = decode_response(answer.read(), int(size) if size else None)
        expected = [tensor_from_golden(tensor) for tensor in case.outputs]
        result = compare(expected, found.outputs, 0.001, 0.999, argmax=True)
        assert result.ok, result.detail


@pytest.mark.docker
@pytest.mark.registry
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_image_serves_hardened_without_shell_and_read_only(made, run):
    images, golden = made
    url = run(images["generic-amd64"])
    wait_ready(url, 60)
    check_golden(url, golden)
    with urllib.request.urlopen(f"{url}/v2/models/magika", timeout=5) as answer:
        described = json.load(answer)
    assert described["versions"] == ["1.0.3"]
    assert described["parameters"]["provider"] == images["generic-amd64"].provider
    name = f"wherry-packaging-{url.rsplit(':', 1)[1]}"
    for shell in ("/bin/sh", "/bin/bash", "/usr/bin/dash", "/bin/busybox"):
        assert docker("exec", name, shell, "-c", "true", check=False).returncode != 0
    write = "import os; print(os.getuid()); open('/opt/wherry/x', 'w')"
    refused = docker("exec", name, "/usr/bin/python3", "-c", write, check=False)
    assert refused.stdout.split() == ["65532"]
    assert "Read-only file system" in refused.stderr
    tls = "import ssl; print(len(ssl.create_default_context().get_ca_certs()) > 50)"
    assert docker("exec", name, "/usr/bin/python3", "-c", tls).stdout.split() == ["True"]
    docker("stop", "--time", "20", name)
    assert json.loads(docker("inspect", name).stdout)[0]["State"]["ExitCode"] == 0


@pytest.mark.docker
@pytest.mark.registry
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("runtime", ["litert", "tflite"])
def test_both_tflite_runtimes_serve_what_was_recorded(registry, package_cache, model_files, tmp_path, run, runtime):
    order = PackageOrder(
        "okay-nabu", "2.5", ("generic-amd64",), model=model_files["pymicro-wakeword-2.5.0"], registry=registry,
        output=tmp_path, cache=package_cache, runtime=runtime,
    )  # fmt: skip
    image = package(order).images[0]
    url = run(image)
    wait_ready(url, 60)
    check_golden(url, GoldenFile.model_validate_json((tmp_path / "golden.json").read_bytes()))
    with urllib.request.urlopen(f"{url}/v2/models/okay-nabu", timeout=5) as answer:
        assert json.load(answer)["parameters"]["runtime"] == runtime


@pytest.mark.docker
@pytest.mark.registry
@pytest.mark.qemu
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_arm64_image_made_here_serves_under_qemu(made, run, tmp_path):
    if shutil.which("qemu-aarch64-static") is None:
        pytest.skip("qemu-user-static is not installed")
    registered = subprocess.run(
        [REPOSITORY / "scripts" / "register_qemu.sh"], capture_output=True, text=True, check=False
    )
    if registered.returncode != 0:
        pytest.skip(registered.stderr.strip())
    images, golden = made
    cpu = tmp_path / "cpuinfo"
    cpu.write_text("".join(ARM_CPU.format(number) for number in range(2)))
    url = run(images["generic-arm64"], "--volume", f"{cpu}:/proc/cpuinfo:ro")
    name = f"wherry-packaging-{url.rsplit(':', 1)[1]}"
    wait_ready(url, 150)
    check_golden(url, golden)
    program = "import platform; print(platform.machine())"
    assert docker("exec", name, "/usr/bin/python3", "-c", program).stdout.split() == ["aarch64"]
