"""Group *MQTT*: the broker dies, partitions, loses packets, and says things that nobody said."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from paho.mqtt.client import Client, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion

from faults.proxy import Trouble
from faults.sweep import Run, fault


@contextlib.contextmanager
def speaker(run: Run, name: str, certificate: Path, key: Path) -> Iterator[Client]:
    """A client of the broker with somebody's certificate."""
    context = ssl.create_default_context(cafile=str(run.rig.lab.folder / "server/pki/ca.crt"))
    context.load_cert_chain(certificate, key)
    client = Client(CallbackAPIVersion.VERSION2, name, protocol=MQTTv5)
    client.tls_set_context(context)
    accepted = threading.Event()
    client.on_connect = lambda *_: accepted.set()
    client.connect("127.0.0.1", run.rig.lab.ports.broker)
    client.loop_start()
    try:
        accepted.wait(10)
        yield client
    finally:
        client.disconnect()
        client.loop_stop()


@contextlib.contextmanager
def server_voice(run: Run) -> Iterator[Client]:
    """A client with the server's own certificate: a broker that has been taken over could say as much."""
    pki = run.rig.lab.folder / "server/pki"
    with speaker(run, "wherryd", pki / "wherryd.crt", pki / "wherryd.key") as client:
        yield client


def say(client: Client, topic: str, payload: bytes, retain: bool = False) -> None:
    """Publish and wait until it has left."""
    client.publish(topic, payload, qos=1, retain=retain).wait_for_publish(10)


@fault("MQTT", 34, "broker kill -9")
def killed(run: Run) -> None:
    """SIGKILL of Mosquitto at different moments of a swap; it is started again after a second."""
    for wait in (0.2, 1.0, 2.5, 4.0)[: max(1, round(4 * run.scale))]:
        with run.swap():
            time.sleep(wait)
            run.rig.kill_broker()
            run.hit()
            time.sleep(1)
            run.rig.lab.start_broker()


@fault("MQTT", 35, "partition")
def partition(run: Run) -> None:
    """Registry, server and broker are away for one, ten and (full sweep) a hundred seconds from the start."""
    for seconds in (1, 10, 100)[: max(1, round(3 * run.scale))]:
        with run.swap(before=run.rig.cut_network, keep_image=False) as device:
            run.hit()
            time.sleep(seconds)
            run.expect(device.answers("1") or device.answers("2"), "nothing answers without a network")
            run.rig.heal()


@fault("MQTT", 35, "boot without a network")
def boot_offline(run: Run) -> None:
    """Nothing of the device runs, and nobody can be reached: the known-good serves before the network is there."""
    device = run.device
    device.restore()
    run.rig.cut_network()
    found = device.container("1")
    assert found is not None
    run.rig.engine.api.stop(found["id"], timeout=1)
    device.start()
    run.hit()
    wanted, device.wanted = device.wanted, ""
    run.converge("1", when="without a network")
    device.wanted = wanted
    with run.loaded():
        run.rig.heal()
        run.converge("2")


@fault("MQTT", 36, "half-open")
def half_open(run: Run) -> None:
    """Connections to the broker stay open and pass nothing for fifteen seconds."""
    for wait in (0.0, 2.0):
        with run.swap():
            time.sleep(wait)
            run.rig.broker.trouble(Trouble(stall=True))
            run.hit()
            time.sleep(15)
            run.rig.broker.trouble(None)


@fault("MQTT", 37, "20 % loss")
def loss(run: Run) -> None:
    """Iptables drops every fifth packet to and from the broker and the server's relays."""
    ports = (run.rig.broker_port, run.rig.server_port)
    rules = [
        ["INPUT", "-i", "lo", "-p", "tcp", way, str(port), "-m", "statistic", "--mode", "random", "--probability",
         "0.2", "-j", "DROP"]
        for port in ports for way in ("--dport", "--sport")
    ]  # fmt: skip
    for rule in rules:
        subprocess.run(["iptables", "-I", *rule], check=True)
    try:
        for _ in range(max(1, round(3 * run.scale))):
            with run.swap(keep_image=False):
                run.hit()
    finally:
        for rule in rules:
            subprocess.run(["iptables", "-D", *rule], check=True)


def _old_assignment(run: Run) -> bytes:
    """The signed assignment of version 1, as it was accepted once."""
    import sqlite3

    with contextlib.closing(sqlite3.connect(run.device.origin / "journal.db")) as database:
        return bytes(database.execute("SELECT value FROM facts WHERE key = 'payload'").fetchone()[0])


@fault("MQTT", 38, "duplicated, reordered, stale assignments")
def stale(run: Run) -> None:
    """The assignment of version 1 is sent forty times, retained and not, before, during and after the swap."""
    topic, old = f"wherry/v1/d/{run.device.name}/assign", _old_assignment(run)
    with run.swap():
        for number in range(40):
            if number % 10 == 0:
                with server_voice(run) as voice:
                    for _ in range(10):
                        say(voice, topic, old, retain=number >= 20)
                        run.hit()
            time.sleep(0.1)


@fault("MQTT", 39, "takeover loop")
def takeover(run: Run) -> None:
    """Somebody with the device's own certificate connects thirty times and throws it out each time."""
    pem = run.device.state / "identity/device.pem"
    with run.swap():
        for _ in range(max(3, round(30 * run.scale))):
            with speaker(run, run.device.name, pem, pem):
                time.sleep(0.1)
            run.hit()


@fault("MQTT", 40, "reconnect storm of 500")
def storm(run: Run) -> None:
    """Five hundred connections come to the broker at once and go, ten times, and the device's is cut each time."""
    with run.swap():
        for _ in range(max(1, round(10 * run.scale))):
            with contextlib.ExitStack() as stack:
                for _ in range(500):
                    with contextlib.suppress(OSError):
                        one = stack.enter_context(socket.socket())
                        one.settimeout(2)
                        one.connect(("127.0.0.1", run.rig.lab.ports.broker))
                run.rig.broker.break_all()
                run.hit()
            time.sleep(0.5)


def _garbage() -> list[bytes]:
    return [
        b"", b"\0" * 1000, b"\xff\xfe\xfd" * 100, b"x" * 250_000, b"[" * 100_000, b'{"a":' * 50_000,
        b'{"type":"retry"}',
        b'{"type":"poll_now","type":"retry","schema":99999999999999999999999999}', json.dumps({"signed": {}}).encode(),
    ]  # fmt: skip


@fault("MQTT", 41, "giant, invalid UTF-8, deep JSON", sample=True)
def garbage(run: Run) -> None:
    """Nine kinds of rubbish on the device's two topics, in the middle of a swap."""
    with run.swap(), server_voice(run) as voice:
        for kind in ("cmd", "assign"):
            for payload in _garbage():
                say(voice, f"wherry/v1/d/{run.device.name}/{kind}", payload)
                run.hit()


@fault("MQTT", 42, "retained cleared or forged")
def forged(run: Run) -> None:
    """The retained assignment is cleared, then replaced by one whose bytes were changed, then by another device's."""
    topic = f"wherry/v1/d/{run.device.name}/assign"
    old = _old_assignment(run)
    stranger = old.replace(run.device.name.encode(), b"somebody-else")
    for payload in (b"", old.replace(b'"version"', b'"versi0n"', 1), stranger, old[:-20]):
        with run.swap():
            with server_voice(run) as voice:
                say(voice, topic, payload, retain=True)
            run.hit()
            time.sleep(1)
