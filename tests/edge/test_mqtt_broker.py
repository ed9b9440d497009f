"""The MQTT client against a real Mosquitto over TLS 1.3 with client certificates."""

from __future__ import annotations

import signal
import socket
import ssl
import threading

import pytest

from wherry.mqtt import MAX_PAYLOAD_BYTES, MqttClient
from wherry.topics import EVERY_DEVICE_UP, Kind, Topic

pytestmark = pytest.mark.broker
STATE = Topic("dev-1", Kind.STATE)
PRESENCE = Topic("dev-1", Kind.PRESENCE)
CMD = Topic("dev-1", Kind.CMD)


class Peer:
    """An MqttClient that remembers what happened to it."""

    def __init__(self, settings, subscriptions=(), will=None):
        self.messages = []
        self.connects = 0
        self.losses: list[str] = []
        self.fail_on = None
        self.client = MqttClient(settings, self._message, self._connected, self.losses.append, subscriptions, will)

    def _message(self, topic, payload):
        self.messages.append((topic, payload))
        if payload == self.fail_on:
            raise RuntimeError("a defect in the callback")

    def _connected(self):
        self.connects += 1

    def payloads(self, topic):
        return [payload for where, payload in self.messages if where == topic]


@pytest.fixture
def peer(broker):
    peers = []

    def make(name, subscriptions=(), will=None, **changes):
        made = Peer(broker.settings(name, **changes), subscriptions, will)
        peers.append(made)
        made.client.start()
        return made

    yield make
    for made in peers:
        made.client.stop()


def test_server_and_device_exchange_messages(peer, wait_until):
    server = peer("wherryd", [EVERY_DEVICE_UP])
    device = peer("dev-1", [str(CMD), str(Topic("dev-1", Kind.ASSIGN))])
    wait_until(lambda: server.client.connected and device.client.connected, "both connect")
    assert device.client.publish(STATE, b"state")
    assert server.client.publish(CMD, b"command")
    wait_until(lambda: server.payloads(STATE) == [b"state"], "the state arrives")
    wait_until(lambda: device.payloads(CMD) == [b"command"], "the command arrives")


def test_comes_back_after_the_broker_was_killed(broker, peer, wait_until):
    server = peer("wherryd", [EVERY_DEVICE_UP])
    device = peer("dev-1", [str(CMD)])
    for round_ in range(1, 4):
        wait_until(lambda: device.connects == round_ and server.connects == round_, f"both connect, round {round_}")  # noqa: B023
        device.client.publish(STATE, b"%d" % round_)
        wait_until(lambda: b"%d" % round_ in server.payloads(STATE), "the state arrives")  # noqa: B023
        broker.kill()
        wait_until(lambda: not device.client.connected, "the loss is noticed")
        assert not device.client.publish(STATE, b"nobody hears this")
        broker.start()
    assert len(device.losses) == 3


def test_will_is_published_when_the_socket_is_lost(broker, peer, wait_until):
    server = peer("wherryd", [EVERY_DEVICE_UP])
    wait_until(lambda: server.client.connected, "the server connects")
    device = peer("dev-1", will=(PRESENCE, b"gone"), reconnect_min=30, reconnect_max=30)
    wait_until(lambda: device.client.connected, "the device connects")
    device.client._session._paho.socket().shutdown(socket.SHUT_RDWR)
    wait_until(lambda: server.payloads(PRESENCE) == [b"gone"], "the will arrives")
    late = peer("wherryd-2", [EVERY_DEVICE_UP])
    wait_until(lambda: late.client.connected, "another client connects")


def test_stop_sends_what_is_queued_and_then_the_will(peer, wait_until):
    server = peer("wherryd", [EVERY_DEVICE_UP])
    device = peer("dev-1", will=(PRESENCE, b"gone"))
    wait_until(lambda: server.client.connected and device.client.connected, "both connect")
    device.client.publish(STATE, b"last words")
    device.client.stop()
    wait_until(lambda: server.payloads(PRESENCE) == [b"gone"], "the will arrives")
    assert server.payloads(STATE) == [b"last words"]
    assert device.losses == ["it was closed from this side"]


def test_new_credentials_take_over_without_the_will(broker, authority, peer, wait_until):
    server = peer("wherryd", [EVERY_DEVICE_UP])
    device = peer("dev-1", will=(PRESENCE, b"gone"))
    wait_until(lambda: server.client.connected and device.client.connected, "both connect")
    certificate, key = authority.issue("dev-1", as_name="dev-1-next")
    device.client.replace_credentials(
        broker.settings("dev-1", certificate_file=str(certificate), key_file=str(key), reconnect_min=60)
    )
    wait_until(lambda: device.connects == 2, "it reconnects at once")
    device.client.publish(STATE, b"new key")
    wait_until(lambda: server.payloads(STATE) == [b"new key"], "the state arrives")
    assert server.payloads(PRESENCE) == []


def test_refused_certificate_is_reported_in_words(broker, authority, peer, tmp_path, wait_until):
    folder = tmp_path / "stranger"
    folder.mkdir()
    certificate, key = type(authority)(folder).issue("dev-1")
    stranger = peer("dev-1", certificate_file=str(certificate), key_file=str(key))
    wait_until(lambda: stranger.client.problem is not None, "the refusal is noticed")
    assert "is this client's certificate valid" in str(stranger.client.problem)
    assert stranger.connects == 0
    assert stranger.losses == []


def test_foreign_broker_is_refused_before_anything_is_sent(broker, authority, peer, tmp_path, wait_until):
    folder = tmp_path / "other"
    folder.mkdir()
    peer_of_another_ca = peer("dev-1", ca_file=str(type(authority)(folder).ca_file))
    wait_until(lambda: peer_of_another_ca.client.problem is not None, "the refusal is noticed")
    assert "its certificate is not accepted" in str(peer_of_another_ca.client.problem)


def test_missing_files_and_no_broker_are_problems_not_exceptions(broker, peer, wait_until):
    unreadable = peer("dev-1", key_file="/nonexistent/key")
    wait_until(lambda: unreadable.client.problem is not None, "the missing file is noticed")
    assert "certificate files cannot be used" in str(unreadable.client.problem)
    broker.kill()
    lonely = peer("dev-1")
    wait_until(lambda: lonely.client.problem is not None, "the missing broker is noticed")
    assert "cannot be reached" in str(lonely.client.problem)


@pytest.fixture
def impostor(broker):
    """Something with the broker's certificate that answers every connection with the bytes given."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(broker.folder / "broker.crt", broker.folder / "broker.key")
    listener = socket.create_server(("127.0.0.1", 0))
    held, threads = [], []

    def answer_with(*answers):
        def serve():
            for answer in answers:
                raw, _ = listener.accept()
                held.append(context.wrap_socket(raw, server_side=True))
                held[-1].recv(4096)
                held[-1].sendall(answer)

        threads.append(threading.Thread(target=serve, daemon=True))
        threads[-1].start()
        return listener.getsockname()[1]

    yield answer_with
    for thread in threads:
        thread.join(5)
    for sock in (*held, listener):
        sock.close()


CONNACK = bytes.fromhex("2003000000")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        pytest.param(b"", "does not answer as an MQTT broker", id="silence"),
        pytest.param(b"HTTP/1.0 400 no\r\n\r\n", "does not answer as an MQTT broker", id="another protocol"),
        pytest.param(CONNACK + b"\x30\xff\xff\xff\x7f" + b"x" * 9000, "268435455 bytes", id="endless packet"),
        pytest.param(CONNACK + b"\x30\x03\x00\xff\x00", "lost", id="topic cut off"),
        pytest.param(CONNACK + b"\xd0\x80\x80\x80\x80\x01", "lost", id="length of five bytes"),
    ],
)
def test_hostile_answers_end_one_connection_and_never_the_loop(impostor, peer, wait_until, answer, words):
    port = impostor(answer, CONNACK)
    device = peer("dev-1", port=port, connect_timeout=0.5)
    seen = []

    def lost():
        if device.client.problem is not None:
            seen.append(str(device.client.problem))
        return seen

    wait_until(lost, "the bad answer is noticed")
    assert words in seen[0]
    wait_until(lambda: device.client.connected, "it connects again")


def test_giant_foreign_and_failing_messages_do_not_end_the_loop(broker, peer, wait_until):
    server = peer("wherryd", [EVERY_DEVICE_UP, "wherry/v1/d/+/up/other/#"])
    device = peer("dev-1")
    server.fail_on = b"fail"
    wait_until(lambda: server.client.connected and device.client.connected, "both connect")
    assert not device.client.publish(STATE, b"x" * (MAX_PAYLOAD_BYTES + 1))
    device.client._session._paho.publish("wherry/v1/d/dev-1/up/other/thing", b"?", qos=1)
    device.client.publish(STATE, b"fail")
    device.client.publish(STATE, b"\xff\xfe not UTF-8")
    device.client.publish(STATE, b"x" * MAX_PAYLOAD_BYTES)
    wait_until(lambda: len(server.payloads(STATE)) == 3, "all that is allowed arrives")
    wait_until(lambda: server.client.ignored >= 1, "the foreign topic is ignored")
    assert server.connects == device.connects == 1


def test_queue_of_unacknowledged_messages_is_bounded(broker, peer, wait_until):
    device = peer("dev-1", queue=5)
    wait_until(lambda: device.client.connected, "the device connects")
    broker.process.send_signal(signal.SIGSTOP)
    try:
        accepted = [device.client.publish(STATE, b"x") for _ in range(8)]
    finally:
        broker.process.send_signal(signal.SIGCONT)
    assert accepted == [True] * 5 + [False] * 3
