"""A mistyped name is answered with those that look alike."""

from __future__ import annotations

import pytest

from wherry_server.domain.alike import perhaps


def test_names_that_look_alike_are_offered_and_others_are_not():
    assert perhaps("visoin", ["vision", "audio"], "List them") == "Perhaps vision is meant"
    assert perhaps("Cam-01", ["cam-01", "zebra"], "List them") == "Perhaps cam-01 is meant"
    assert perhaps("xyz", ["vision", "audio"], "List them") == "List them"


@pytest.mark.parametrize(
    ("path", "fix"),
    [
        ("/v1/devices/dev-l", "Perhaps dev-1 is meant"),
        ("/v1/devices/zz", "List devices with `wherry device list`"),
        ("/v1/releases/visoin/1.0", "Perhaps vision is meant"),
        ("/v1/releases/vision/1.00", "Perhaps 1.0 is meant"),
        ("/v1/releases/vision/7", "vision has 1.0"),
    ],
)
def test_the_api_says_what_may_be_meant(api, owner, device, path, fix):
    owner.release("1.0")
    reply = api.get(path)
    assert reply.status_code == 404
    assert reply.json()["error"]["fix"] == fix
