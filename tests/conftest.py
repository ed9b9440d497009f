"""Fixtures for every room."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))

from ports import free_port  # noqa: E402  every room's tests import it by this path

PASSWORD_FILE = "operator:$2b$04$uXwVT0iZPRANnCKMnChw8ONcAk0VJ1GCA8M5bQgZddU/x/wBvTQiy\n"


@pytest.fixture(autouse=True)
def same_umask() -> Iterator[None]:
    """Programs under test set theirs; the next test is to find what this one found."""
    before = os.umask(0o022)
    os.umask(before)
    yield
    os.umask(before)


@pytest.fixture(scope="session")
def model_files() -> Mapping[str, Path]:
    """Real models by "<name>-<version>" ("magika-1.0.3"), fetched once into build/models."""
    spec = importlib.util.spec_from_file_location("fetch_models", SCRIPTS / "fetch_models.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    files: Mapping[str, Path] = module.fetch_models()
    return files


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def serve_registry(folder: Path, more: str = "") -> tuple[subprocess.Popen[bytes], str]:
    """Start a real OCI registry that keeps its blobs in a folder; its process and HOST:PORT."""
    port = free_port()
    config = folder / "registry.yml"
    config.write_text(
        "version: 0.1\n"
        "log: {level: error, accesslog: {disabled: true}}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder / 'blobs'}}}, delete: {{enabled: true}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n" + more
    )
    with (folder / "registry.log").open("wb") as log:
        process = subprocess.Popen(["docker-registry", "serve", str(config)], stdout=log, stderr=log)
    deadline = time.monotonic() + 20
    while not _listens(port):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise RuntimeError(f"the registry did not start: {(folder / 'registry.log').read_text()[-500:]}")
        time.sleep(0.05)
    return process, f"127.0.0.1:{port}"


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """HOST:PORT of a real OCI registry, empty at first."""
    if shutil.which("docker-registry") is None:
        pytest.skip("docker-registry is not installed")
    process, address = serve_registry(tmp_path_factory.mktemp("registry"))
    try:
        yield address
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="session")
def locked_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """HOST:PORT of a real registry that asks for operator:secret."""
    folder = tmp_path_factory.mktemp("locked-registry")
    (folder / "htpasswd").write_text(PASSWORD_FILE)
    process, address = serve_registry(folder, f"auth: {{htpasswd: {{realm: wherry, path: {folder / 'htpasswd'}}}}}\n")
    try:
        yield address
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="session")
def package_cache() -> Path:
    """The layer cache that all tests share: a base layer takes 15 seconds to build."""
    return SCRIPTS.parent / "build" / "cache"
