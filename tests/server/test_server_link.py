"""The link over a real broker, with the acl and certificates that the server itself made."""

from __future__ import annotations

import contextlib
import socket
import ssl
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives import serialization

from wherry.errors import MalformedMessage
from wherry.messages import HostSample, Presence, TelemetryAck, TelemetryBatch, TelemetryRecord, parse_command
from wherry.mqtt import BrokerSettings, MqttClient
from wherry.questions import LogLine, LogsReply
from wherry.topics import Kind, Topic
from wherry_server.app import Bell, broker_settings
from wherry_server.inbox import Inbox
from wherry_server.link import ServerLink, read_message
from wherry_server.services import assignments, outbox, reports
from wherry_server.store import device_views
from wherry_server.store.database import Unavailable

TO_ALL = {"everything": True}
SAMPLE = HostSample(cpu_percent=1, memory_used_bytes=1, memory_total_bytes=2, disk_used_bytes=1, disk_total_bytes=2)


class LiveDevice:
    """An enrolled device that is connected to the broker with its own certificate."""

    def __init__(self, device, context, folder, wait, subscriptions=None, will=None):
        self.device = device
        self.wait = wait
        self.got = []
        base = folder / device.name
        base.mkdir(exist_ok=True)
        (base / "crt").write_text(device.certificate)
        (base / "key").write_bytes(
            device.key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        settings = BrokerSettings(
            "127.0.0.1", context.config.broker_port, device.name, str(context.authority.ca_file),
            str(base / "crt"), str(base / "key"), reconnect_min=0.1, reconnect_max=0.3,
        )  # fmt: skip
        own = [str(Topic(device.name, kind)) for kind in (Kind.CMD, Kind.ASSIGN)]
        self.client = MqttClient(settings, self._take, lambda: None, lambda _reason: None, subscriptions or own, will)
        self.client.start()
        wait(lambda: self.client.connected)

    def _take(self, topic, payload):
        self.got.append((topic, payload))

    def received(self, kind, name=None):
        return [
            payload for topic, payload in self.got if (topic.kind, topic.device) == (kind, name or self.device.name)
        ]

    def send(self, kind, message, name=None):
        assert self.client.publish(Topic(name or self.device.name, kind), message.to_bytes())


@pytest.fixture
def link(live_context, broker, wait):
    bell = Bell()
    context = type(live_context)(
        **{name: getattr(live_context, name) for name in live_context.__slots__ if name != "wake"}, wake=bell.ring
    )
    found = ServerLink(context, broker_settings(context))
    bell.listener = found.wake
    found.start()
    wait(lambda: found.connected)
    yield found
    found.stop()


@pytest.fixture
def live_api(link, make_api):
    return make_api(link._context)


@pytest.fixture
def live(link, live_api, device_class, tmp_path, wait):
    """Makes enrolled devices that are connected to the broker."""
    made = []

    def make(name="dev-1", **options):
        made.append(LiveDevice(device_class(live_api, name).enrol(), link._context, tmp_path, wait, **options))
        return made[-1]

    yield make
    for found in made:
        found.client.stop()


@pytest.fixture
def live_owner(link, make_owner):
    return make_owner(link._context)


def roll_out(api, version):
    reply = api.post("/v1/rollouts", {"model": "vision", "version": version, "selector": TO_ALL})
    assert reply.status_code == 201, reply.text
    return reply.json()["id"]


def twin(context, name="dev-1"):
    with context.store.read() as session:
        return device_views.device_view(session, name)


@pytest.mark.broker
def test_a_release_reaches_the_device_and_its_word_comes_back(link, live_api, live, live_owner, wait):
    one = live()
    release = live_owner.release("1")
    rollout = roll_out(live_api, "1")
    wait(lambda: one.received(Kind.ASSIGN))
    assert one.received(Kind.ASSIGN) == [assignments.current_assignment(link._context, "dev-1")]
    wait(lambda: outbox.pending(link._context) == [])
    one.device.sequence = 1
    one.send(Kind.STATE, one.device.runs(release))
    wait(lambda: live_api.get(f"/v1/rollouts/{rollout}").json()["state"] == "completed")
    assert twin(link._context).online


@pytest.mark.broker
def test_devices_read_and_write_their_own_topics_only(link, live_api, live, live_owner, wait):
    everything = ["wherry/v1/d/+/assign", "wherry/v1/d/+/cmd", "wherry/v1/d/dev-1/up/#"]
    spy = live("dev-2", subscriptions=everything)
    one = live("dev-1")
    live_owner.release("1")
    roll_out(live_api, "1")
    wait(lambda: spy.received(Kind.ASSIGN) and one.received(Kind.ASSIGN))
    # Written to another's topic: the broker drops it. On its own topic in another's name: the server does.
    spy.send(Kind.PRESENCE, Presence(device="dev-1", online=True), name="dev-1")
    spy.send(Kind.PRESENCE, Presence(device="dev-1", online=True))
    spy.send(Kind.ASSIGN, Presence(device="dev-1", online=True), name="dev-1")
    spy.send(Kind.STATE, spy.device.report())
    wait(lambda: twin(link._context, "dev-2").online)
    assert not twin(link._context, "dev-1").online
    assert {topic.device for topic, _ in spy.got} == {"dev-2"}
    assert len(one.received(Kind.ASSIGN)) == 1


@pytest.mark.broker
def test_a_broker_that_lost_everything_gets_all_assignments_again(link, live_api, live, live_owner, broker, wait):
    live()
    live_owner.release("1")
    roll_out(live_api, "1")
    wait(lambda: outbox.pending(link._context) == [])
    broker.kill(forget=True)
    wait(lambda: not link.connected)
    broker.start()
    wait(lambda: link.connected, 20)
    late = live("dev-1")
    wait(lambda: late.received(Kind.ASSIGN))
    assert late.received(Kind.ASSIGN)[-1] == assignments.current_assignment(link._context, "dev-1")


@pytest.mark.broker
def test_what_happens_while_the_broker_is_away_is_sent_afterwards(link, live_api, live, live_owner, broker, wait):
    one = live()
    live_owner.release("1")
    broker.kill()
    wait(lambda: not link.connected)
    roll_out(live_api, "1")
    assert live_api.post("/v1/devices/dev-1/poll").status_code == 202
    broker.start()
    wait(lambda: one.received(Kind.ASSIGN) and one.received(Kind.CMD), 20)
    wait(lambda: outbox.pending(link._context) == [])


@pytest.mark.broker
def test_telemetry_is_acknowledged_once_it_is_stored(link, live, wait):
    one = live()
    record = TelemetryRecord(sequence=7, at=datetime.now(UTC), record=SAMPLE)
    one.send(Kind.TELEMETRY, TelemetryBatch(device="dev-1", stream="s", records=[record]))
    (payload,) = wait(lambda: one.received(Kind.CMD))
    assert parse_command(payload) == TelemetryAck(stream="s", sequence=7)


@pytest.mark.broker
def test_a_device_that_dies_is_offline_by_its_will(link, live, wait):
    gone = Presence(device="dev-1", online=False).to_bytes()
    one = live(will=(Topic("dev-1", Kind.PRESENCE), gone))
    one.send(Kind.PRESENCE, Presence(device="dev-1", online=True))
    wait(lambda: twin(link._context).online)
    one.client.stop()
    wait(lambda: not twin(link._context).online)


@pytest.mark.broker
def test_a_revoked_device_is_mute_although_its_connection_stands(link, live_api, live, live_owner, wait):
    one, other = live("dev-1"), live("dev-2")
    live_owner.release("1")
    roll_out(live_api, "1")
    wait(lambda: one.received(Kind.ASSIGN))
    assert live_api.request("DELETE", "/v1/devices/dev-1").status_code == 204

    def mute():
        """Whether a command reaches the other alone. The broker reads its rules anew soon after it was told to."""
        before, others = len(one.received(Kind.CMD)), len(other.received(Kind.CMD))
        with link._context.store.write() as session:
            for device in ("dev-1", "dev-2"):
                outbox.put_command(session, device, parse_command(b'{"schema":1,"type":"poll_now"}'), datetime.now(UTC))
        link.wake()
        wait(lambda: len(other.received(Kind.CMD)) > others)
        return len(one.received(Kind.CMD)) == before

    wait(mute)
    assert mute()


@pytest.mark.broker
def test_the_broker_forgets_a_removed_device(link, live_api, live, live_owner, wait):
    one = live("dev-1")
    one.send(Kind.PRESENCE, Presence(device="dev-1", online=True))
    live_owner.release("1")
    roll_out(live_api, "1")
    wait(lambda: one.received(Kind.ASSIGN))
    wait(lambda: twin(link._context).online)
    one.client.stop()
    assert live_api.post("/v1/devices/dev-1/remove?force=true").status_code == 204
    wait(lambda: not outbox.pending(link._context))

    again, other = live("dev-1"), live("dev-2")
    other.send(Kind.PRESENCE, Presence(device="dev-2", online=True))
    assignments.poll_now(link._context, "dev-1")
    wait(lambda: again.received(Kind.CMD))
    # What is retained comes first. The empty message itself waited in the session of the device before.
    assert not any(again.received(Kind.ASSIGN))
    wait(lambda: twin(link._context, "dev-2").online)
    link.stop()
    retained = []
    client = MqttClient(
        broker_settings(link._context), lambda topic, payload: retained.append((topic.device, payload)),
        lambda: None, lambda _reason: None, [str(Topic(name, Kind.PRESENCE)) for name in ("dev-1", "dev-2")],
    )  # fmt: skip
    client.start()
    wait(lambda: retained)
    client.stop()
    assert [device for device, _ in retained] == ["dev-2"]


@pytest.mark.broker
def test_who_has_no_certificate_of_ours_is_nobody(link, live_context):
    context = ssl.create_default_context(cafile=live_context.authority.ca_file)
    connect = b"\x10\x0f\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x01a\x00"
    where = ("127.0.0.1", live_context.config.broker_port)
    # Under TLS 1.3 a client learns with its first read that its certificate was missed.
    with (
        contextlib.suppress(OSError),
        socket.create_connection(where) as raw,
        context.wrap_socket(raw, server_hostname="127.0.0.1") as tls,
    ):
        tls.sendall(connect)
        assert tls.recv(1) == b""


def test_a_device_speaks_for_itself_and_on_the_right_topic():
    message = Presence(device="dev-1", online=True)
    presence = message.to_bytes()
    assert read_message(Topic("dev-1", Kind.PRESENCE), presence) == message
    with pytest.raises(MalformedMessage, match="speaks for device dev-1"):
        read_message(Topic("dev-2", Kind.PRESENCE), presence)
    with pytest.raises(MalformedMessage, match="is of type presence"):
        read_message(Topic("dev-1", Kind.STATE), presence)


def test_the_inbox_keeps_the_newest_state_and_refuses_telemetry_over_its_limit():
    inbox = Inbox(telemetry_limit=2)
    state, batch = Topic("a", Kind.STATE), Topic("a", Kind.TELEMETRY)
    for payload in (b"1", b"2", b"3"):
        inbox.put(batch, payload)
        inbox.put(state, payload)
    assert [inbox.get() for _ in range(3)] == [(state, b"3"), (batch, b"1"), (batch, b"2")]
    assert (inbox.refused, inbox.waiting, inbox.lag_seconds) == (1, 0, 0.0)
    inbox.put(batch, b"4")
    assert inbox.waiting == 1
    assert inbox.lag_seconds >= 0.0
    inbox.close()
    assert inbox.get() is None


@pytest.mark.broker
def test_a_question_reaches_the_device_and_its_answer_the_caller(link, live_api, live, wait):
    link._context.line.wire = link
    one = live()
    one.send(Kind.STATE, one.device.report())
    wait(lambda: twin(link._context).online)

    def take(topic, payload):
        request = parse_command(payload)
        line = LogLine(at=datetime.now(UTC), text="héllo")
        one.send(Kind.REPLY, LogsReply(device="dev-1", id="0" * 8))  # nobody asked that
        one.send(Kind.REPLY, LogsReply(device="dev-1", id=request.id, lines=[line]))
        one.send(Kind.REPLY, LogsReply(device="dev-1", id=request.id))  # late

    one.client._on_message = take
    reply = live_api.post("/v1/devices/dev-1/logs", {})
    assert reply.status_code == 200, reply.text
    assert [line["text"] for line in reply.json()["lines"]] == ["héllo"]


@pytest.mark.broker
def test_a_state_waits_for_a_database_that_is_away(link, live, wait, monkeypatch):
    one, tries, ingest = live(), [], reports.ingest_state

    def away(context, report):
        tries.append(report)
        if len(tries) < 3:
            raise Unavailable("database", "is away")
        return ingest(context, report)

    monkeypatch.setattr("wherry_server.link.reports.ingest_state", away)
    one.send(Kind.STATE, one.device.report())
    wait(lambda: twin(link._context).online)
    assert len(tries) == 3


def test_silent_devices_count_as_offline_after_a_while(context, device, clock):
    reports.ingest_presence(context, Presence(device="dev-1", online=True))
    clock.pass_time(seconds=179)
    assert reports.mark_stale(context) == 0
    clock.pass_time(seconds=2)
    assert reports.mark_stale(context) == 1
    assert not twin(context).online
    assert twin(context).last_seen == clock() - timedelta(seconds=181)
