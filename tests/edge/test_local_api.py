"""The local API, as an application on the device uses it: over its socket, with curl's eyes."""

from __future__ import annotations

import http.client
import json
import os
import socket
import stat
import threading
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta

import pytest

from wherry.errors import ConfigError, StoreError
from wherry.messages import DeploymentReport, ReleaseRef, SlotReport, StateReport
from wherry_agent.local_api import LocalApi, _Room, _Server
from wherry_agent.update_lock import LockFile

NOW = datetime(2030, 1, 1, tzinfo=UTC)
REF = ReleaseRef(model="tiny", version="2", counter=2, digest="sha256:" + "2" * 64)
NOBODY = (65534, 65534)


def report():
    deployment = DeploymentReport(
        id="a-1", slot="main", release=REF, sequence=2, phase="committed", started=NOW, updated=NOW
    )  # fmt: skip
    slots = [
        SlotReport(slot="main", port=8500, serving=REF, since=NOW, healthy=True, deployment=deployment),
        SlotReport(slot="spare", port=8501),
    ]
    return StateReport(
        device="dev-1", profile="generic-amd64", agent_version="1", stream="s", number=1, at=NOW, boot_id="b",
        sequence=2, slots=slots,
    )  # fmt: skip


@pytest.fixture
def api(tmp_path):
    made = LocalApi(tmp_path, LockFile(tmp_path), "", lambda: datetime.now(UTC))
    made.start()
    yield made
    made.stop()


def call(folder, method, path, body=None, headers=None):
    connection = http.client.HTTPConnection("wherry", timeout=20)
    with closing(connection):
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(20)
        connection.sock.connect(str(folder / "local.sock"))
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


MAIN = {
    "slot": "main", "url": "http://127.0.0.1:8500", "port": 8500, "serving": REF.model_dump(), "since": NOW.isoformat(),
    "healthy": True, "phase": "committed",
}  # fmt: skip


def test_an_application_learns_what_serves_and_since_when(api, tmp_path):
    assert call(tmp_path, "GET", "/v1/slots") == (200, {"slots": []})
    api.publish(report())
    status, found = call(tmp_path, "GET", "/v1/slots")
    assert (status, found["slots"][0], found["slots"][1]["serving"]) == (200, MAIN, None)
    assert call(tmp_path, "GET", "/v1/slots/main?x=1") == (200, MAIN)


def test_every_program_may_reach_it_and_nothing_else_of_the_folder(api, tmp_path):
    assert stat.S_IMODE((tmp_path / "local.sock").stat().st_mode) == 0o666
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o711


def test_root_may_lock_and_unlock(api, tmp_path):
    assert call(tmp_path, "GET", "/v1/lock") == (200, {"lock": None})
    body = json.dumps({"holder": "inspection", "reason": "the belt runs", "minutes": 5})
    status, found = call(tmp_path, "PUT", "/v1/lock", body)
    assert (status, found["lock"]["holder"]) == (200, "inspection")
    assert call(tmp_path, "GET", "/v1/lock") == (200, found)
    expires = datetime.fromisoformat(found["lock"]["expires"])
    assert timedelta(minutes=4) < expires - datetime.now(UTC) <= timedelta(minutes=5)
    assert call(tmp_path, "DELETE", "/v1/lock") == (200, {"lock": None})
    assert call(tmp_path, "GET", "/v1/lock") == (200, {"lock": None})


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("GET", "/v1/slots/absent", None, 404, "is not on this device"),
        ("GET", "/v1/slots/main/more", None, 404, "does not exist"),
        ("GET", "/", None, 404, "does not exist"),
        ("PUT", "/v1/slots", "{}", 404, "does not exist"),
        ("PUT", "/v1/lock", "nonsense", 400, "is not a lock"),
        ("PUT", "/v1/lock", "[]", 400, "is not a lock"),
        ("PUT", "/v1/lock", '{"holder": 7}', 400, "is not a lock"),
        ("PUT", "/v1/lock", '{"holder": "x", "minutes": 1441}', 400, "24 hours"),
        ("PUT", "/v1/lock", '{"holder": "x", "minutes": 1e999}', 400, "is not a lock"),
        ("PUT", "/v1/lock", "x" * 5000, 400, "longer than"),
    ],
)
def test_what_it_cannot_do_it_says(api, tmp_path, method, path, body, status, words):
    found, document = call(tmp_path, method, path, body)
    assert found == status
    assert words in document["error"]["reason"]
    assert document["error"]["fix"]


def test_a_length_that_is_no_number_is_refused(api, tmp_path):
    assert call(tmp_path, "GET", "/v1/slots", headers={"Content-Length": "x"})[0] == 400


class TestWhoMayLock:
    """Decided from the user and group that the kernel names."""

    def may(self, api, peer):
        body = b'{"holder": "x"}'
        return "lock" in api.answer("PUT", "/v1/lock", body, peer)

    def test_others_may_not(self, api):
        with pytest.raises(Exception, match="user 65534 may not"):
            self.may(api, NOBODY)
        assert api.answer("GET", "/v1/lock", b"", NOBODY) == {"lock": None}

    def test_the_agents_own_user_may(self, api):
        assert self.may(api, (os.geteuid(), os.getegid()))

    def test_members_of_the_named_group_may(self, tmp_path):
        import grp

        api = LocalApi(tmp_path, LockFile(tmp_path), grp.getgrgid(65534).gr_name, lambda: datetime.now(UTC))
        assert self.may(api, NOBODY)
        assert self.may(api, (12345, 65534))
        with pytest.raises(Exception, match="may not"):
            self.may(api, (12345, 12345))

    def test_a_group_that_is_not_there_is_named(self, tmp_path):
        with pytest.raises(ConfigError, match="no group 'no-such-group'"):
            LocalApi(tmp_path, LockFile(tmp_path), "no-such-group", lambda: NOW)


def test_clients_that_say_nothing_do_not_keep_others_out_for_long(api, tmp_path, wait_until):
    with ExitStack() as stack:
        for _ in range(12):
            silent = stack.enter_context(socket.socket(socket.AF_UNIX))
            silent.connect(str(tmp_path / "local.sock"))

        def answers():
            try:
                return call(tmp_path, "GET", "/v1/slots")[0] == 200
            except (OSError, http.client.HTTPException):
                return False

        wait_until(answers, "silent clients are given up")


def test_a_client_that_sends_byte_after_byte_is_given_up(api, tmp_path, wait_until):
    with closing(socket.socket(socket.AF_UNIX)) as slow:
        slow.settimeout(0.2)
        slow.connect(str(tmp_path / "local.sock"))

        def given_up():
            try:
                slow.send(b"x")
                return slow.recv(1) == b""
            except TimeoutError:
                return False
            except OSError:
                return True

        wait_until(given_up, "the request is over, however often a byte comes")


def test_one_user_takes_two_places_of_eight():
    room = _Room()
    assert [room.enter("a", 1), room.enter("b", 1), room.enter("c", 1), room.enter("d", 2)] == [True, True, False, True]
    for _ in range(2):
        room.leave("a")
    assert [room.enter("e", 1), room.enter("f", 1)] == [True, False]
    assert [room.enter(user, user) for user in range(3, 9)] == [True] * 5 + [False]


def test_a_client_may_ask_again_as_soon_as_it_has_its_answer(api, tmp_path, monkeypatch):
    ends = threading.Event()
    close = _Server.shutdown_request
    monkeypatch.setattr(_Server, "shutdown_request", lambda *given: (ends.wait(20), close(*given)))
    try:
        for _ in range(5):
            assert call(tmp_path, "GET", "/v1/slots")[0] == 200
    finally:
        ends.set()


def test_broken_requests_fill_no_log(api, tmp_path, caplog):
    caplog.set_level("DEBUG")
    try:
        (tmp_path / "absent").read_bytes()
    except OSError:
        api._server.handle_error(None, NOBODY)
    assert [(record.levelname, record.exc_info) for record in caplog.records] == [("DEBUG", None)]


def test_rights_of_a_folder_are_not_taken_away(tmp_path):
    tmp_path.chmod(0o755)
    api = LocalApi(tmp_path, LockFile(tmp_path), "", lambda: NOW)
    api.start()
    api.stop()
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


def test_it_takes_the_place_of_one_that_was_killed_and_leaves_nothing(tmp_path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "local.sock"))
    api = LocalApi(tmp_path, LockFile(tmp_path), "", lambda: NOW)
    api.start()
    assert call(tmp_path, "GET", "/v1/slots")[0] == 200
    api.stop()
    assert not (tmp_path / "local.sock").exists()


def test_a_folder_that_is_not_there_is_a_store_error(tmp_path):
    with pytest.raises(StoreError, match="cannot listen"):
        LocalApi(tmp_path / "absent", LockFile(tmp_path), "", lambda: NOW).start()
