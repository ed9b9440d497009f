"""MQTT topics on one side, the control loop's inbox on the other. Decodes and puts; decides nothing."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import datetime

from wherry.errors import ContractError, LinkError
from wherry.messages import Presence, StateReport, TelemetryAck, TelemetryBatch, parse_command
from wherry.mqtt import BrokerSettings, MqttClient
from wherry.questions import DiagnoseReply, DiagnoseRequest, LogsReply, LogsRequest
from wherry.topics import Kind, Topic
from wherry_agent.events import AssignmentReceived, CommandReceived, LinkChanged

REFRESH_SECONDS = 300.0
"""A state report that says nothing new is sent again after this time only."""
_log = logging.getLogger(__name__)


class AgentLink:
    """One device's connection to the broker.

    A broker that was killed has forgotten what it acknowledged, so presence and the newest state are
    published again at every connect. The server learns of a lost device by its will.

    Args:
        device: its id.
        settings: where and with which certificate to connect.
        put: the inbox; gets AssignmentReceived, CommandReceived and LinkChanged.
        on_ack: gets each TelemetryAck, on the MQTT thread: it must only hand it on.
        clock: the time now, for presence.
        on_question: gets what an operator asks, on the MQTT thread: it must only hand it on.
    """

    def __init__(
        self,
        device: str,
        settings: BrokerSettings,
        put: Callable[[AssignmentReceived | CommandReceived | LinkChanged], None],
        on_ack: Callable[[TelemetryAck], None],
        clock: Callable[[], datetime],
        on_question: Callable[[LogsRequest | DiagnoseRequest], None],
    ) -> None:
        self._device = device
        self._put = put
        self._on_ack = on_ack
        self._on_question = on_question
        self._clock = clock
        self._lock = threading.Lock()
        self._newest: StateReport | None = None
        self._sent: StateReport | None = None
        self._sent_at = 0.0
        self.connects = 0
        self.malformed = 0
        gone = Presence(device=device, online=False).to_bytes()
        self._client = MqttClient(
            settings,
            self._received,
            self._connected,
            self._disconnected,
            [str(Topic(device, Kind.CMD)), str(Topic(device, Kind.ASSIGN))],
            will=(Topic(device, Kind.PRESENCE), gone),
        )

    @property
    def connected(self) -> bool:
        """Whether the broker accepted the present connection."""
        return self._client.connected

    @property
    def problem(self) -> LinkError | None:
        """Why there is no connection, as far as known."""
        return self._client.problem

    def start(self) -> None:
        """Begin to connect; returns at once."""
        self._client.start()

    def stop(self) -> None:
        """Say good-bye: the broker publishes that the device is offline."""
        self._client.stop()

    def use(self, settings: BrokerSettings) -> None:
        """Connect again with other credentials."""
        self._client.replace_credentials(settings)

    def report(self, state: StateReport) -> None:
        """Keep the newest report and send it, unless the last one sent says the same."""
        with self._lock:
            self._newest = state
            stale = time.monotonic() - self._sent_at > REFRESH_SECONDS
            if stale or self._sent is None or not _says_the_same(state, self._sent):
                self._send_state()

    def send_batch(self, batch: TelemetryBatch) -> bool:
        """Send telemetry; False when it was not even queued. True does not mean that it arrived."""
        return self._client.publish(Topic(self._device, Kind.TELEMETRY), batch.to_bytes())

    def reply(self, answer: LogsReply | DiagnoseReply) -> bool:
        """Send the answer to a question; False when there is no connection: then nobody waits for it either."""
        return self._client.publish(Topic(self._device, Kind.REPLY), answer.to_bytes())

    def _send_state(self) -> None:
        if self._newest is not None:
            queued = self._client.publish(Topic(self._device, Kind.STATE), self._newest.to_bytes())
            self._sent = self._newest if queued else None
            self._sent_at = time.monotonic()

    # -- on the MQTT thread

    def _connected(self) -> None:
        self.connects += 1
        here = Presence(device=self._device, online=True, at=self._clock())
        self._client.publish(Topic(self._device, Kind.PRESENCE), here.to_bytes())
        with self._lock:
            self._send_state()
        _log.info("connected to the broker")
        self._put(LinkChanged(True))

    def _disconnected(self, reason: str) -> None:
        _log.info("disconnected from the broker: %s", reason)
        self._put(LinkChanged(False))

    def _received(self, topic: Topic, payload: bytes) -> None:
        if topic.device != self._device:
            self._ignore(f"a message for {topic.device}")
        elif topic.kind is Kind.ASSIGN and payload:
            self._put(AssignmentReceived(payload, "mqtt"))
        elif topic.kind is Kind.CMD:
            self._command(payload)
        else:
            self._ignore(f"an empty or unexpected message on {topic}")

    def _command(self, payload: bytes) -> None:
        try:
            command = parse_command(payload)
        except ContractError as error:
            self._ignore(str(error))
            return
        if isinstance(command, TelemetryAck):
            self._on_ack(command)
        elif isinstance(command, LogsRequest | DiagnoseRequest):
            self._on_question(command)
        else:
            self._put(CommandReceived(command))

    def _ignore(self, what: str) -> None:
        self.malformed += 1
        _log.warning("ignored: %s", what)


def _says_the_same(one: StateReport, other: StateReport) -> bool:
    return one.model_copy(update={"number": other.number, "at": other.at}) == other
