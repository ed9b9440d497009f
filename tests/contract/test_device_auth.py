"""A signed request is believed as it was signed, and in no other way."""

from __future__ import annotations

import contextlib

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from wherry.device_auth import MAX_SKEW_SECONDS, parse_authorization, sign_request, verify_request
from wherry.errors import IdentityError

KEY = ec.generate_private_key(ec.SECP256R1())
NOW = 1_900_000_000
REQUEST = {"method": "POST", "path": "/v1/renew?x=1", "body": b"{}"}
HEADER = sign_request(KEY, "dev-1", "POST", "/v1/renew?x=1", b"{}", NOW)


def verify(header=HEADER, key=KEY, now=NOW, **changes):
    return verify_request(key.public_key(), header, now=now, **(REQUEST | changes))


def test_a_request_proves_its_device():
    assert verify() == "dev-1"
    assert verify(method="post") == "dev-1"


@pytest.mark.parametrize("skew", [-MAX_SKEW_SECONDS, MAX_SKEW_SECONDS])
def test_a_clock_may_be_off_a_little(skew):
    assert verify(now=NOW + skew) == "dev-1"


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"method": "GET"}, id="another method"),
        pytest.param({"path": "/v1/renew?x=2"}, id="another query"),
        pytest.param({"body": b"{ }"}, id="another body"),
        pytest.param({"key": ec.generate_private_key(ec.SECP256R1())}, id="another key"),
        pytest.param({"header": HEADER.replace("dev-1", "dev-2")}, id="another device"),
        pytest.param({"header": HEADER.replace(str(NOW), str(NOW + 1))}, id="another time"),
    ],
)
def test_whatever_was_changed_it_is_not_signed(changes):
    with pytest.raises(IdentityError, match="not signed by the device's key"):
        verify(**changes)


@pytest.mark.parametrize("skew", [-MAX_SKEW_SECONDS - 1, MAX_SKEW_SECONDS + 1])
def test_an_old_request_is_not_believed_again(skew):
    with pytest.raises(IdentityError, match=f"was signed {MAX_SKEW_SECONDS + 1} s off"):
        verify(now=NOW + skew)


@pytest.mark.parametrize(
    "header", ["", "Bearer x", "WherryDevice dev-1", HEADER + " ", HEADER[:-1] + "!", "WherryDevice dev-1:1:A"]
)
def test_another_form_is_refused(header):
    with pytest.raises(IdentityError):
        verify(header=header)


@given(st.one_of(st.text(), st.from_regex(r"WherryDevice [a-z]{1,3}:[0-9]{1,12}:[A-Za-z0-9_=-]+", fullmatch=True)))
def test_no_header_gives_any_other_error(header):
    with contextlib.suppress(IdentityError):
        parse_authorization(header)
