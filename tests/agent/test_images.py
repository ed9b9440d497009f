"""What the engine has on disk, against a real engine of our own: layers are zeroed, cut off and lost under its feet."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from agent_fakes import FakeHost, World, make_image

from wherry.errors import EngineError, Tampered
from wherry.profile import RunOptions
from wherry_agent.assignment import TrustedImage
from wherry_agent.containers import DockerEngine
from wherry_agent.events import Damaged, Done
from wherry_agent.fetch.registry import RegistryFetcher
from wherry_agent.mending import Mender
from wherry_agent.ports import Cancel, StepCancelled
from wherry_agent.steps import Verify

pytestmark = [pytest.mark.docker, pytest.mark.registry]


@dataclass
class Own:
    """An engine with one image, where its files may be spoilt."""

    engine: DockerEngine
    image: TrustedImage
    url: str
    root: Path

    def file(self, pattern: str) -> Path:
        return next(self.root.glob(pattern))


_REGISTRY = "127.0.0.1:5000"
_BOTH = """
ip link set lo up
docker-registry serve {folder}/registry.yml &
exec dockerd --data-root {folder}/root --exec-root {folder}/exec -H unix://{folder}/docker.sock -p {folder}/pid \\
  --bridge none --iptables=false --ip-masq=false --ip-forward=false
"""


def until(done: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert process.poll() is None, "it ended"
        assert time.monotonic() < deadline, "it does not answer"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Iterator[Own]:
    """An engine and a registry in a network namespace of their own: an engine without a bridge removes docker0."""
    folder = tmp_path_factory.mktemp("engine")
    url = f"unix://{folder}/docker.sock"
    (folder / "registry.yml").write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {folder / 'data'}}}}}\n"
        f"http: {{addr: '{_REGISTRY}'}}\n"
    )
    command = ["unshare", "--net", "bash", "-c", _BOTH.format(folder=folder)]
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True) as process,
    ):

        def docker(*arguments: str) -> str:
            done = subprocess.run(["docker", "-H", url, *arguments], capture_output=True, text=True, check=False)
            return done.stdout.strip()

        try:
            until(lambda: bool(docker("version", "-f", "{{.Server.Version}}")), process)
            yield _with_image(docker, url, folder, process)
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)
            shutil.rmtree(folder, ignore_errors=True)


def _with_image(docker: Callable[..., str], url: str, folder: Path, process: subprocess.Popen[bytes]) -> Own:
    (folder / "tree/www").mkdir(parents=True)
    (folder / "tree/www/who").write_bytes(os.urandom(3_000_000))
    with tarfile.open(folder / "image.tar", "w") as tar:
        tar.add(folder / "tree", arcname="/")
    tag = f"{_REGISTRY}/vision:1"
    docker("import", "--change", "EXPOSE 8080", "--change", 'CMD ["/x"]', str(folder / "image.tar"), tag)
    until(lambda: bool(docker("push", "-q", tag)), process)
    config = docker("image", "inspect", "-f", "{{.Id}}", tag)
    digest = docker("image", "inspect", "-f", "{{index .RepoDigests 0}}", tag).partition("@")[2]
    docker("rmi", "-f", config)
    signed = make_image(1, repository=f"{_REGISTRY}/vision", config_digest=config)
    image = TrustedImage(signed.path, digest, 500, signed.image)
    return Own(DockerEngine("core-test", RunOptions(), url), image, url, folder / "root")


@pytest.fixture
def whole(own) -> Own:
    """The engine with a whole copy of the image."""
    own.engine.remove_image(own.image)
    RegistryFetcher(own.engine, own.url).fetch(own.image, Cancel(), lambda *_: None)
    own.engine.verify_image(own.image, Cancel())
    return own


def zeroed(file: Path) -> None:
    file.write_bytes(b"\0" * file.stat().st_size)


@pytest.mark.parametrize("spoil", [zeroed, lambda file: os.truncate(file, 1000), Path.unlink], ids=["0", "cut", "gone"])
@pytest.mark.parametrize("what", ["overlay2/*/diff/www/who", "image/overlay2/layerdb/sha256/*/tar-split.json.gz"])
def test_a_spoilt_layer_is_seen_fetched_again_and_whole(whole, what, spoil):
    spoil(whole.file(what))
    assert whole.engine.has_image(whole.image), "the engine does not notice"
    RegistryFetcher(whole.engine, whole.url).fetch(whole.image, Cancel(), lambda *_: None)
    with pytest.raises(Tampered, match="its copy on this device's disk is damaged"):
        whole.engine.verify_image(whole.image, Cancel())
    mender = Mender(
        "core-test", whole.engine, RegistryFetcher(whole.engine, whole.url), FakeHost(World()), lambda *_: None,
        lambda *_: Done(),
    )  # fmt: skip
    news: list[object] = []
    assert mender.run(Verify("main", whole.image, 8500), Cancel(), news.append) == Done()
    assert [type(one) for one in news] == [Damaged]
    whole.engine.verify_image(whole.image, Cancel())


def test_an_image_without_its_configuration_counts_as_absent(whole):
    zeroed(whole.file(f"image/overlay2/imagedb/content/sha256/{whole.image.image.config_digest[7:]}"))
    assert not whole.engine.has_image(whole.image)
    with pytest.raises(EngineError, match="is not on the device"):
        whole.engine.verify_image(whole.image, Cancel())


def test_verification_gives_way_when_asked(whole):
    cancel = Cancel()
    cancel.set()
    with pytest.raises(StepCancelled):
        whole.engine.verify_image(whole.image, cancel)


def test_it_is_known_whether_the_registry_offers_an_image(whole):
    fetcher = RegistryFetcher(whole.engine, whole.url)
    assert fetcher.offered(whole.image, Cancel())
    assert not fetcher.offered(make_image(9, repository=whole.image.image.repository), Cancel())
    assert not fetcher.offered(make_image(9, repository="127.0.0.1:1/vision"), Cancel())
