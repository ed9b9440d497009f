"""One contract for the pretended engine and route and for Docker and nftables: what the executor relies on."""

from __future__ import annotations

import gc
import http.server
import ipaddress
import json
import shutil
import socket
import subprocess
import tarfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_fakes import FakeEngine, FakeRoute, World, make_image
from ports import free_port

from wherry.errors import Conflict, EngineError, NotFound, RegistryError, RouteError, Tampered
from wherry.profile import RunOptions
from wherry.release import RunSpec
from wherry_agent.assignment import TrustedImage
from wherry_agent.container_logs import log_lines
from wherry_agent.containers import DockerEngine
from wherry_agent.fetch.registry import RegistryFetcher
from wherry_agent.ports import Cancel, StepCancelled
from wherry_agent.route.kernel import KernelRoute

DEVICE = "core-test"
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
URL = "unix:///var/run/docker.sock"
# Exits on SIGTERM, as a model server does; writes where it is and what it may not do.
SERVE = (
    "/bin/busybox echo hello; /bin/busybox touch /forbidden 2>/dev/null && /bin/busybox echo writable; "
    "/bin/busybox httpd -f -p 8080 -h /www & wait"
)


def docker(*arguments: str, check: bool = True) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=check)
    return done.stdout.strip()


def wait_for(condition: Any, seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)


def get(port: int, path: str = "/who") -> str | None:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2) as answer:
            return answer.read().decode().strip()
    except (OSError, urllib.error.URLError):
        return None


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry of our own; its address."""
    folder, port = tmp_path_factory.mktemp("registry"), free_port()
    config = folder / "config.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {folder / 'data'}}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n"
    )
    with subprocess.Popen(["docker-registry", "serve", str(config)], stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(lambda: get(port, "/v2/") is not None)
            yield f"127.0.0.1:{port}", folder / "data"
        finally:
            process.kill()


def import_image(tmp_path: Path, repository: str, who: str, command: str = SERVE) -> TrustedImage:
    """A tiny image of static busybox, in the engine and in the registry; its signed description."""
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("needs busybox-static")
    root = tmp_path / f"root-{who}"
    for folder in ("bin", "www", "tmp", "opt/wherry/models/vision"):
        (root / folder).mkdir(parents=True)
    shutil.copy(busybox, root / "bin/busybox")
    (root / "www/who").write_text(who)
    (root / "opt/wherry/models/vision/golden.json").write_text('{"who": "' + who + '"}')
    archive = tmp_path / f"{who}.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(root, arcname="/")
    tag = f"{repository}:{who}"
    changes = ["ENTRYPOINT " + json.dumps(["/bin/busybox", "sh", "-c", command]), "EXPOSE 8080"]
    docker("import", *(part for change in changes for part in ("--change", change)), str(archive), tag)
    docker("push", "-q", tag)
    config = docker("image", "inspect", "-f", "{{.Id}}", tag)
    digest = docker("image", "inspect", "-f", "{{index .RepoDigests 0}}", tag).partition("@")[2]
    image = make_image(
        int(who), repository=repository, config_digest=config, run=RunSpec(memory_mb=32, cpus="0.5", drain_seconds=1)
    )  # fmt: skip
    return TrustedImage(image.path, digest, 500, image.image)


@pytest.fixture(scope="module")
def real(registry, tmp_path_factory) -> Iterator[tuple[DockerEngine, list[TrustedImage], str, Path]]:
    address, data = registry
    tmp_path = tmp_path_factory.mktemp("images")
    images = [import_image(tmp_path, f"{address}/core/vision", who) for who in ("1", "2")]
    yield DockerEngine(DEVICE, RunOptions(), URL), images, address, data
    for name in docker("ps", "-aq", "--filter", f"label=io.wherry.device={DEVICE}").split():
        docker("rm", "-f", name, check=False)
    docker("rm", "-f", "core-test-foreign", check=False)
    for image in images:
        docker("rmi", "-f", image.image.config_digest, check=False)


@pytest.fixture(params=["fake", pytest.param("docker", marks=[pytest.mark.docker, pytest.mark.registry])])
def engine(request) -> Iterator[tuple[Any, list[TrustedImage]]]:
    """An engine that has two images, and no container before and after."""
    if request.param == "fake":
        images = [make_image(1), make_image(2)]
        yield FakeEngine(World(images={image.digest: image for image in images})), images
        return
    found, images, *_ = request.getfixturevalue("real")
    yield found, images
    for name in found.observe():
        found.remove(name)


NAME = "wherry.core-test.main.vision.1"


def test_a_container_is_created_started_stopped_and_removed_and_each_may_be_repeated(engine):
    found, (image, _) = engine
    port = free_port()
    assert found.has_image(image)
    for _ in range(2):
        found.create(NAME, "main", image, port, 8500)
    seen = found.observe()[NAME]
    assert (seen.slot, seen.digest, seen.state, seen.port, seen.slot_port) == (
        "main", image.digest, "created", port, 8500,
    )  # fmt: skip
    for _ in range(2):
        found.start(NAME)
    assert found.observe()[NAME].state == "running"
    for _ in range(2):
        found.restart_policy(NAME, "unless-stopped")
    inspected = found.inspect(NAME)
    assert (inspected.restart, inspected.image, inspected.share) == ("unless-stopped", image, "full")
    for share in ("small", "small", "full", "full"):
        found.processor_share(NAME, share)
        assert found.inspect(NAME).share == share
    for _ in range(2):
        found.stop(NAME, 1)
    assert found.observe()[NAME].state == "exited"
    found.start(NAME)
    assert found.inspect(NAME).port == port
    for _ in range(2):
        found.remove(NAME)
    assert found.observe() == {}
    assert found.inspect(NAME) is None


def test_what_does_not_exist_is_said_in_words(engine):
    found, (image, _) = engine
    for act in (
        found.start,
        lambda name: found.restart_policy(name, "no"),
        lambda name: found.processor_share(name, "small"),
    ):
        with pytest.raises(EngineError, match="does not exist"):
            act("wherry.core-test.main.vision.9")
    with pytest.raises(EngineError, match="is not on the device"):
        found.create("wherry.core-test.main.vision.9", "main", make_image(9), free_port(), 8500)
    found.stop("wherry.core-test.main.vision.9", 1)
    found.create(NAME, "main", image, free_port(), 8500)
    with pytest.raises(NotFound):
        found.read_file(NAME, "/opt/wherry/models/absent/golden.json", 1000)


def test_a_second_container_on_a_taken_port_does_not_start(engine):
    found, (one, two) = engine
    port = free_port()
    found.create(NAME, "main", one, port, 8500)
    found.start(NAME)
    second = "wherry.core-test.main.vision.2"
    found.create(second, "main", two, port, 8500)
    with pytest.raises(EngineError, match=r"port is already allocated|address already in use"):
        found.start(second)


@pytest.mark.docker
@pytest.mark.registry
class TestDocker:
    def test_a_container_is_hardened_and_serves_on_loopback(self, real):
        engine, (image, _), *_ = real
        port = free_port()
        engine.create(NAME, "main", image, port, 8500)
        try:
            assert json.loads(engine.read_file(NAME, "/opt/wherry/models/vision/golden.json", 1000)) == {"who": "1"}
            with pytest.raises(NotFound, match="the limit is 3"):
                engine.read_file(NAME, "/opt/wherry/models/vision/golden.json", 3)
            engine.start(NAME)
            wait_for(lambda: get(port) == "1")
            assert engine.last_words(NAME) == "hello"
            item = json.loads(docker("inspect", NAME))[0]
            host = item["HostConfig"]
            assert item["Config"]["User"] == "65532:65532"
            assert host["ReadonlyRootfs"]
            assert host["CapDrop"] == ["ALL"]
            assert host["SecurityOpt"] == ["no-new-privileges:true"]
            assert (host["Memory"], host["MemorySwap"]) == (32 * 2**20, 32 * 2**20)
            assert (host["PidsLimit"], host["NanoCpus"]) == (128, 500_000_000)
            assert host["LogConfig"] == {"Type": "local", "Config": {"max-size": "1m", "max-file": "2"}}
            assert host["Init"]
            assert host["PortBindings"] == {"8080/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(port)}]}
            assert not item["Mounts"]
        finally:
            engine.remove(NAME)

    def test_its_log_comes_with_instants_bounded_by_lines_and_time(self, real):
        engine, images, *_ = real
        engine.create(NAME, "main", images[0], free_port(), 8500)
        engine.start(NAME)
        wait_for(lambda: b"hello" in engine.logs(NAME, 10, None))
        first = log_lines(engine.logs(NAME, 10, None), "1", None, 10)[0][0]
        assert first.text == "hello"
        assert engine.logs(NAME, 10, first.at.timestamp() + 60) == b""
        assert engine.logs(NAME, 1, None).count(b"\n") == 1
        engine.remove(NAME)
        with pytest.raises(EngineError, match="does not exist"):
            engine.logs(NAME, 10, None)

    def test_a_foreign_container_with_our_name_is_never_touched(self, real):
        engine, (image, _), *_ = real
        docker("create", "--name", "core-test-foreign", image.image.config_digest)
        for act in (engine.inspect, engine.start, engine.remove, lambda name: engine.stop(name, 1)):
            with pytest.raises(Conflict, match="was not made by this agent"):
                act("core-test-foreign")
        with pytest.raises(Conflict):
            engine.create("core-test-foreign", "main", image, free_port(), 8500)
        assert docker("ps", "-aq", "--filter", "name=core-test-foreign")
        assert engine.observe() == {}

    def test_an_image_that_somebody_else_names_or_uses_stays(self, real, tmp_path):
        engine, _, address, _ = real
        image = import_image(tmp_path, f"{address}/core/shared", "7")
        config = image.image.config_digest
        try:
            docker("tag", config, "core-test-theirs:latest")
            docker("create", "--name", "core-test-foreign-user", config)
            engine.remove_image(image)
            assert docker("image", "inspect", "-f", "{{.Id}}", "core-test-theirs:latest") == config
            assert docker("ps", "-aq", "--filter", "name=core-test-foreign-user")
        finally:
            docker("rm", "-f", "core-test-foreign-user", check=False)
            docker("rmi", "-f", config, check=False)

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # docker leaves a socket open
    def test_an_engine_that_is_not_there_is_an_engine_error(self, tmp_path):
        engine = DockerEngine(DEVICE, RunOptions(), f"unix://{tmp_path}/absent.sock")
        with pytest.raises(EngineError, match="cannot be reached"):
            engine.observe()
        gc.collect()

    def test_a_pull_by_digest_arrives_and_is_verified(self, real):
        engine, (_, image), *_ = real
        docker("rmi", "-f", image.image.config_digest)
        assert not engine.has_image(image)
        fetcher = RegistryFetcher(engine, URL)
        fetcher.fetch(image, Cancel(), lambda *_: None)
        assert engine.has_image(image)
        fetcher.fetch(image, Cancel(), lambda *_: None)
        changed = image.image.model_copy(update={"config_digest": "sha256:" + "0" * 64})
        other = TrustedImage(image.path, image.digest, 500, changed)
        with pytest.raises(Tampered, match="signed is sha256:000000000000"):
            engine.has_image(other)
        engine.remove_image(image)
        engine.remove_image(image)
        assert not engine.has_image(image)
        fetcher.fetch(image, Cancel(), lambda *_: None)

    def test_a_registry_that_lacks_the_image_or_is_not_there_says_so(self, real):
        engine, *_, address, _ = real
        fetcher = RegistryFetcher(engine, URL)
        for repository in (f"{address}/core/vision", "127.0.0.1:1/core/vision"):
            with pytest.raises(RegistryError, match=repository):
                fetcher.fetch(make_image(9, repository=repository), Cancel(), lambda *_: None)

    def test_a_registry_that_answers_with_another_manifest_is_tampered(self, real):
        engine, *_ = real
        body = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "config": {}, "layers": []}).encode()

        class Forger(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                found = body if "/manifests/" in self.path else b"{}"
                self.send_response(200)
                self.send_header("Content-Type", MANIFEST)
                self.send_header("Content-Length", str(len(found)))
                self.end_headers()
                self.wfile.write(found)

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                """Quiet."""

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Forger) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            image = make_image(9, repository=f"127.0.0.1:{server.server_port}/core/vision")
            with pytest.raises(Tampered, match="something else than what was signed"):
                RegistryFetcher(engine, URL).fetch(image, Cancel(), lambda *_: None)
            server.shutdown()
        assert not engine.has_image(image)

    def test_a_stalled_pull_ends_at_our_limit_and_when_it_is_cancelled(self, real):
        engine, *_ = real
        with socket.create_server(("127.0.0.1", 0)) as silent:
            address = f"127.0.0.1:{silent.getsockname()[1]}"
            image = make_image(9, repository=f"{address}/core/vision")
            began = time.monotonic()
            with pytest.raises(RegistryError, match="sent nothing for 1 s"):
                RegistryFetcher(engine, URL, stall_seconds=1).fetch(image, Cancel(), lambda *_: None)
            with pytest.raises(RegistryError, match="took more than 1 s"):
                RegistryFetcher(engine, URL, deadline_seconds=1).fetch(image, Cancel(), lambda *_: None)
            assert time.monotonic() - began < 6
            cancel = Cancel()
            timer = threading.Timer(0.5, cancel.set)
            timer.start()
            with pytest.raises(StepCancelled):
                RegistryFetcher(engine, URL).fetch(image, cancel, lambda *_: None)
            timer.join()


@pytest.fixture(params=["fake", pytest.param("kernel", marks=pytest.mark.docker)])
def route(request) -> Iterator[Any]:
    if request.param == "fake":
        yield FakeRoute(World())
        return
    found = KernelRoute("wherry_core_test")
    found.clear()
    yield found
    found.clear()


def test_routes_are_read_back_as_they_were_made(route):
    assert route.read() == {}
    route.apply({8991: 18991, 8992: 18992})
    assert route.read() == {8991: 18991, 8992: 18992}
    route.apply({8991: 18993})
    route.apply({8991: 18993})
    assert route.read() == {8991: 18993}
    route.apply({})
    assert route.read() == {}


@pytest.mark.docker
@pytest.mark.registry
def test_the_kernel_turns_a_port_and_leaves_connections_where_they_are(real):
    engine, images, *_ = real
    route, stable, ports = KernelRoute("wherry_core_test"), free_port(), []
    try:
        for number, image in enumerate(images, 1):
            ports.append(free_port())
            name = f"wherry.core-test.main.vision.{number}"
            engine.create(name, "main", image, ports[-1], stable)
            engine.start(name)
        for port, who in zip(ports, "12", strict=True):
            wait_for(lambda port=port, who=who: get(port) == who)
        route.apply({stable: ports[0]})
        assert get(stable) == "1"
        with socket.create_connection(("127.0.0.1", stable), timeout=5) as old:
            route.apply({stable: ports[1]})
            assert get(stable) == "2"
            old.sendall(b"GET /who HTTP/1.0\r\n\r\n")
            answer = b""
            while part := old.recv(4096):
                answer += part
            assert answer.endswith(b"\r\n\r\n1")
        route.apply({})
        assert get(stable) is None
    finally:
        route.clear()
        for name in engine.observe():
            engine.remove(name)


def test_whether_a_table_could_be_made_is_tried_out_without_making_it():
    route = KernelRoute("wherry_try_out")
    route.try_out()
    assert "wherry_try_out" not in subprocess.run(["nft", "list", "tables"], capture_output=True, text=True).stdout


def test_a_packet_filter_that_cannot_be_run_is_a_route_error(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(RouteError, match="cannot be run"):
        KernelRoute().read()


@pytest.mark.docker
def test_a_port_that_nft_refuses_is_a_route_error():
    with pytest.raises(RouteError):
        KernelRoute("wherry_core_test").apply({8991: 0x1FFFF})


@pytest.mark.docker
@pytest.mark.registry
def test_other_containers_reach_the_stable_port_only_when_told_to(real):
    _, (image, _), *_ = real
    subnet = docker("network", "inspect", "-f", "{{(index .IPAM.Config 0).Subnet}}", "bridge")
    gateway = str(next(ipaddress.ip_network(subnet).hosts()))
    stable = free_port()

    def ask_from_a_container() -> str:
        request = r"/bin/busybox printf 'GET /who HTTP/1.0\r\n\r\n'"
        command = f"{request} | /bin/busybox nc -w 2 {gateway} {stable} | /bin/busybox tail -n 1"
        return docker(
            "run", "--rm", "--entrypoint", "/bin/busybox", image.image.config_digest, "sh", "-c", command, check=False
        )  # fmt: skip

    for addresses, expected in ((("127.0.0.1",), ""), (("127.0.0.1", gateway), "1")):
        engine, route = DockerEngine(DEVICE, RunOptions(), URL, addresses), KernelRoute("wherry_core_test", addresses)
        port = free_port()
        try:
            engine.create(NAME, "main", image, port, stable)
            engine.start(NAME)
            wait_for(lambda port=port: get(port) == "1")
            route.apply({stable: port})
            assert route.read() == {stable: port}
            assert get(stable) == "1"
            assert ask_from_a_container() == expected
        finally:
            route.clear()
            engine.remove(NAME)
