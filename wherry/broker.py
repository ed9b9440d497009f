"""How to reach the MQTT broker: settings, delays between attempts, and the TLS context."""

from __future__ import annotations

import ssl
from dataclasses import dataclass

from wherry.errors import LinkError


@dataclass(frozen=True, slots=True)
class BrokerSettings:
    """How to reach the broker, and every limit of the channel.

    Attributes:
        ca_file, certificate_file, key_file: PEM paths; read anew for each connection.
        keepalive: seconds without traffic after which each side tests the other.
        session_expiry: seconds the broker keeps the session of an absent client.
        connect_timeout: seconds for TCP, for the handshake and for the CONNACK, each.
        reconnect_min, reconnect_max: bounds of the delay, which doubles and is jittered.
        queue: messages given to `publish` that the broker has not acknowledged yet.
    """

    host: str
    port: int
    client_id: str
    ca_file: str
    certificate_file: str
    key_file: str
    keepalive: int = 60
    session_expiry: int = 7 * 86_400
    connect_timeout: float = 15.0
    reconnect_min: float = 1.0
    reconnect_max: float = 60.0
    queue: int = 200
    receive_maximum: int = 20


def reconnect_delay(settings: BrokerSettings, failures: int, fraction: float) -> float:
    """Seconds before the next attempt: doubled per failure, then jittered over its upper half.

    Args:
        settings: holds the bounds.
        failures: attempts in a row that did not give a stable connection, from 1.
        fraction: a random number of [0, 1), so that a fleet does not come back in one instant.
    """
    ceiling = min(settings.reconnect_max, settings.reconnect_min * 2.0 ** min(failures - 1, 16))
    return ceiling * (0.5 + 0.5 * fraction)


class _TlsSocket(ssl.SSLSocket):
    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()  # paho forgets a socket whose handshake failed
            raise


def tls_context(settings: BrokerSettings, name: str) -> ssl.SSLContext:
    """TLS 1.3 with this client's certificate, for this broker's CA alone.

    Raises:
        LinkError: a file cannot be used; `name` says for which broker.
    """
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.sslsocket_class = _TlsSocket
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(settings.ca_file)
        context.load_cert_chain(settings.certificate_file, settings.key_file)
    except (OSError, ValueError) as error:
        raise LinkError(name, f"its certificate files cannot be used ({error})", "Enrol the device again") from error
    return context
