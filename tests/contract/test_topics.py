"""Topics are values: text and back, and nothing else is one."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.errors import MalformedMessage
from wherry.topics import EVERY_DEVICE_UP, Kind, Topic


@given(device=st.from_regex(r"[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?", fullmatch=True), kind=st.sampled_from(Kind))
def test_text_and_back(device, kind):
    topic = Topic(device, kind)
    assert Topic.parse(str(topic)) == topic


def test_what_the_names_are():
    assert [str(Topic("dev-1", kind)) for kind in Kind] == [
        "wherry/v1/d/dev-1/cmd",
        "wherry/v1/d/dev-1/assign",
        "wherry/v1/d/dev-1/up/state",
        "wherry/v1/d/dev-1/up/presence",
        "wherry/v1/d/dev-1/up/telemetry",
        "wherry/v1/d/dev-1/up/reply",
    ]
    assert EVERY_DEVICE_UP == "wherry/v1/d/+/up/#"


def test_the_broker_keeps_what_is_a_state_and_not_what_is_an_event():
    assert {kind for kind in Kind if kind.retained} == {Kind.ASSIGN, Kind.STATE, Kind.PRESENCE}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "wherry/v1/d//cmd",
        "wherry/v1/d/dev-1",
        "wherry/v1/d/dev-1/up",
        "wherry/v1/d/dev-1/up/other",
        "wherry/v1/d/dev-1/up/state/more",
        "wherry/v2/d/dev-1/cmd",
        "wherry/v1/d/Dev-1/cmd",
        "wherry/v1/d/dev_1/cmd",
        "wherry/v1/d/+/cmd",
        "wherry/v1/d/dev-1/#",
        "/wherry/v1/d/dev-1/cmd",
        "wherry/v1/d/dev-1/cmd\n",
        "wherry/v1/d/" + "a" * 65 + "/cmd",
        "$SYS/broker/uptime",
    ],
)
def test_what_is_not_a_topic_is_refused(text):
    with pytest.raises(MalformedMessage, match="is not a Wherry topic"):
        Topic.parse(text)


@given(st.text())
def test_no_text_gives_any_other_error(text):
    with contextlib.suppress(MalformedMessage):
        assert str(Topic.parse(text)) == text
