"""The agent's link and telemetry against a real broker that is killed, and a tiny server that acknowledges."""

from __future__ import annotations

import queue
import threading
from datetime import UTC, datetime

import pytest

from wherry.messages import (
    HostSample,
    PollNow,
    Presence,
    Retry,
    StateReport,
    TelemetryAck,
    TelemetryBatch,
    parse_up,
)
from wherry.mqtt import MqttClient
from wherry.questions import LogLine, LogsReply, LogsRequest
from wherry.topics import EVERY_DEVICE_UP, Kind, Topic
from wherry_agent.events import AssignmentReceived, CommandReceived, LinkChanged
from wherry_agent.link import AgentLink
from wherry_agent.spool import Spool
from wherry_agent.telemetry import Flusher

pytestmark = pytest.mark.broker
NOW = datetime(2030, 1, 1, tzinfo=UTC)
DIGEST = "sha256:" + "1" * 64


def state(number, **changes):
    values = {"profile": "generic-amd64", "agent_version": "1", "stream": "s", "boot_id": "b", "sequence": 1}
    return StateReport(device="dev-1", number=number, at=NOW, **(values | changes))


def host(number):
    return HostSample(
        cpu_percent=1, memory_used_bytes=number, memory_total_bytes=1, disk_used_bytes=1, disk_total_bytes=1
    )


class TinyServer:
    """Stores telemetry by number, acknowledges what it stored, remembers the rest."""

    def __init__(self, settings):
        self.stored, self.received, self.others = {}, 0, []
        self.deaf = False
        self.client = MqttClient(settings, self._message, lambda: None, lambda reason: None, [EVERY_DEVICE_UP])

    def _message(self, topic, payload):
        message = parse_up(payload)
        if not isinstance(message, TelemetryBatch):
            self.others.append(message)
            return
        if self.deaf:
            return
        for entry in message.records:
            self.received += 1
            self.stored[message.stream, entry.sequence] = entry.record
        ack = TelemetryAck(stream=message.stream, sequence=message.records[-1].sequence)
        self.client.publish(Topic(message.device, Kind.CMD), ack.to_bytes())

    def states(self):
        return [message.number for message in self.others if isinstance(message, StateReport)]

    def presences(self):
        return [message.online for message in self.others if isinstance(message, Presence)]


@pytest.fixture
def server(broker, wait_until):
    made = TinyServer(broker.settings("wherryd"))
    made.client.start()
    wait_until(lambda: made.client.connected, "the server connects")
    yield made
    made.client.stop()


class Device:
    def __init__(self, settings, folder):
        self.inbox, self.questions = queue.SimpleQueue(), []
        self.spool = Spool(folder / "spool.db", "dev-1")
        self.link = AgentLink(
            "dev-1", settings, self.inbox.put, lambda ack: self.flusher.on_ack(ack), lambda: NOW, self.questions.append
        )  # fmt: skip
        self.flusher = Flusher(
            self.spool, self.link, lambda: NOW, batch_bytes=2000, resend_seconds=0.3, busy_seconds=0.5
        )

    def events(self):
        found = []
        while not self.inbox.empty():
            found.append(self.inbox.get())
        return found

    def stop(self):
        self.flusher.stop()
        self.link.stop()
        self.spool.close()


@pytest.fixture
def device(broker, tmp_path):
    made = Device(broker.settings("dev-1"), tmp_path)
    yield made
    made.stop()


def test_says_that_it_is_online_and_how_it_is_at_every_connect(broker, server, device, wait_until):
    device.link.report(state(1))
    device.link.report(state(2))
    device.link.start()
    wait_until(lambda: server.states() == [2], "the newest state arrives, once")
    assert server.presences() == [True]
    broker.kill()
    wait_until(lambda: not device.link.connected, "the loss is noticed")
    device.link.report(state(3, sequence=2))
    broker.start()
    wait_until(lambda: server.states()[-1] == 3, "the state of after the loss arrives")
    changes = [event.connected for event in device.events() if isinstance(event, LinkChanged)]
    assert changes == [True, False, True]


def test_a_question_reaches_whoever_answers_and_the_answer_reaches_the_server(server, device, wait_until):
    device.link.start()
    wait_until(lambda: device.link.connected, "it connects")
    question = LogsRequest(id="question1", slot="main", lines=3)
    server.client.publish(Topic("dev-1", Kind.CMD), question.to_bytes())
    wait_until(lambda: device.questions == [question], "the question arrives")
    assert not any(isinstance(event, CommandReceived) for event in device.events()), "the control loop is left alone"
    answer = LogsReply(device="dev-1", id="question1", lines=[LogLine(at=NOW, text="hello", version="2")])
    assert device.link.reply(answer)
    wait_until(lambda: answer in server.others, "the answer arrives")


def test_a_report_that_says_nothing_new_is_not_sent(server, device, wait_until):
    device.link.start()
    wait_until(lambda: device.link.connected, "it connects")
    device.link.report(state(1))
    device.link.report(state(2))
    device.link.report(state(3, sequence=2))
    wait_until(lambda: 3 in server.states(), "the changed state arrives")
    assert server.states() == [1, 3]


def test_good_bye_tells_the_server(server, device, wait_until):
    device.link.start()
    wait_until(lambda: server.presences() == [True], "it is online")
    device.link.stop()
    wait_until(lambda: server.presences() == [True, False], "it is offline")


def test_assignments_and_commands_reach_the_inbox_and_nonsense_does_not(server, device, wait_until):
    device.link.start()
    wait_until(lambda: device.link.connected, "it connects")
    device.events()
    cmd, assign = Topic("dev-1", Kind.CMD), Topic("dev-1", Kind.ASSIGN)
    nonsense = [b"", b"\xff\xfe", b"[" * 5000, b'{"schema":1,"type":"reboot"}', b'{"schema":99,"type":"poll_now"}']
    for payload in nonsense:
        server.client.publish(cmd, payload)
    server.client.publish(assign, b"")
    server.client.publish(assign, b"signed bytes")
    server.client.publish(cmd, PollNow().to_bytes())
    server.client.publish(cmd, Retry(slot="main", digest=DIGEST).to_bytes())
    got = []
    wait_until(lambda: got.extend(device.events()) or len(got) >= 3, "three events arrive")
    assert got == [
        AssignmentReceived(b"signed bytes", "mqtt"),
        CommandReceived(PollNow()),
        CommandReceived(Retry(slot="main", digest=DIGEST)),
    ]
    assert device.link.malformed == len(nonsense) + 1


def test_telemetry_loses_nothing_when_the_broker_is_killed_again_and_again(broker, server, device, wait_until):
    """What the broker acknowledged and forgot comes again; what came twice counts once."""
    device.link.start()
    total, running = 400, threading.Event()

    def flush_for_ever():
        while not running.is_set():
            device.flusher.flush()
            running.wait(0.02)

    flusher = threading.Thread(target=flush_for_ever)
    flusher.start()
    try:
        for number in range(total):
            device.spool.append(host(number), NOW)
            if number % 100 == 50:
                wait_until(lambda: device.link.connected and server.client.connected, "both are back")
                before = len(server.stored)
                wait_until(lambda: len(server.stored) > before or not device.spool.waiting(), "telemetry flows")  # noqa: B023
                broker.kill()
                broker.start()
        wait_until(lambda: not device.spool.waiting(), "everything is acknowledged", 60)
    finally:
        running.set()
        device.flusher.stop()
        flusher.join()
    values = [record.memory_used_bytes for record in server.stored.values()]
    assert sorted(values) == list(range(total))


def test_telemetry_is_sent_again_until_the_server_says_it_is_stored(server, device, wait_until):
    server.deaf = True
    device.link.start()
    wait_until(lambda: device.link.connected, "it connects")
    device.spool.append(host(1), NOW)
    device.flusher.flush()
    assert device.spool.waiting() == {"host": 1}
    server.deaf = False

    def acknowledged():
        device.flusher.flush()
        return not device.spool.waiting()

    wait_until(acknowledged, "it is sent again and acknowledged")
    assert [record.memory_used_bytes for record in server.stored.values()] == [1]


def test_without_a_connection_telemetry_waits(device):
    device.spool.append(host(1), NOW)
    device.flusher.flush()
    assert device.spool.waiting() == {"host": 1}
