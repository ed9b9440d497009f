"""The registry client: against a real registry, and against answers that a real one gives rarely."""

import base64
import hashlib
import json

import httpx
import pytest

from wherry.errors import ConfigError, InputError, RegistryError
from wherry.identity import sha256_digest
from wherry_cli.packaging import registry as registry_module
from wherry_cli.packaging.credentials import Credentials, find_credentials
from wherry_cli.packaging.oci import OCI_MANIFEST, Blob
from wherry_cli.packaging.progress import Progress
from wherry_cli.packaging.reference import parse_reference, registry_url
from wherry_cli.packaging.registry import RegistryClient


def blob(data: bytes) -> Blob:
    return Blob(sha256_digest(data), len(data), data)


def no_sleep(seconds: float) -> None:
    pass


def answering(handler, registry="127.0.0.1:5000", credentials=None):
    return RegistryClient(registry, credentials, transport=httpx.MockTransport(handler), sleep=no_sleep)


# -- references


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:5000/a/b:1", ("127.0.0.1:5000", "a/b", "1", None)),
        ("localhost/a", ("localhost", "a", None, None)),
        ("registry.example.org/a/b@sha256:" + "0" * 64, ("registry.example.org", "a/b", None, "sha256:" + "0" * 64)),
        ("[::1]:5000/a", ("[::1]:5000", "a", None, None)),
        ("wherry/base:orin", ("host:1", "wherry/base", "orin", None)),
    ],
)
def test_references_are_read(text, expected):
    found = parse_reference(text, "host:1")
    assert (found.registry, found.repository, found.tag, found.digest) == expected


@pytest.mark.parametrize(
    "text", ["", "UPPER", "http://host/x", "host:5000/", "host.org/a:b:c", "a b", "host.org/a@sha256:1"]
)
def test_what_is_no_reference_is_refused(text):
    with pytest.raises(InputError, match="is not HOST"):
        parse_reference(text, "host:1")


def test_a_reference_without_host_needs_a_registry():
    with pytest.raises(InputError, match="give --registry"):
        parse_reference("wherry/base:orin")


def test_plain_http_is_for_this_machine_alone():
    assert registry_url("127.0.0.1:5000") == "http://127.0.0.1:5000"
    assert registry_url("127.8.9.1") == "http://127.8.9.1"
    assert registry_url("localhost:5000") == "http://localhost:5000"
    assert registry_url("[::1]:5000") == "http://[::1]:5000"
    assert registry_url("10.0.0.1:5000") == "https://10.0.0.1:5000"
    assert registry_url("localhost.example.org") == "https://localhost.example.org"


# -- a real registry


@pytest.mark.registry
def test_blobs_and_manifests_go_there_and_back(client, store):
    data = b"a layer" * 1000
    assert not client.has_blob("t/one", sha256_digest(data))
    assert client.push_blob("t/one", blob(data)) == "sent"
    assert client.push_blob("t/one", blob(data)) == "present"
    assert client.pull_blob("t/one", sha256_digest(data), store).read_bytes() == data
    config = b"{}"
    client.push_blob("t/one", blob(config))
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "size": 2,
                "digest": sha256_digest(config),
            },
            "layers": [],
        }
    ).encode()
    digest = client.put_manifest("t/one", "v1", manifest)
    found = client.manifest("t/one", "v1")
    assert found is not None
    assert (found.data, found.digest, found.media_type) == (manifest, digest, OCI_MANIFEST)
    assert client.manifest("t/one", digest) == found
    assert client.manifest("t/one", "v2") is None


@pytest.mark.registry
def test_a_blob_is_mounted_from_a_repository_that_has_it(client):
    data = b"shared" * 500
    client.push_blob("t/source", blob(data))
    assert client.push_blob("t/target", blob(data), mount_from=("t/absent", "t/source")) == "mounted"
    assert client.has_blob("t/target", sha256_digest(data))


@pytest.mark.registry
def test_bytes_of_another_digest_are_refused_by_the_registry(client):
    wrong = Blob("sha256:" + "1" * 64, 4, b"data")
    with pytest.raises(RegistryError, match="answered 400"):
        client.push_blob("t/wrong", wrong)


class Cut(httpx.BaseTransport):
    """The network, cut at the n-th chunk: before the registry saw it, or after it stored it."""

    def __init__(self, lost_request: int = 0, lost_answer: int = 0) -> None:
        self.real = httpx.HTTPTransport()
        self.patches = 0
        self.lost_request, self.lost_answer = lost_request, lost_answer
        self.sent = 0

    def close(self) -> None:
        self.real.close()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if request.method != "PATCH":
            return self.real.handle_request(request)
        self.patches += 1
        if self.patches == self.lost_request:
            raise httpx.WriteError("cut")
        self.sent += len(request.read())
        answer = self.real.handle_request(request)
        if self.patches == self.lost_answer:
            answer.read()
            raise httpx.ReadError("cut")
        return answer


@pytest.mark.registry
@pytest.mark.parametrize(("network", "chunks"), [(Cut(lost_request=3), 5), (Cut(lost_answer=3), 8)])
def test_a_large_blob_goes_on_where_the_connection_broke(registry, store, monkeypatch, network, chunks):
    """docker-registry resumes a chunk that it never saw; one whose answer was lost makes it start over."""
    monkeypatch.setattr(registry_module, "CHUNK_BYTES", 64 * 1024)
    data = hashlib.shake_256(str(chunks).encode()).digest(64 * 1024 * 5)
    told: list[Progress] = []
    with RegistryClient(registry, transport=network, sleep=no_sleep) as client:
        assert client.push_blob("t/large", blob(data), report=told.append) == "sent"
        assert client.pull_blob("t/large", sha256_digest(data), store).read_bytes() == data
    assert network.sent == chunks * 64 * 1024
    assert told[-1].done == told[-1].total == len(data)


@pytest.mark.registry
def test_a_password_is_asked_for_and_given(locked_registry):
    with RegistryClient(locked_registry, Credentials("operator", "secret")) as client:
        assert client.push_blob("t/locked", blob(b"x")) == "sent"
    with (
        RegistryClient(locked_registry) as client,
        pytest.raises(RegistryError, match=f"docker login {locked_registry}"),
    ):
        client.push_blob("t/locked", blob(b"y"))
    with RegistryClient(locked_registry, Credentials("operator", "wrong")) as client, pytest.raises(RegistryError):
        client.has_blob("t/locked", sha256_digest(b"x"))


# -- rare answers


def test_pulled_bytes_of_another_digest_are_refused(store):
    digest = sha256_digest(b"right")
    client = answering(lambda request: httpx.Response(200, stream=httpx.ByteStream(b"wrong")))
    for call in (
        lambda: client.pull_blob("a", digest, store),
        lambda: client.read_blob("a", digest),
        lambda: client.manifest("a", digest),
    ):
        with pytest.raises(RegistryError, match=r"other bytes|another digest"):
            call()
    assert not store.has(digest)


def test_a_brief_failure_is_tried_again_and_a_lasting_one_told():
    calls = []

    def flaky(request):
        calls.append(request.method)
        if len(calls) == 1:
            raise httpx.ConnectError("refused")
        return httpx.Response(503 if len(calls) == 2 else 200)

    assert answering(flaky).has_blob("a", sha256_digest(b""))
    assert len(calls) == 3

    def dead(request):
        raise httpx.ConnectError("refused")

    with pytest.raises(RegistryError, match="failed 4 times"):
        answering(dead).has_blob("a", sha256_digest(b""))


@pytest.mark.parametrize("answer", [httpx.Response(202), httpx.Response(500, text="<html>"), httpx.Response(401)])
def test_unusable_answers_to_an_upload_are_registry_errors(answer):
    def handler(request):
        return httpx.Response(404) if request.method == "HEAD" else answer

    with pytest.raises(RegistryError):
        answering(handler).push_blob("a", blob(b"x"))


def test_a_bearer_token_is_fetched_once_and_sent():
    seen = []

    def handler(request):
        seen.append((request.method, request.url.path, request.headers.get("Authorization", "")))
        if request.url.host == "auth.example.org":
            assert request.url.params["scope"] == "repository:a:pull"
            return httpx.Response(200, json={"token": "T"})
        if request.headers.get("Authorization") == "Bearer T":
            return httpx.Response(200)
        challenge = 'Bearer realm="https://auth.example.org/token",service="r",scope="repository:a:pull"'
        return httpx.Response(401, headers={"WWW-Authenticate": challenge})

    client = answering(handler, "registry.example.org", Credentials("me", "secret"))
    assert client.has_blob("a", sha256_digest(b""))
    assert client.has_blob("a", sha256_digest(b"x"))
    basic = "Basic " + base64.b64encode(b"me:secret").decode()
    assert [authorization for _, path, authorization in seen if path == "/token"] == [basic]
    assert [authorization for _, path, authorization in seen if path != "/token"] == ["", "Bearer T", "Bearer T"]


def test_a_secret_never_goes_to_a_token_service_over_plain_http():
    asked = []

    def handler(request):
        asked.append(request.url.host)
        challenge = 'Bearer realm="http://evil.example.org/token",service="r",scope="s"'
        return httpx.Response(401, headers={"WWW-Authenticate": challenge})

    with pytest.raises(RegistryError, match="does not allow it"):
        answering(handler, "registry.example.org", Credentials("me", "secret")).has_blob("a", sha256_digest(b""))
    assert set(asked) == {"registry.example.org"}


# -- credentials


def test_credentials_are_read_from_dockers_file(tmp_path):
    place = tmp_path / "config.json"
    assert find_credentials("r:5000", place) is None
    auth = base64.b64encode(b"me:se:cret").decode()
    place.write_text(json.dumps({"auths": {"https://r:5000": {"auth": auth}, "other": {"auth": "!"}}}))
    assert find_credentials("r:5000", place) == Credentials("me", "se:cret")
    assert "cret" not in repr(find_credentials("r:5000", place))
    assert find_credentials("s:5000", place) is None
    with pytest.raises(ConfigError, match="not base64"):
        find_credentials("other", place)
    place.write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        find_credentials("r:5000", place)


def test_a_credential_helper_is_asked(tmp_path, monkeypatch):
    helper = tmp_path / "docker-credential-mine"
    helper.write_text('#!/bin/sh\nread host\necho "{\\"Username\\": \\"$host\\", \\"Secret\\": \\"s\\"}"\n')
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    place = tmp_path / "config.json"
    place.write_text(json.dumps({"credHelpers": {"r:5000": "mine", "s:5000": "absent"}}))
    assert find_credentials("r:5000", place) == Credentials("r:5000", "s")
    with pytest.raises(ConfigError, match="docker-credential-absent"):
        find_credentials("s:5000", place)
