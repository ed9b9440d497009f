"""Enrolment and renewal against a small HTTPS server that behaves, loses replies, refuses, and lies."""

from __future__ import annotations

import hashlib
import http.server
import json
import ssl
import stat
import threading
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from wherry.device_auth import verify_request
from wherry.errors import IdentityError, ServerError, StoreError
from wherry.join import JoinToken
from wherry_agent.enrolment import TRIAL_SECONDS, Renewer, enrol, renewal_due
from wherry_agent.identity_store import IdentityStore, load_identity
from wherry_agent.server_client import MAX_ANSWER_BYTES, ServerClient, fetch_ca

ROOT = b'{"signed": {"_type": "root"}}'


class Server:
    """The server's device API, as little of it as devices use."""

    def __init__(self, authority):
        self.authority = authority
        self.clock = lambda: datetime.now(UTC)
        self.keys = []  # public keys of dev-1, any of which it believes
        self.enrolled_key = None
        self.lose_reply = False
        self.certificate_name = "dev-1"
        self.answers = {}  # path to (status, body), before anything else
        self.requests = []
        self.days = 7.0

    def handle(self, method, path, headers, body):
        self.requests.append((method, path))
        if path in self.answers:
            return self.answers[path]
        if path == "/v1/ca":
            return 200, self.authority.ca_file.read_bytes()
        if path == "/v1/tuf/metadata/1.root.json":
            return 200, ROOT
        if path == "/v1/enrol":
            return self.enrol(json.loads(body))
        verified = any(self._signed_by(key, headers, method, path, body) for key in self.keys)
        if not verified:
            return self.problem(401, "device dev-1", "is not known by this key", "Enrol it again")
        if path == "/v1/renew":
            return self.certify(json.loads(body)["csr_pem"])
        return self.answers.get("signed " + path, (404, b"{}"))

    def _signed_by(self, key, headers, method, path, body):
        try:
            now = int(self.clock().timestamp())
            return verify_request(key, headers.get("Authorization", ""), method, path, body, now)
        except IdentityError:
            return None

    @staticmethod
    def problem(status, thing, reason, fix):
        return status, json.dumps({"error": {"code": "x", "thing": thing, "reason": reason, "fix": fix}}).encode()

    def enrol(self, request):
        if request["secret"] != "s3cret":
            return self.problem(403, "join token", "was used before", "Create a new one")
        key = x509.load_pem_x509_csr(request["csr_pem"].encode()).public_key()
        if self.enrolled_key not in (None, key):
            return self.problem(409, "join token", "was used with another key", "Create a new one")
        self.enrolled_key = key
        return self.certify(request["csr_pem"])

    def certify(self, csr_pem):
        key = x509.load_pem_x509_csr(csr_pem.encode()).public_key()
        if key not in self.keys:
            self.keys.append(key)
        certificate = self.authority.build(self.certificate_name, key, days=self.days)
        reply = {
            "certificate_pem": self.authority.pem(certificate).decode(),
            "ca_pem": self.authority.ca_file.read_text(),
            "broker_host": "127.0.0.1",
            "broker_port": 8883,
            "expires": certificate.not_valid_after_utc.isoformat(),
        }
        return (500, b"") if self.lose_reply else (200, json.dumps(reply).encode())


@pytest.fixture
def server(authority):
    api = Server(authority)
    certificate, key = authority.issue("server")

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, content = api.handle(self.command, self.path, self.headers, body)
            self.send_response_only(status)
            self.send_header("Date", self.date_time_string(api.clock().timestamp()))
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = answer  # noqa: N815

        def log_message(self, *args):
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    listener = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listener.handle_error = lambda *args: None
    listener.socket = context.wrap_socket(listener.socket, server_side=True)
    api.url = f"https://127.0.0.1:{listener.server_port}"
    thread = threading.Thread(target=listener.serve_forever, args=(0.05,))
    thread.start()
    yield api
    listener.shutdown()
    thread.join()
    listener.server_close()


def fingerprint(authority):
    return hashlib.sha256(authority.certificate.public_bytes(serialization.Encoding.DER)).hexdigest()


class Agent:
    """A state folder, a clock, and the ways to enrol and renew."""

    def __init__(self, state, server):
        self.state, self.server = state, server
        self.shift = timedelta(0)
        self.steady = 0.0
        self.roots, self.used = [], []
        self.connects = 0
        self.store = IdentityStore(state)

    def clock(self):
        return datetime.now(UTC) + self.shift

    def token(self, **changes):
        values = {"server": self.server.url, "device": "dev-1", "secret": "s3cret"}
        values |= {"ca_sha256": fingerprint(self.server.authority), "root_sha256": hashlib.sha256(ROOT).hexdigest()}
        return JoinToken(**(values | changes)).encode()

    def enrol(self, **changes):
        return enrol(self.state, self.token(**changes), "generic-amd64", "1", self.roots.append, self.clock)

    def client(self):
        return ServerClient(
            self.server.url, self.server.authority.ca_file, "dev-1", self.store.keys, self.clock, timeout=5
        )

    def start(self):
        self.renewer = Renewer(
            self.store, self.client(), self.used.append, lambda: self.connects, self.clock, lambda: self.steady
        )

    def files(self):
        return sorted(path.name for path in (self.state / "identity").iterdir())


@pytest.fixture
def agent(tmp_path, server):
    return Agent(tmp_path / "state", server)


def test_a_token_makes_a_member_of_a_bare_machine(agent):
    identity = agent.enrol()
    assert (identity.device, identity.profile, identity.server_url) == ("dev-1", "generic-amd64", agent.server.url)
    assert agent.roots == [ROOT]
    assert load_identity(agent.state) == identity
    assert agent.files() == ["ca.crt", "device.json", "device.pem"]
    settings = identity.broker_settings()
    assert (settings.host, settings.port, settings.client_id) == ("127.0.0.1", 8883, "dev-1")
    ssl.create_default_context().load_cert_chain(settings.certificate_file, settings.key_file)


def test_only_the_agent_can_read_its_key(agent):
    agent.enrol()
    folder = agent.state / "identity"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_a_lost_reply_is_asked_for_again_with_the_same_key(agent):
    agent.server.lose_reply = True
    with pytest.raises(ServerError):
        agent.enrol()
    assert agent.files() == ["asked.key"]
    agent.server.lose_reply = False
    assert agent.enrol().device == "dev-1"


def test_the_same_command_again_changes_nothing_and_asks_nobody(agent):
    first = agent.enrol()
    asked = len(agent.server.requests)
    assert agent.enrol() == first
    assert len(agent.server.requests) == asked


def test_another_token_enrols_again(agent):
    agent.enrol()
    agent.server.enrolled_key = None
    assert agent.enrol(server=agent.server.url + "/").device == "dev-1"


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        pytest.param({"ca_sha256": "0" * 64}, IdentityError, "does not have the CA", id="another CA"),
        pytest.param({"root_sha256": "0" * 64}, IdentityError, "is not the one that", id="another root"),
        pytest.param({"secret": "wrong"}, ServerError, "was used before. Create a new one", id="a used token"),
        pytest.param({"server": "http://127.0.0.1:1"}, IdentityError, "not an https address", id="plain http"),
        pytest.param({"server": "https://127.0.0.1:1"}, ServerError, "cannot be reached", id="nobody there"),
    ],
)
def test_what_is_not_as_the_token_says_is_refused_and_nothing_is_kept(agent, changes, error, words):
    with pytest.raises(error, match=words):
        agent.enrol(**changes)
    assert agent.roots == []
    with pytest.raises(IdentityError, match="not enrolled"):
        load_identity(agent.state)


def test_the_secret_is_not_sent_before_the_server_and_the_root_are_known(agent):
    for changes in ({"ca_sha256": "0" * 64}, {"root_sha256": "0" * 64}):
        with pytest.raises(IdentityError):
            agent.enrol(**changes)
    assert ("POST", "/v1/enrol") not in agent.server.requests


def test_a_certificate_for_somebody_else_is_refused(agent):
    agent.server.certificate_name = "dev-2"
    with pytest.raises(IdentityError, match="made out to"):
        agent.enrol()


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param((200, b"x" * (MAX_ANSWER_BYTES + 1)), id="endless"),
        pytest.param((200, b"{}"), id="fields missing"),
        pytest.param((200, b"\xff\xfe"), id="not UTF-8"),
        pytest.param((302, b""), id="a redirect"),
        pytest.param((500, b"<html>"), id="no reason given"),
    ],
)
def test_unusable_answers_are_server_errors(agent, answer):
    agent.server.answers["/v1/enrol"] = answer
    with pytest.raises(ServerError):
        agent.enrol()


def test_no_certificate_where_the_ca_was_asked_for(agent):
    agent.server.answers["/v1/ca"] = (200, b"hello")
    with pytest.raises(ServerError, match="no certificate"):
        fetch_ca(agent.server.url, "0" * 64)


def test_an_unwritable_state_folder_is_a_store_error(agent):
    agent.state.parent.mkdir(exist_ok=True)
    agent.state.write_text("a file where a folder must be")
    with pytest.raises(StoreError, match="cannot be written"):
        agent.enrol()


# -- polling


def test_the_assignment_is_fetched_with_a_signed_request(agent):
    agent.enrol()
    path = "/v1/devices/dev-1/assignment"
    assert agent.client().fetch_assignment() is None
    agent.server.answers["signed " + path] = (200, b"signed bytes")
    assert agent.client().fetch_assignment() == b"signed bytes"


def test_a_device_whose_clock_is_wrong_is_still_known(agent):
    agent.enrol()
    agent.server.answers["signed /v1/devices/dev-1/assignment"] = (200, b"signed bytes")
    real = agent.server.clock
    agent.server.clock = lambda: real() + timedelta(days=400)
    client = agent.client()
    assert client.fetch_assignment() == b"signed bytes"
    before = len(agent.server.requests)
    assert client.fetch_assignment() == b"signed bytes"
    assert len(agent.server.requests) == before + 1


def test_a_server_that_does_not_know_the_device_says_so(agent):
    agent.enrol()
    agent.server.keys.clear()
    with pytest.raises(ServerError, match="is not known by this key"):
        agent.client().fetch_assignment()


def test_another_servers_certificate_is_refused(agent, tmp_path, authority):
    agent.enrol()
    folder = tmp_path / "other"
    folder.mkdir()
    other = type(authority)(folder, "another CA")
    client = ServerClient(agent.server.url, other.ca_file, "dev-1", agent.store.keys, agent.clock)
    with pytest.raises(ServerError, match="certificate verify failed"):
        client.fetch_assignment()


# -- renewal


def test_renewal_is_due_between_half_and_six_tenths_of_life(agent):
    identity = agent.enrol()
    life = identity.expires - identity.begins
    assert not renewal_due(identity, identity.begins + life * 0.499)
    assert renewal_due(identity, identity.begins + life * 0.601)


def test_a_young_certificate_is_left_alone(agent):
    agent.enrol()
    agent.start()
    agent.renewer.check()
    assert ("POST", "/v1/renew") not in agent.server.requests


def renewed_state(agent):
    """Enrolled, past the time to renew, the new pair on trial."""
    agent.server.days = 0.01
    old = agent.enrol()
    agent.server.days = 7.0
    agent.shift = timedelta(seconds=600)
    agent.start()
    agent.renewer.check()
    return old


def test_a_new_key_is_tried_and_then_kept(agent):
    old = renewed_state(agent)
    assert agent.store.load() == old
    assert agent.used[-1].certificate_file.endswith("next.pem")
    agent.renewer.check()
    assert agent.store.load() == old  # not connected with it yet
    agent.connects += 1
    agent.renewer.check()
    new = agent.store.load()
    assert new.expires > old.expires
    assert agent.files() == ["ca.crt", "device.json", "device.pem"]
    assert agent.used[-1] == new.broker_settings()


def test_a_renewed_certificate_that_does_not_connect_is_taken_back(agent):
    agent.server.days = 0.01
    agent.enrol()
    old = agent.store.load()
    agent.server.days = 7.0
    agent.shift = timedelta(seconds=500)
    agent.start()
    agent.renewer.check()
    agent.steady += TRIAL_SECONDS + 1
    agent.shift = timedelta(seconds=0)
    agent.renewer.check()
    assert agent.used[-1] == old.broker_settings()
    assert agent.store.load_next() is None


def test_an_expired_certificate_is_still_renewed(agent):
    agent.server.days = 0.005
    agent.enrol()
    agent.server.days = 7.0
    agent.shift = timedelta(seconds=500)
    assert agent.store.load().expires < agent.clock()
    agent.start()
    agent.renewer.check()
    assert agent.used


def test_a_renewal_whose_reply_was_lost_is_repeated_with_the_same_key(agent):
    agent.server.days = 0.01
    agent.enrol()
    agent.shift = timedelta(seconds=600)
    agent.server.lose_reply = True
    agent.start()
    with pytest.raises(ServerError):
        agent.renewer.check()
    # The server has moved on to the new key and no longer believes the old one.
    agent.server.lose_reply, agent.server.days = False, 7.0
    del agent.server.keys[0]
    agent.start()
    agent.renewer.check()
    assert len(agent.server.keys) == 1
    assert agent.used


def test_a_restart_in_the_middle_of_a_trial_tries_again(agent):
    renewed_state(agent)
    agent.start()
    agent.renewer.check()
    agent.connects += 1
    agent.renewer.check()
    assert agent.store.load_next() is None
    assert [method for method, path in agent.server.requests if path == "/v1/renew"] == ["POST"]


@pytest.mark.parametrize("damage", [b"", b"\0" * 900, b"-----BEGIN PRIVATE KEY-----\n"])
def test_a_damaged_pair_gives_way_to_the_renewed_one(agent, damage):
    renewed_state(agent)
    (agent.state / "identity" / "device.pem").write_bytes(damage)
    assert load_identity(agent.state).device == "dev-1"
    assert agent.store.load_next() is None


@pytest.mark.parametrize("last", ["next-ca.crt", "next.pem"])
def test_a_crash_after_either_rename_of_a_commit_leaves_a_usable_identity(agent, monkeypatch, last):
    renewed_state(agent)
    path_type = type(agent.state)
    original = path_type.replace

    def replace_then_crash(self, target):
        original(self, target)
        if self.name == last:
            raise KeyboardInterrupt

    monkeypatch.setattr(path_type, "replace", replace_then_crash)
    with pytest.raises(KeyboardInterrupt):
        agent.store.commit()
    monkeypatch.setattr(path_type, "replace", original)
    assert load_identity(agent.state).device == "dev-1"
    agent.start()
    agent.renewer.check()
    agent.connects += 1
    agent.renewer.check()
    assert agent.store.load_next() is None
    assert agent.store.load().expires > agent.clock() + timedelta(days=6)
