"""The MQTT channel: one client that both ends use. The only importer of paho.

A thread of ours drives paho through its external-loop functions, one paho client per connection. So a
packet that paho cannot parse, or a callback that fails, ends at most one connection and never the loop;
nothing is left over from an old connection (its owner sends again what still matters when `on_connected`
comes); and new credentials take effect with the next connection.
"""

from __future__ import annotations

import contextlib
import logging
import random
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from wherry.broker import BrokerSettings, reconnect_delay, tls_context
from wherry.errors import LinkError, MalformedMessage
from wherry.topics import Topic

__all__ = ["MAX_PACKET_BYTES", "MAX_PAYLOAD_BYTES", "BrokerSettings", "MqttClient", "reconnect_delay"]

MAX_PACKET_BYTES = 262_144
MAX_PAYLOAD_BYTES = MAX_PACKET_BYTES - 1024
"""What fits into a packet beside topic and properties."""
_STABLE_SECONDS = 30.0
_FAREWELL_SECONDS = 2.0
_log = logging.getLogger(__name__)


class _Session:
    """One connection, from TCP connect to its end; driven by one thread, `publish` may come from any."""

    def __init__(
        self,
        settings: BrokerSettings,
        subscriptions: Sequence[str],
        will: tuple[Topic, bytes] | None,
        on_message: Callable[[MQTTMessage], None],
    ) -> None:
        self.name = f"broker {settings.host}:{settings.port}"
        self.accepted = False
        self.ended: str | None = None
        self._settings = settings
        self._subscriptions = subscriptions
        self._will = will
        self._poller = select.poll()
        self._paho = self._make_client(on_message)

    def _make_client(self, on_message: Callable[[MQTTMessage], None]) -> Client:
        client = Client(CallbackAPIVersion.VERSION2, self._settings.client_id, protocol=MQTTv5)
        client.suppress_exceptions = True
        client.connect_timeout = self._settings.connect_timeout
        client.max_queued_messages_set(self._settings.queue)
        client.tls_set_context(tls_context(self._settings, self.name))
        if self._will is not None:
            topic, payload = self._will
            client.will_set(str(topic), payload, qos=1, retain=topic.kind.retained)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_message = lambda _client, _userdata, message: on_message(message)
        # With this callback set, publish() only queues: the socket stays with our thread.
        client.on_socket_register_write = lambda *_: None
        return client

    def open(self, wake: socket.socket) -> None:
        """Connect TCP and TLS and send CONNECT.

        Raises:
            LinkError: in words, whatever went wrong.
        """
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = self._settings.session_expiry
        properties.ReceiveMaximum = self._settings.receive_maximum
        properties.MaximumPacketSize = MAX_PACKET_BYTES
        where, keepalive = self._settings, self._settings.keepalive
        try:
            self._paho.connect(where.host, where.port, keepalive, clean_start=False, properties=properties)
        except ssl.SSLCertVerificationError as error:
            raise LinkError(self.name, f"its certificate is not accepted: {error.verify_message}") from error
        except (OSError, ValueError) as error:
            raise LinkError(self.name, f"cannot be reached: {error}") from error
        self._poller.register(wake, select.POLLIN)

    def step(self, timeout: float, wake: socket.socket) -> None:
        """Wait for traffic and handle it. Sets `ended` when the connection is over."""
        sock = self._paho.socket()
        if sock is None:
            self.ended = self.ended or "the connection was lost"
            return
        writing = select.POLLOUT if self._paho.want_write() else 0
        self._poller.register(sock.fileno(), select.POLLIN | writing)
        pending = isinstance(sock, ssl.SSLSocket) and sock.pending() > 0
        ready = dict(self._poller.poll(0 if pending else timeout * 1000))
        if wake.fileno() in ready:
            with contextlib.suppress(BlockingIOError):
                wake.recv(4096)
        flags = ready.get(sock.fileno(), 0)
        if pending or flags & ~select.POLLOUT:
            self._paho.loop_read()
            self._check_packet_size()
        if self._paho.want_write():
            self._paho.loop_write()
        self._paho.loop_misc()

    def _check_packet_size(self) -> None:
        # paho announces the maximum packet size but reads whatever a hostile broker sends.
        packet = getattr(self._paho, "_in_packet", None) or {}
        if packet.get("remaining_length", 0) > MAX_PACKET_BYTES:
            self.ended = f"it sends a packet of {packet['remaining_length']} bytes, the limit is {MAX_PACKET_BYTES}"

    def publish(self, topic: Topic, payload: bytes) -> bool:
        info = self._paho.publish(str(topic), payload, qos=1, retain=topic.kind.retained)
        return info.rc == MQTTErrorCode.MQTT_ERR_SUCCESS

    def disconnect(self, with_will: bool) -> None:
        """Queue a DISCONNECT behind what was published; `with_will` has the broker publish the will."""
        reason = "Disconnect with will message" if with_will and self._will else "Normal disconnection"
        self._paho.disconnect(reasoncode=ReasonCode(PacketTypes.DISCONNECT, reason))

    def close(self) -> None:
        """Drop the connection, however it stands."""
        sock = self._paho.socket()
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.close()

    def _on_connect(self, _c: Client, _u: object, _f: ConnectFlags, reason: ReasonCode, _p: Properties | None) -> None:
        if reason.is_failure:
            self.ended = f"it refused the connection: {reason}"
            return
        if self._subscriptions:
            self._paho.subscribe([(topic, SubscribeOptions(qos=1)) for topic in self._subscriptions])
        self.accepted = True

    def _on_subscribe(self, _c: Client, _u: object, _m: int, reasons: list[ReasonCode], _p: Properties | None) -> None:
        refused = [str(reason) for reason in reasons if reason.is_failure]
        if refused:
            self.ended = f"it refused a subscription: {', '.join(refused)}"

    def _on_disconnect(
        self, _c: Client, _u: object, flags: DisconnectFlags, reason: ReasonCode, _p: Properties | None
    ) -> None:
        if self.ended is None:
            told = flags.is_disconnect_packet_from_server
            what = f"it ended the connection ({reason})" if told else "the connection was lost"
            self.ended = what if self.accepted else f"{what} before it was accepted; is this client's certificate valid"


class MqttClient:
    """A client that stays connected for as long as it runs.

    Callbacks come from its own thread, must return soon and may call `publish`; what they raise is logged.

    Args:
        settings: where and as whom to connect.
        on_message: called with topic and payload; other trees' topics and oversized payloads are left out.
        on_connected: called after every (re)connect. A broker that was killed forgets retained messages and
            messages it has acknowledged, so publish everything here that still matters.
        on_disconnected: called with the reason, after `on_connected` had been.
        subscriptions: topic filters, subscribed to at every connect.
        will: what the broker publishes when this client is gone.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        on_message: Callable[[Topic, bytes], None],
        on_connected: Callable[[], None],
        on_disconnected: Callable[[str], None],
        subscriptions: Sequence[str] = (),
        will: tuple[Topic, bytes] | None = None,
    ) -> None:
        self._settings = settings
        self._on_message = on_message
        self._on_connected = on_connected
        self._on_disconnected = on_disconnected
        self._subscriptions = tuple(subscriptions)
        self._will = will
        self._session: _Session | None = None
        self._connected = False
        self._stopping = threading.Event()
        self._changed = threading.Event()
        self._thread: threading.Thread | None = None
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self.problem: LinkError | None = None
        self.ignored = 0

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted the present connection."""
        return self._connected

    def start(self) -> None:
        """Begin to connect, and return at once; it is tried for ever."""
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)
        self._thread.start()

    def publish(self, topic: Topic, payload: bytes) -> bool:
        """Queue a message, QoS 1, retained as its topic's kind wants it. Never blocks.

        Returns:
            False when it was not queued: not connected, too many unacknowledged, or too long. True does not
            mean that it arrived.
        """
        session = self._session
        if session is None or not self._connected:
            return False
        if len(payload) > MAX_PAYLOAD_BYTES:
            _log.error("message for %s has %d bytes, the limit is %d: not sent", topic, len(payload), MAX_PAYLOAD_BYTES)
            return False
        try:
            queued = session.publish(topic, payload)
        except (ValueError, RuntimeError, OSError) as error:
            _log.warning("message for %s was not queued: %s", topic, error)
            return False
        self._wake()
        return queued

    def replace_credentials(self, settings: BrokerSettings) -> None:
        """Reconnect at once with other settings; the session at the broker goes on."""
        self._settings = settings
        self._changed.set()
        self._wake()

    def stop(self, timeout: float = 5.0) -> None:
        """Send what is queued, let the broker publish the will, and end. Returns when the thread has ended."""
        self._stopping.set()
        self._changed.set()
        self._wake()
        if self._thread is None:
            self._close_wake()
        elif self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):
            self._wake_out.send(b"w")

    def _run(self) -> None:
        failures = 0
        while True:
            self._changed.clear()
            if self._stopping.is_set():
                break
            began = time.monotonic()
            self._connect_once()
            # Two clients with one identity throw each other out: only a lasting connection resets the delay.
            failures = 1 if time.monotonic() - began > _STABLE_SECONDS else failures + 1
            if not self._changed.is_set():
                self._changed.wait(reconnect_delay(self._settings, failures, random.random()))  # noqa: S311
        self._close_wake()

    def _close_wake(self) -> None:
        self._wake_in.close()
        self._wake_out.close()

    def _connect_once(self) -> None:
        name = f"broker {self._settings.host}:{self._settings.port}"
        session: _Session | None = None
        try:
            session = _Session(self._settings, self._subscriptions, self._will, self._received)
            session.open(self._wake_in)
            self._session = session
            problem = self._drive(session)
        except LinkError as error:
            problem = error
        except Exception as error:
            _log.exception("the MQTT connection ended by a defect")
            problem = LinkError(name, f"the connection failed: {error!r}")
        finally:
            if session is not None:
                session.close()
            self._session = None
        self._ended(problem)

    def _drive(self, session: _Session) -> LinkError | None:
        """Serve one connection until it is over; the reason, or None when we ended it."""
        deadline = time.monotonic() + self._settings.connect_timeout
        idle = min(5.0, max(0.2, self._settings.keepalive / 4))
        while session.ended is None:
            session.step(idle if self._connected else 0.5, self._wake_in)
            if session.accepted and not self._connected and session.ended is None:
                self._connected, self.problem = True, None
                _guard(self._on_connected)
            if not session.accepted and time.monotonic() > deadline:
                return LinkError(session.name, "accepted the connection but does not answer as an MQTT broker")
            if self._changed.is_set():
                self._say_farewell(session)
                return None
        return LinkError(session.name, session.ended)

    def _say_farewell(self, session: _Session) -> None:
        session.disconnect(with_will=self._stopping.is_set())
        deadline = time.monotonic() + _FAREWELL_SECONDS
        while session.ended is None and time.monotonic() < deadline:
            session.step(0.1, self._wake_in)

    def _ended(self, problem: LinkError | None) -> None:
        if problem is not None and str(problem) != str(self.problem):
            _log.warning("%s", problem)
        # A copy: the traceback of the original would hold on to the dead connection.
        self.problem = LinkError(problem.thing, problem.reason, problem.fix) if problem else None
        if self._connected:
            self._connected = False
            _guard(self._on_disconnected, problem.reason if problem else "it was closed from this side")

    def _received(self, message: MQTTMessage) -> None:
        try:
            topic = Topic.parse(message.topic)
        except (MalformedMessage, UnicodeDecodeError):
            self.ignored += 1
            _log.warning("a message on a topic that is not Wherry's was ignored")
            return
        if len(message.payload) > MAX_PACKET_BYTES:
            self.ignored += 1
            return
        _guard(self._on_message, topic, message.payload)


def _guard(callback: Callable[..., None], *arguments: object) -> None:
    try:
        callback(*arguments)
    except Exception:
        _log.exception("a callback of the MQTT client failed; the connection goes on")
