"""MQTT to use cases and back: what devices send goes in, the outbox goes out. No database work in MQTT's thread."""

from __future__ import annotations

import logging
import threading
import time

from wherry.errors import MalformedMessage, WherryError
from wherry.messages import AnyUpMessage, Presence, StateReport, TelemetryBatch, parse_up
from wherry.mqtt import MAX_PAYLOAD_BYTES, BrokerSettings, MqttClient
from wherry.questions import DiagnoseReply, LogsReply
from wherry.topics import EVERY_DEVICE_UP, Kind, Topic
from wherry_server.inbox import Inbox
from wherry_server.services import outbox, reports, telemetry
from wherry_server.services.context import Context
from wherry_server.store.database import Unavailable

PAGE = 200
_FULL_SECONDS = 0.05
_IDLE_SECONDS = 30.0
_RETRY_SECONDS = 0.1
_RETRY_MAX_SECONDS = 5.0
_log = logging.getLogger(__name__)
_KINDS = {
    StateReport: Kind.STATE,
    Presence: Kind.PRESENCE,
    TelemetryBatch: Kind.TELEMETRY,
    LogsReply: Kind.REPLY,
    DiagnoseReply: Kind.REPLY,
}


def read_message(topic: Topic, payload: bytes) -> AnyUpMessage:
    """A device's message, checked against the topic it came on: a device speaks for itself only.

    Raises:
        ContractError: not a message, of another device, or on the wrong topic.
    """
    message = parse_up(payload)
    if message.device != topic.device:
        raise MalformedMessage(f"message on {topic}", f"speaks for device {message.device[:64]}")
    if _KINDS[type(message)] is not topic.kind:
        raise MalformedMessage(f"message on {topic}", f"is of type {message.type}")
    return message


class ServerLink:
    """The server's connection to the broker, with one thread that handles and one that sends.

    Args:
        context: the server's parts.
        settings: the broker, and the server's own certificate.
    """

    def __init__(self, context: Context, settings: BrokerSettings) -> None:
        self._context = context
        self._inbox = Inbox()
        self._bell = threading.Event()
        self._lost = threading.Event()
        self._stopping = threading.Event()
        self._since: float | None = None
        self._client = MqttClient(
            settings, self._received, self._on_connected, self._on_disconnected, [EVERY_DEVICE_UP]
        )
        self._threads = [
            threading.Thread(target=self._handle_all, name="link-in", daemon=True),
            threading.Thread(target=self._send_all, name="link-out", daemon=True),
        ]

    def start(self) -> None:
        """Begin to connect, handle and send; returns at once."""
        for thread in self._threads:
            thread.start()
        self._client.start()

    def stop(self) -> None:
        """Send what is queued and end."""
        self._client.stop()
        self._stopping.set()
        self._bell.set()
        self._inbox.close()
        for thread in self._threads:
            thread.join(timeout=10)

    def wake(self) -> None:
        """There is something in the outbox."""
        self._bell.set()

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted the connection."""
        return self._client.connected

    @property
    def connected_seconds(self) -> float:
        """For how long the connection has stood; 0 without one."""
        since = self._since
        return time.monotonic() - since if since is not None and self._client.connected else 0.0

    @property
    def waiting(self) -> int:
        """Messages that came and are not handled yet."""
        return self._inbox.waiting

    @property
    def refused(self) -> int:
        """Telemetry batches refused because too many waited; their devices send them again."""
        return self._inbox.refused

    @property
    def lag_seconds(self) -> float:
        """How long the oldest telemetry that waits has waited."""
        return self._inbox.lag_seconds

    def publish(self, topic: Topic, payload: bytes) -> bool:
        """Send at once, without the outbox; False when it cannot be queued."""
        return self._client.publish(topic, payload)

    def _received(self, topic: Topic, payload: bytes) -> None:
        if topic.kind is Kind.REPLY:
            self._answer(topic, payload)
        else:
            self._inbox.put(topic, payload)

    def _answer(self, topic: Topic, payload: bytes) -> None:
        """Somebody waits for a reply, so it does not queue up behind the database."""
        if not self._context.questions.expects(topic.device):
            _log.info("a reply on %s came too late, or nobody asked", topic)
            return
        try:
            reply = read_message(topic, payload)
        except WherryError as error:
            _log.warning("message on %s was not used: %s", topic, error)
            return
        if isinstance(reply, LogsReply | DiagnoseReply):
            self._context.questions.take(reply)

    def _on_connected(self) -> None:
        _log.info("connected to the broker")
        self._since = time.monotonic()
        # A broker that was killed has forgotten retained messages: every assignment goes out again.
        self._lost.set()
        self._bell.set()

    def _on_disconnected(self, reason: str) -> None:
        self._since = None
        _log.warning("not connected to the broker: %s", reason)

    def _handle_all(self) -> None:
        while (item := self._inbox.get()) is not None:
            topic, payload = item
            wait = _RETRY_SECONDS
            while not self._handled(topic, payload) and not self._stopping.wait(wait):
                wait = min(2 * wait, _RETRY_MAX_SECONDS)

    def _handled(self, topic: Topic, payload: bytes) -> bool:
        """Handle a message; False when it should be tried again, because the database is away."""
        try:
            self._handle(topic, payload)
        except Unavailable as error:
            _log.warning("message on %s waits: %s", topic, error)
            return False
        except WherryError as error:
            _log.warning("message on %s was not used: %s", topic, error)
        except Exception:
            _log.exception("message on %s met a defect", topic)
        return True

    def _handle(self, topic: Topic, payload: bytes) -> None:
        if not payload:
            return  # somebody cleared a retained message
        match read_message(topic, payload):
            case StateReport() as report:
                reports.ingest_state(self._context, report)
            case Presence() as presence:
                reports.ingest_presence(self._context, presence)
            case TelemetryBatch() as batch:
                ack = telemetry.ingest(self._context, batch)
                if ack is not None:
                    # Not through the outbox: an acknowledgement that is lost is asked for again.
                    self._client.publish(Topic(topic.device, Kind.CMD), ack.to_bytes())

    def _send_all(self) -> None:
        while not self._stopping.is_set():
            self._bell.wait(_IDLE_SECONDS)
            self._bell.clear()
            if not self._client.connected:
                continue
            try:
                if self._lost.is_set():
                    self._lost.clear()
                    self._send_assignments()
                self._send_outbox()
            except WherryError as error:
                _log.warning("sending stopped for now: %s", error)
            except Exception:
                _log.exception("sending met a defect")

    def _send_assignments(self) -> None:
        after = ""
        while page := outbox.current_assignments(self._context, after, PAGE):
            for message in page:
                if not self._send(message):
                    return  # disconnected: the next connection begins again
            after = page[-1].topic.device

    def _send_outbox(self) -> None:
        while page := outbox.pending(self._context, PAGE):
            done = []
            for message in page:
                if not self._send(message):
                    break
                done.append(message.id)
            outbox.sent(self._context, done)
            if len(done) < len(page):
                return

    def _send(self, message: outbox.OutMessage) -> bool:
        """Hand a message to the MQTT client, waiting while its queue is full; False without a connection."""
        if len(message.payload) > MAX_PAYLOAD_BYTES:
            _log.error("message for %s has %d bytes and is dropped", message.topic, len(message.payload))
            return True
        while not self._client.publish(message.topic, message.payload):
            if self._stopping.wait(_FULL_SECONDS) or not self._client.connected:
                return False
        return True
