"""`wherry-server` as an operator runs it: settings, commands, and a server that is up within seconds."""

from __future__ import annotations

import json
import signal
import socket
import ssl
import stat
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from cryptography import x509
from ports import free_port
from sqlalchemy import inspect, select, text
from typer.testing import CliRunner

from wherry import __version__
from wherry.errors import ConfigError, Conflict, StoreError
from wherry_server.app import cli, listen_on
from wherry_server.config import load_config, make_config, write_settings
from wherry_server.pki import Authority
from wherry_server.store import schema
from wherry_server.store.database import Store
from wherry_server.store.schema import Base, Deployment, RecordTotal, ServingSlot


def call(*words):
    result = CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    call("init", "--data", folder, "--host", "localhost", "--port", free_port(), "--broker-port", free_port())
    return folder


def test_the_version(tmp_path):
    assert call("--version") == f"wherry-server {__version__}\n"


def test_init_makes_everything_and_keeps_secrets_to_itself(data):
    for name in ("admin.token", "pki/ca.key", "keys/timestamp.pem", "keys/director.pem"):
        assert stat.S_IMODE((data / name).stat().st_mode) == 0o600, name
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    assert call("token", "list", "--data", data).startswith("admin ")
    with pytest.raises(Conflict, match="initialised already"):
        call("init", "--data", data, "--host", "localhost")


def test_init_goes_on_where_it_was_interrupted(data):
    (data / "server.toml").unlink()
    authority = (data / "pki" / "ca.crt").read_bytes()
    call("init", "--data", data, "--host", "localhost")
    assert (data / "pki" / "ca.crt").read_bytes() == authority
    assert len(call("token", "list", "--data", data).splitlines()) == 2


def test_tokens_are_made_and_revoked(data):
    assert call("token", "create", "ci", "--data", data).startswith("wherry_")
    call("token", "revoke", "ci", "--data", data)
    assert "revoked" in call("token", "list", "--data", data).splitlines()[1]
    with pytest.raises(Conflict):
        call("token", "create", "ci", "--data", data)


def test_the_broker_folder_is_complete_and_the_server_remembers_it(data, tmp_path):
    out = tmp_path / "broker"
    assert str(out / "mosquitto.conf") in call("broker-config", "--data", data, "--out", out)
    assert {path.name for path in out.iterdir()} == {"mosquitto.conf", "acl", "ca.crt", "broker.crt", "broker.key"}
    assert stat.S_IMODE((out / "broker.key").stat().st_mode) == 0o600
    assert load_config(data, {}).broker_folder == out
    call("broker-config", "--data", data, "--out", out)
    assert (data / "server.toml").read_text().count("broker_folder =") == 1


def test_settings_come_from_the_file_and_variables_win(tmp_path):
    write_settings(tmp_path / "server.toml", {"host": "a.example", "port": 9000, "link": False})
    config = load_config(tmp_path, {"WHERRY_SERVER_PORT": "9001", "WHERRY_SERVER_NAMES": "x,y", "OTHER": "1"})
    assert (config.host, config.port, config.link, config.names) == ("a.example", 9001, False, ("x", "y"))
    assert config.public_url == "https://a.example:9001"
    assert config.database == f"sqlite:///{tmp_path}/server.db"
    assert make_config(tmp_path, {"host": "::1"}).public_url == "https://[::1]:8470"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"host": "a", "prot": 1}, "setting prot: is not a setting"),
        ({"host": "a", "port": 0}, "setting port: input should be greater than"),
        ({}, "setting host: field required"),
        ({"host": "a", "port": "many"}, "setting port: "),
    ],
)
def test_wrong_settings_are_named(tmp_path, settings, words):
    with pytest.raises(ConfigError) as caught:
        make_config(tmp_path, settings)
    assert words in str(caught.value)


def test_a_folder_without_settings_says_how_to_make_them(tmp_path):
    with pytest.raises(ConfigError, match="wherry-server init"):
        load_config(tmp_path, {})
    (tmp_path / "server.toml").write_text("host = ")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path, {})


def test_own_certificates_are_kept_until_names_change_or_life_runs_out(tmp_path, clock):
    authority = Authority.create(tmp_path, "test", clock())
    first = authority.ensure_own("server", "a", ["a", "127.0.0.1"], clock())[0].read_bytes()
    assert authority.ensure_own("server", "a", ["a", "127.0.0.1"], clock())[0].read_bytes() == first
    renamed = authority.ensure_own("server", "a", ["b", "127.0.0.1"], clock())[0].read_bytes()
    assert renamed != first
    clock.pass_time(days=300)
    assert authority.ensure_own("server", "a", ["b", "127.0.0.1"], clock())[0].read_bytes() != renamed
    root = x509.load_pem_x509_certificate(authority.ca_pem.encode())
    assert root.not_valid_after_utc.year - root.not_valid_before_utc.year == 10
    with pytest.raises(StoreError, match="exists already"):
        Authority.create(tmp_path, "test", clock())
    (tmp_path / "ca.key").write_text("nonsense")
    with pytest.raises(StoreError, match="certificate authority"):
        Authority.open(tmp_path)


def test_the_migrations_make_the_schema_of_the_models(empty_database_url):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    store = Store(empty_database_url)
    store.migrate()
    store.migrate()
    with store._engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), Base.metadata)
    store.close()
    assert differences == []


def test_a_database_of_a_newer_program_is_left_alone(tmp_path):
    store = Store(f"sqlite:///{tmp_path}/x.db")
    store.migrate()
    with store.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreError, match="cannot be migrated"):
        store.migrate()
    assert inspect(store._engine).has_table("device")
    store.close()


@pytest.mark.parametrize("url", ["nonsense", "mysql://localhost/x"])
def test_a_database_url_that_is_not_usable_is_named(url):
    with pytest.raises(ConfigError, match="database_url"):
        Store(url)


def test_a_database_that_cannot_be_reached_is_named_without_its_password():
    store = Store(f"postgresql://wherry:secret@127.0.0.1:{free_port()}/x")
    with pytest.raises(StoreError) as caught:
        store.migrate()
    assert "secret" not in str(caught.value)
    store.close()


def test_errors_are_one_sentence_on_standard_error(tmp_path):
    command = [Path(sys.executable).parent / "wherry-server", "run", "--data", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: data folder {tmp_path}: has no server.toml.")
    assert "Traceback" not in done.stderr


def test_the_server_is_up_within_seconds_serves_https_and_stops_when_told(data):
    """Also without a broker: it is looked for while requests are answered."""
    command = [Path(sys.executable).parent / "wherry-server", "run", "--data", data]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        began = time.monotonic()
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.monotonic() - began
        url = load_config(data, {}).public_url
        assert line == f"listening on {url}\n"
        context = ssl.create_default_context(cafile=data / "pki" / "ca.crt")
        with urllib.request.urlopen(f"{url}/healthz", context=context) as reply:
            assert json.load(reply) == {"ok": True}
        status = Path(f"/proc/{process.pid}/status").read_text()
        rss = next(int(row.split()[1]) // 1024 for row in status.splitlines() if row.startswith("VmRSS"))
        assert (seconds < 30, rss < 200) == (True, True), f"ready after {seconds:.1f} s with {rss} MB"
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) in (0, -signal.SIGTERM)
        if process.stdout is not None:
            process.stdout.close()


def test_a_port_that_is_taken_is_said_in_words():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(Conflict, match=f"port {port} of 127.0.0.1: is in use. Stop what listens there"):
            listen_on("127.0.0.1", port)
    with pytest.raises(ConfigError, match="cannot be listened on"):
        listen_on("192.0.2.1", port)
    with listen_on("127.0.0.1", 0) as found:
        assert found.getsockname()[1] > 0


def test_what_an_older_server_stored_is_carried_over(empty_database_url):
    """Rows of the first schema come out in the tables and columns of the second."""
    store = Store(empty_database_url)
    old = Config()
    old.set_main_option("script_location", str(Path(schema.__file__).parent / "migrations"))
    with store._writing.begin() as connection:
        old.attributes["connection"] = connection
        command.upgrade(old, "0001")
    release = {"model": "vision", "version": "2", "counter": 4, "digest": "sha256:" + "a" * 64}
    slots = json.dumps([{"slot": "main", "port": 8500, "serving": release, "healthy": True}, {"slot": "b", "port": 1}])
    report = json.dumps({"slot": "main", "release": release})
    at = "2026-01-01 00:00:00"
    with store._engine.begin() as connection:
        for revoked in (None, at):
            connection.execute(
                text(
                    "INSERT INTO device (id, profile, labels, agent_version, enrolled, revoked, online, sequence,"
                    " reported_sequence, report_stream, report_number, slots, rejected, drifting)"
                    " VALUES (:id, 'p', '{}', '', :at, :revoked, :yes, 1, 1, 's', 1, :slots, '[]', 0)"
                ),
                {"id": "gone" if revoked else "dev-1", "at": at, "revoked": revoked, "yes": True, "slots": slots},
            )
        connection.execute(
            text(
                "INSERT INTO deployment (device, id, phase, updated, report)"
                " VALUES ('dev-1', 'd1', 'committed', :at, :report)"
            ),
            {"at": at, "report": report},
        )
        for hour in (1, 2):
            connection.execute(
                text(
                    "INSERT INTO record_count (device, bucket, type, received, dropped)"
                    " VALUES ('dev-1', :at, 'slot', 5, 1)"
                ),
                {"at": f"2026-01-01 0{hour}:00:00"},
            )
    store.migrate()
    with store.read() as session:
        (serving,) = session.scalars(select(ServingSlot))
        assert (serving.device, serving.model, serving.version, serving.counter) == ("dev-1", "vision", "2", 4)
        assert (serving.profile, serving.healthy) == ("p", True)
        (deployment,) = session.scalars(select(Deployment))
        assert (deployment.slot, deployment.model, deployment.version) == ("main", "vision", "2")
        (total,) = session.scalars(select(RecordTotal))
        assert (total.type, total.received, total.dropped) == ("slot", 10, 2)
    store.close()
