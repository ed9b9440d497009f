"""Messages: bytes and back; newer fields tolerated, other schemas and nonsense refused, nothing else raised."""

from __future__ import annotations

import contextlib
import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from wherry.errors import ContractError, MalformedMessage, UnsupportedSchema
from wherry.messages import (
    FINAL_PHASES,
    LATENCY_EDGES_US,
    PHASES,
    DeploymentEvent,
    DeploymentReport,
    DropNotice,
    GateResult,
    HostSample,
    PollNow,
    Presence,
    Problem,
    ReleaseRef,
    Retry,
    SlotReport,
    SlotSample,
    StateReport,
    TelemetryAck,
    TelemetryBatch,
    TelemetryRecord,
    UpdateLock,
    parse_command,
    parse_up,
)

NOW = datetime(2030, 1, 1, 12, 30, tzinfo=UTC)
DIGEST = "sha256:" + "ab" * 32
RELEASE = ReleaseRef(model="vision", version="2", counter=2, digest=DIGEST)
PROBLEM = Problem(code="deployment.gate", thing="release vision 2", reason="is wrong", fix="Correct it")
REPORT = DeploymentReport(
    id="d1",
    slot="main",
    release=RELEASE,
    previous=RELEASE,
    sequence=4,
    phase="rejected",
    started=NOW,
    updated=NOW,
    phases=[("fetching", NOW)],
    mode="overlap",
    gates=[GateResult(kind="golden", ok=False, detail="x", seconds=0.1, numbers={"worst_error": 2e-5})],
    problem=PROBLEM,
)
HOST = HostSample(cpu_percent=1.5, memory_used_bytes=1, memory_total_bytes=2, disk_used_bytes=1, disk_total_bytes=2)
SLOT = SlotSample(slot="main", model="vision", version="2", counter=2, seconds=15, requests=1, latency=[1] * 41)
RECORDS = [SLOT, HOST, DeploymentEvent(deployment=REPORT), DropNotice(dropped={"host": 3})]
COMMANDS = [TelemetryAck(stream="s", sequence=7), PollNow(), Retry(slot="main", digest=DIGEST)]
UP = [
    Presence(device="dev-1", online=False),
    Presence(device="dev-1", online=True, at=NOW),
    StateReport(
        device="dev-1", profile="generic-amd64", agent_version="1", stream="s", number=1, at=NOW, boot_id="b",
        sequence=4, slots=[SlotReport(slot="main", port=9000, serving=RELEASE, deployment=REPORT)], problem=PROBLEM,
    ),
    TelemetryBatch(
        device="dev-1", stream="s",
        records=[TelemetryRecord(sequence=n, at=NOW, record=record) for n, record in enumerate(RECORDS)],
    ),
]  # fmt: skip


@pytest.mark.parametrize("message", COMMANDS, ids=lambda message: message.type)
def test_commands_to_bytes_and_back(message):
    assert parse_command(message.to_bytes()) == message


@pytest.mark.parametrize("message", UP, ids=lambda message: message.type)
def test_device_messages_to_bytes_and_back(message):
    assert parse_up(message.to_bytes()) == message


@pytest.mark.parametrize("message", [*COMMANDS, *UP], ids=lambda message: message.type)
def test_every_message_says_its_schema_and_type(message):
    data = json.loads(message.to_bytes())
    assert (data["schema"], data["type"]) == (1, message.type)


def test_fields_of_a_newer_sender_are_tolerated():
    data = json.loads(UP[2].to_bytes())
    data["later"] = data["slots"][0]["later"] = {"x": 1}
    assert parse_up(json.dumps(data).encode()) == UP[2]


@pytest.mark.parametrize("schema", [0, 2, True, "1", None, [], {}])
def test_another_schema_is_refused_and_named(schema):
    data = json.loads(PollNow().to_bytes()) | {"schema": schema}
    with pytest.raises(UnsupportedSchema, match="this program knows 1"):
        parse_command(json.dumps(data).encode())


def test_a_message_without_schema_is_refused():
    with pytest.raises(UnsupportedSchema):
        parse_command(b'{"type": "poll_now"}')


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        pytest.param(b"", "is not usable JSON", id="empty"),
        pytest.param(b"\xff\xfe{}", "is not usable JSON", id="not UTF-8"),
        pytest.param(b"[" * 100_000, "is not usable JSON", id="nested deep"),
        pytest.param(b"[]", "is not a JSON object", id="a list"),
        pytest.param(b'{"schema": 1, "schema": 1}', "names a key twice", id="a key twice"),
        pytest.param(b'{"schema": 1, "type": "reboot"}', "field message", id="unknown type"),
        pytest.param(b'{"schema": 1}', "field message", id="no type"),
        pytest.param(b'{"schema": 1, "type": "retry", "slot": "../x", "digest": "d"}', "slot", id="slot is a path"),
        pytest.param(b'{"schema": 1, "type": "telemetry_ack", "stream": "s", "sequence": "x"}', "sequence", id="words"),
        pytest.param(b" " * 262_145, "the limit is", id="too long"),
        pytest.param(b'{"schema": 1, "type": "telemetry_ack", "stream": "s", "sequence": ' + b"9" * 5000 + b"}",
                     "is not usable JSON", id="a huge integer"),
        pytest.param(b'{"schema": 1, "type": "telemetry_ack", "stream": "s", "sequence": 1' + b"0" * 20 + b"}",
                     "is out of range", id="more than 64 bits"),
        pytest.param(b'{"schema": 1, "x": NaN}', "NaN is no JSON", id="NaN"),
        pytest.param(b'{"schema": 1, "x": -Infinity}', "-Infinity is no JSON", id="infinity"),
        pytest.param(b'{"schema": 1, "x": [1e400]}', "1e400 is out of range", id="a number beyond floats"),
        pytest.param(b'{"schema": 1, "x": "\\ud800"}', "surrogates not allowed", id="half a surrogate pair"),
        pytest.param(b'{"schema": 1, "x": {"\\uDC00": 1}}', "surrogates not allowed", id="half a pair as a key"),
    ],
)  # fmt: skip
def test_what_is_not_a_message_is_malformed(payload, words):
    with pytest.raises(MalformedMessage, match=words):
        parse_command(payload)


def test_a_whole_surrogate_pair_is_a_character():
    assert (
        parse_command(b'{"schema": 1, "type": "telemetry_ack", "stream": "\\ud83d\\ude00", "sequence": 1}').stream
        == "😀"
    )


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 10**400])
def test_no_message_holds_a_number_that_is_none(number):
    with pytest.raises(ValidationError):
        HostSample.model_validate(HOST.model_dump() | {"watts": {"rail": number}})


def test_a_time_has_a_zone_and_can_be_reckoned_with():
    with pytest.raises(ValidationError, match="timezone"):
        UpdateLock(holder="x", expires=NOW.replace(tzinfo=None))
    for text in ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"):
        at = UpdateLock(holder="x", expires=text).expires
        assert at - timedelta(hours=1) < at.astimezone(timezone(timedelta(hours=14))) < at + timedelta(days=200)
    assert UpdateLock(holder="x", expires=NOW).expires == NOW


@given(st.binary(max_size=300))
def test_no_bytes_give_any_other_error(payload):
    for parse in (parse_command, parse_up):
        with pytest.raises(ContractError):
            parse(payload)


@given(
    st.sampled_from(range(len(UP))),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_damaged_messages_parse_or_are_contract_errors(which, damage):
    payload = bytearray(UP[which].to_bytes())
    for position, byte in damage:
        payload[position % len(payload)] = byte
    with contextlib.suppress(ContractError):
        parse_up(bytes(payload))


def test_final_phases_are_phases():
    assert set(PHASES) > FINAL_PHASES


def test_latency_edges_grow_by_half_octaves():
    assert LATENCY_EDGES_US[:3] == (100, 141, 200)
    assert all(1.3 < later / earlier < 1.5 for earlier, later in zip(LATENCY_EDGES_US, LATENCY_EDGES_US[1:]))  # noqa: B905, RUF007
