"""The MQTT client's decisions; how it behaves on a real broker is in tests/edge."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.mqtt import BrokerSettings, MqttClient, reconnect_delay
from wherry.topics import Kind, Topic

SETTINGS = BrokerSettings("localhost", 1, "dev-1", "ca", "crt", "key", reconnect_min=1, reconnect_max=60)


@pytest.mark.parametrize(
    ("failures", "least", "most"), [(1, 0.5, 1), (2, 1, 2), (3, 2, 4), (6, 16, 32), (7, 30, 60), (10_000, 30, 60)]
)
def test_the_delay_doubles_up_to_its_bound_and_is_jittered(failures, least, most):
    assert reconnect_delay(SETTINGS, failures, 0.0) == least
    assert reconnect_delay(SETTINGS, failures, 1.0) == most


@given(st.integers(1, 10**9), st.floats(0, 1, exclude_max=True))
def test_the_delay_is_always_within_bounds(failures, fraction):
    assert 0.5 <= reconnect_delay(SETTINGS, failures, fraction) <= 60


def test_nothing_is_sent_before_there_is_a_connection():
    client = MqttClient(SETTINGS, lambda topic, payload: None, lambda: None, lambda reason: None)
    assert not client.connected
    assert not client.publish(Topic("dev-1", Kind.STATE), b"x")
    client.stop()
