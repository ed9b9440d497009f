"""The join token survives copy and paste, and says so when it did not."""

from __future__ import annotations

import base64
import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.errors import IdentityError
from wherry.join import PREFIX, JoinToken

TOKEN = JoinToken(server="https://wherry.example:8470", device="dev-1", secret="s", ca_sha256="a", root_sha256="b")


def test_one_line_and_back():
    line = TOKEN.encode()
    assert line.startswith(PREFIX)
    assert not set(line) & set(" \n\t='\"$")
    assert JoinToken.decode(line) == TOKEN
    assert JoinToken.decode(f"  {line}\n") == TOKEN


def test_fields_of_a_newer_version_are_tolerated():
    body = json.dumps({**TOKEN.model_dump(), "later": 1}).encode()
    assert JoinToken.decode(PREFIX + base64.urlsafe_b64encode(body).decode()) == TOKEN


def _forged(**changes):
    return PREFIX + base64.urlsafe_b64encode(json.dumps({**TOKEN.model_dump(), **changes}).encode()).decode()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        pytest.param("", "does not start with", id="empty"),
        pytest.param("wherry2." + TOKEN.encode().split(".")[1], "does not start with", id="another version"),
        pytest.param(TOKEN.encode()[:-9], "incomplete or mistyped", id="cut off"),
        pytest.param(PREFIX + "ümlaut", "incomplete or mistyped", id="other letters"),
        pytest.param(_forged(device="../../etc"), "incomplete or mistyped", id="a device that is a path"),
        pytest.param(_forged(secret=None), "incomplete or mistyped", id="no secret"),
    ],
)
def test_what_cannot_be_used_is_refused(line, words):
    with pytest.raises(IdentityError, match=words):
        JoinToken.decode(line)


@given(
    st.one_of(
        st.text(),
        st.text().map(lambda text: PREFIX + text),
        st.binary().map(lambda data: PREFIX + base64.urlsafe_b64encode(data).decode()),
    )
)
def test_no_line_gives_any_other_error(line):
    with contextlib.suppress(IdentityError):
        JoinToken.decode(line)
