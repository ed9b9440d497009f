"""Random damage to all that comes from outside: refused with our errors, or nothing signed was changed by it."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tuf.api.metadata import Metadata

from wherry.errors import ContractError, ServerError, TrustError
from wherry_agent.assignment import Marks

NAMES = ["2.root.json", "timestamp.json", "3.snapshot.json", "3.targets.json", "assignment"]
QUICK = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
JUNK: list[object] = [
    None,
    True,
    0,
    -1,
    1.5,
    10**400,
    2**63,
    "",
    "x",
    "1970-01-01T00:00:00Z",
    "é\ud800",
    [],
    {},
    [[]],
    {"sha256": 1},
]


@pytest.fixture
def target(world, device):
    """A device that must go through a new root, timestamp, snapshot and targets to accept an assignment."""
    from wherry_cli.repository import rotate_root

    world.release()
    world.take(rotate_root(world.files, world.keys, world.keys, world.clock))
    image = world.image("models/vision/generic-amd64/1.manifest.json")
    genuine = dict(world.served) | {"assignment": world.assign(3, {"main": image})}
    wanted = device.trust.verify(genuine["assignment"], Marks(), world.clock)[0]

    def attack(name, data):
        """The outcome with one thing replaced, on a folder that holds nothing but the pinned root."""
        device.trust.install_root(genuine["1.root.json"] + b"\n")
        device.trust.install_root(genuine["1.root.json"])
        world.served.clear()
        world.served.update({key: value for key, value in genuine.items() if key != "assignment"} | {name: data})
        payload = world.served.pop("assignment", genuine["assignment"])
        try:
            accepted = device.trust.verify(payload, Marks(), world.clock)[0]
        except (TrustError, ContractError, ServerError) as error:
            return error
        assert accepted == wanted
        if name != "assignment":
            # By what was signed, not by the text: tuf reads a null version as 1, for one.
            assert Metadata.from_bytes(data).signed_bytes == Metadata.from_bytes(genuine[name]).signed_bytes
        return None

    return genuine, attack


@QUICK
@given(st.sampled_from(NAMES), st.data())
def test_mutated_bytes(target, name, data):
    genuine, attack = target
    body = bytearray(genuine[name])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body) - 1))
        length = data.draw(st.sampled_from([0, 1, 1, 1, 5, 300]))
        body[at : at + length] = data.draw(st.binary(max_size=8) | st.just(bytes([body[at] ^ 1])))
        if not body:
            break
    attack(name, bytes(body))


@QUICK
@given(st.sampled_from(NAMES), st.data())
def test_mutated_fields(target, name, data):
    """Valid JSON whose fields have other types, values or are missing."""
    genuine, attack = target
    document = json.loads(genuine[name])
    places = list(_places(document))
    holder, key = data.draw(st.sampled_from(places))
    what = data.draw(st.sampled_from(["junk", "junk", "drop"]))
    before = holder[key]
    if what == "junk":
        holder[key] = data.draw(st.sampled_from(JUNK))
    else:
        del holder[key]
    assert before is not holder
    attack(name, json.dumps(document).encode())


@settings(QUICK, max_examples=60)
@given(
    st.sampled_from(NAMES), st.binary(max_size=200) | st.text(max_size=80).map(lambda text: json.dumps(text).encode())
)
def test_arbitrary_bytes(target, name, junk):
    _, attack = target
    assert attack(name, junk) is not None


def test_the_attack_itself_accepts_the_genuine_set(target):
    genuine, attack = target
    for name in NAMES:
        assert attack(name, genuine[name]) is None


def _places(value):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in list(items):
        yield value, key
        yield from _places(child)
