"""Logins for private registries: read as `docker login` writes them, shown to the registry, told to nobody else."""

from __future__ import annotations

import base64
import json
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_fakes import make_image

from wherry.errors import RegistryError
from wherry.profile import RunOptions
from wherry_agent import registry_examination
from wherry_agent.assignment import TrustedImage
from wherry_agent.config import AgentConfig, load_config
from wherry_agent.containers import DockerEngine
from wherry_agent.fetch.registry import RegistryFetcher
from wherry_agent.ports import Cancel
from wherry_agent.registry_credentials import RegistryCredentials

URL = "unix:///var/run/docker.sock"


@pytest.fixture
def write(tmp_path):
    """Writes the file, and reads it as the agent does."""
    path = tmp_path / "state/registries/config.json"

    def put(content: object, mode: int = 0o600) -> RegistryCredentials:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        path.chmod(mode)
        return AgentConfig().credentials(tmp_path / "state")

    return put


def auth(text: str) -> dict[str, str]:
    return {"auth": base64.b64encode(text.encode()).decode()}


def shown(credentials: RegistryCredentials, repository: str) -> dict[str, str]:
    found: dict[str, str] = json.loads(base64.urlsafe_b64decode(credentials.header(repository)))
    return found


def test_each_registry_is_shown_its_own_login(write):
    found = write({"auths": {"r.example:5000": auth("dev:a:b"), "https://old.example/v1/": auth("joe:x")}})
    assert shown(found, "r.example:5000/wherry/v") == {
        "username": "dev", "password": "a:b", "serveraddress": "r.example:5000",
    }  # fmt: skip
    assert shown(found, "old.example/v")["username"] == "joe"
    assert found.header("other.example/v") == ""


def test_tokens_and_plain_fields_are_read_too(write):
    found = write({"auths": {"t": {"identitytoken": "tok"}, "p": {"username": "u", "password": "s"}, "empty": {}}})
    assert shown(found, "t/v") == {"identitytoken": "tok", "serveraddress": "t"}
    assert shown(found, "p/v")["password"] == "s"
    assert found.header("empty/v") == ""


def test_without_a_file_nothing_is_shown(tmp_path):
    assert AgentConfig().credentials(tmp_path).header("r/v") == ""


def test_the_file_is_read_anew_for_each_pull(write):
    found = write({"auths": {"r": auth("a:1")}})
    assert shown(found, "r/v")["username"] == "a"
    write({"auths": {"r": auth("b:2")}})
    assert shown(found, "r/v")["username"] == "b"


def test_a_setting_names_another_file(tmp_path):
    config = load_config(tmp_path, environ={"WHERRY_AGENT_REGISTRY_CREDENTIALS": "/etc/wherry/logins.json"})
    assert config.credentials(tmp_path).path == Path("/etc/wherry/logins.json")


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_file_that_others_may_read_is_refused(write, mode):
    found = write({"auths": {"r": auth("a:1")}}, mode)
    with pytest.raises(RegistryError, match=f"can be read by others .mode {mode:04o}.*chmod 600"):
        found.header("r/v")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("nonsense", "is not JSON"),
        ([], "is not as `docker login` writes it"),
        ({"auths": []}, "is not as `docker login` writes it"),
        ({"auths": {"r": {"auth": "%%"}}}, "is not as `docker login` writes it"),
        ({"auths": {"r": auth("no-colon")}}, "is not as `docker login` writes it"),
        ({"auths": {"r": {}}, "credsStore": "pass"}, "points to a credential helper"),
    ],
)
def test_a_file_that_cannot_be_used_says_why_and_never_what_is_in_it(write, content, words):
    with pytest.raises(RegistryError, match=words):
        write(content).header("r/v")


def test_a_secret_does_not_show(write):
    (login,) = write({"auths": {"r": auth("dev:hunter2")}}).logins().values()
    assert "hunter2" not in repr(login)


@pytest.fixture(scope="module")
def image(locked_registry, tmp_path_factory) -> Iterator[TrustedImage]:
    """An image that only this registry has."""
    folder, repository = tmp_path_factory.mktemp("image"), f"{locked_registry}/wherry/private"
    (folder / "file").write_text(locked_registry)
    with tarfile.open(folder / "image.tar", "w") as tar:
        tar.add(folder / "file", arcname="file")
    docker = ["docker", "--config", str(folder / "operator")]

    def run(*arguments: str, text: str | None = None) -> str:
        done = subprocess.run([*docker, *arguments], input=text, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    run("login", "-u", "operator", "--password-stdin", locked_registry, text="secret")
    run("import", str(folder / "image.tar"), f"{repository}:1")
    run("push", "-q", f"{repository}:1")
    config = run("image", "inspect", "-f", "{{.Id}}", f"{repository}:1")
    digest = run("image", "inspect", "-f", "{{index .RepoDigests 0}}", f"{repository}:1").partition("@")[2]
    run("rmi", "-f", config)
    described = make_image(1, repository=repository, config_digest=config)
    yield TrustedImage(described.path, digest, 500, described.image)
    subprocess.run(["docker", "rmi", "-f", config], capture_output=True, check=False)


@pytest.mark.docker
@pytest.mark.registry
class TestPrivateRegistry:
    """On a real registry that asks for operator:secret, and a real engine."""

    def fetch(self, image, credentials):
        engine = DockerEngine("credentials-test", RunOptions(), URL)
        fetcher = RegistryFetcher(engine, URL, login=credentials.header, advice=credentials.advice)
        fetcher.fetch(image, Cancel(), lambda *_: None)
        assert engine.has_image(image)

    def test_with_the_login_the_image_comes(self, image, write, locked_registry):
        self.fetch(image, write({"auths": {locked_registry: auth("operator:secret")}}))

    @pytest.mark.parametrize("content", [{}, {"auths": {"REGISTRY": auth("operator:wrong")}}])
    def test_without_it_the_device_says_what_to_do(self, image, write, locked_registry, content):
        other = make_image(9, repository=image.image.repository)
        credentials = write(json.dumps(content).replace("REGISTRY", locked_registry))
        with pytest.raises(RegistryError) as caught:
            self.fetch(other, credentials)
        assert caught.value.fix.startswith(f"Run `docker --config {credentials.path.parent} login {locked_registry}`")
        assert "wrong" not in str(caught.value)

    @pytest.mark.parametrize(
        ("login", "problem"),
        [
            ("operator:secret", ""),
            ("operator:wrong", "refuses the login of operator"),
            ("", "asks for a login, and there is none"),
        ],
    )
    def test_the_doctor_looks_whether_it_lets_this_device_in(
        self, write, locked_registry, monkeypatch, tmp_path, login, problem
    ):
        known = {locked_registry: f"{locked_registry}/wherry/private"}
        monkeypatch.setattr(registry_examination, "assigned_repositories", lambda _: known)
        credentials = write({"auths": {locked_registry: auth(login)} if login else {}})
        (facts,) = registry_examination.look_at_registries(tmp_path, URL, credentials)
        assert (facts.address, facts.problem) == (locked_registry, problem)
        assert ("login" in facts.fix) == bool(problem)

    def test_the_doctor_names_a_file_that_cannot_be_used(self, write, tmp_path):
        (facts,) = registry_examination.look_at_registries(tmp_path, URL, write({}, 0o644))
        assert "can be read by others" in facts.problem
        assert facts.fix.startswith("Run `chmod 600")
