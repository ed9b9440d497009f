"""Releases: what was signed in words, who signed it, the rollout form, and the pages in a browser."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root, Targets

from wherry.api.releases import ReleaseImageView, ReleaseView
from wherry.api.rollouts import Selector
from wherry.identity import sha256_digest
from wherry.release import (
    GoldenGate,
    HttpGate,
    LatencyGate,
    Needs,
    ReadyGate,
    ReleaseImage,
    RunSpec,
    Signature,
    SignatureGate,
    SoakGate,
    TensorSpec,
    UnknownGate,
)
from wherry_server.dashboard import release_rows as rows
from wherry_server.dashboard.release_image import gate_row, image_card, layer_parts, needs_words
from wherry_server.dashboard.release_signatures import expiry, signatures
from wherry_server.dashboard.rollout_form import read_form
from wherry_server.services.preview import Misfits, Preview

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
CASES = sha256_digest(b"cases")
NO_IMAGE = Misfits("has no image", "", 4, ("a", "b"))


def view(version: str, **counters: int) -> ReleaseView:
    """A release with images by profile."""
    images = [
        ReleaseImageView(
            profile=profile, counter=counter, digest=sha256_digest(b"x"), repository="r/v", unpacked_bytes=1,
            download_bytes=counter * 10**6, runtime="onnx", precision="fp32",
        )
        for profile, counter in counters.items()
    ]  # fmt: skip
    return ReleaseView(model="vision", version=version, stage="qa", published=NOW, images=images)


# -- images


def test_layers_are_stacked_from_the_bottom_and_fill_the_bar():
    parts = layer_parts({"model": 25, "base": 50, "extra": 24, "serving": 1, "page": 0})
    assert [(part.kind, part.what, part.share) for part in parts] == [
        ("base", "system", "50 %"), ("serving", "model server", "1 %"),
        ("model", "model", "25 %"), ("extra", "extra", "24 %"),
    ]  # fmt: skip
    assert [part.x for part in parts] == [0, 50, 51, 76]
    assert layer_parts({"base": 999, "model": 1})[1].share == "< 1 %"
    assert layer_parts({}) == []


@pytest.mark.parametrize(
    ("gate", "asks", "settings"),
    [
        (ReadyGate(), "the model says it is ready", {"deadline": "60 s"}),
        (SignatureGate(), "Inputs, outputs and execution provider", {"deadline": "10 s"}),
        (GoldenGate(digest=CASES, cases=1), "1 recorded request gives its expected answer", {"tolerance": "0.001"}),
        (
            GoldenGate(digest=CASES, cases=8, argmax="ignore", cosine="0.99"),
            "8 recorded requests give their expected answer",
            {"best class": "may differ", "cosine at least": "0.99", "cases": CASES[7:19]},
        ),
        (LatencyGate(p95_ms=80), "answered fast enough", {"p95 at most": "80 ms"}),
        (HttpGate(path="/live", status=204), "GET /live answers 204", {}),
        (SoakGate(least=30), "Real traffic after the switch", {"least": "30", "factor": "3", "deadline": "60 s"}),
        (UnknownGate(kind="moon", phase="full"), "does not know what it asks", {"phase": "full"}),
    ],
)
def test_gates_are_sentences_with_their_settings(gate, asks, settings):
    row = gate_row(gate)
    assert asks in row.asks
    assert settings.items() <= dict(row.settings).items()


def test_needs_name_only_what_is_needed():
    assert needs_words(Needs()) == []
    found = needs_words(Needs(memory_mb=4096, l4t=["35", "36"], sm=["87"], cuda=["12"], tensorrt=["10"]))
    assert [f"{name} {value}".replace("\N{NARROW NO-BREAK SPACE}", "") for name, value in found] == [
        "memory 4096 MB", "L4T 35 or 36", "GPU sm_87", "CUDA 12", "TensorRT 10",
    ]  # fmt: skip


def test_an_image_tells_all_that_was_signed():
    image = ReleaseImage(
        model="vision", version="2", profile="generic-amd64", platform="linux/amd64", counter=4, repository="r:5/v",
        config_digest=CASES, unpacked_bytes=10**8, runtime="onnx", provider="CPUExecutionProvider", precision="int8",
        run=RunSpec(cpus="1.5", env={"A": "b"}),
        signature=Signature(
            inputs=[TensorSpec(name="x", datatype="FP32", shape=[-1, 3])],
            outputs=[TensorSpec(name="y", datatype="INT64", shape=[])],
        ),
    )  # fmt: skip
    card = image_card(image, CASES, withdrawn=False, misfits=["too big"], again=["1", "2"])
    assert (card.short, card.reference, card.again) == (CASES[7:19], f"r:5/v@{CASES}", "1, 2")
    assert card.tensors == [("input", "x", "FP32 any \N{MULTIPLICATION SIGN} 3"), ("output", "y", "INT64")]
    assert {"CPU limit": "1.5", "environment": "A=b"}.items() <= dict(card.run).items()
    assert card.download == "\N{EN DASH}"


# -- releases


def test_of_a_release_signed_again_the_newest_image_counts():
    again = view("1", pi=1).model_copy(update={"images": view("1", pi=1).images + view("1", pi=4).images})
    assert [image.counter for image in rows.newest_images(again.images)] == [4]
    others = [view("2", pi=2), view("3", pi=3, jetson=9), again]
    assert rows.superseded_by(view("1", pi=1), others) == ["2", "3"]
    assert rows.superseded_by(again, others) == []


def test_a_row_tells_sizes_and_what_was_withdrawn():
    row = rows.release_row(view("1", jetson=90, pi=46), 1200, NOW)
    assert (row.profiles, row.download, row.stage_tone) == (["jetson", "pi"], "46.0 MB to 90.0 MB", "busy")
    images = view("1", jetson=1, pi=1).images
    taken = [images[0].model_copy(update={"withdrawn": True}), images[1]]
    assert rows.withdrawn_words(images) == ""
    assert rows.withdrawn_words(taken) == "withdrawn for 1 of 2 profiles"
    assert rows.withdrawn_words(taken[:1]) == "withdrawn"


# -- signatures


def signed(signers: list[CryptoSigner], threshold: int, by: list[CryptoSigner]) -> tuple[bytes, bytes]:
    """A root that asks for some keys, and targets that some of them signed."""
    root = Metadata(Root(expires=NOW + timedelta(days=400)))
    for signer in signers:
        root.signed.add_key(signer.public_key, "targets")
    root.signed.roles["targets"].threshold = threshold
    targets = Metadata(Targets(version=7, expires=NOW + timedelta(days=100)))
    for signer in by:
        targets.sign(signer, append=True)
    return root.to_bytes(), targets.to_bytes()


def test_signatures_are_checked_and_counted_against_the_threshold():
    keys = [CryptoSigner.generate_ed25519() for _ in range(3)]
    found = signatures(*signed(keys, 2, keys[:2]), NOW)
    assert (found.version, found.threshold, found.enough) == (7, 2, True)
    assert sorted(key.signed for key in found.keys) == [False, True, True]
    assert {key.kind for key in found.keys} == {"Ed25519"}
    stranger = CryptoSigner.generate_ed25519()
    assert not signatures(*signed(keys, 2, [keys[0], stranger]), NOW).enough


def test_changed_bytes_are_not_signed_and_unreadable_ones_say_nothing():
    key = CryptoSigner.generate_ecdsa()
    root, targets = signed([key], 1, [key])
    other = json.loads(targets)
    other["signed"]["version"] = 8
    changed = signatures(root, json.dumps(other).encode(), NOW)
    assert changed.version == 8
    assert not changed.enough
    assert not changed.keys[0].signed
    assert signatures(root, b"not metadata", NOW) is None


@pytest.mark.parametrize(
    ("days", "left", "tone"),
    [
        (90, "in 90 days", "good"),
        (10, "in 10 days", "warn"),
        (1, "within a day or two", "warn"),
        (-3, "expired 3 d ago", "bad"),
    ],
)
def test_an_expiry_warns_in_time(days, left, tone):
    found = expiry("targets", NOW + timedelta(days=days), NOW)
    assert (found.left, found.tone) == (left, tone)


# -- the form


@pytest.mark.parametrize(
    ("fields", "selector"),
    [
        ({}, Selector(everything=True)),
        ({"whom": "all", "label": "ignored"}, Selector(everything=True)),
        ({"whom": "label", "label": "site=quay, row=2"}, Selector(labels={"site": "quay", "row": "2"})),
        ({"whom": "profile", "profile": "raspberry-pi-4"}, Selector(profiles=["raspberry-pi-4"])),
        ({"whom": "ids", "ids": "cam-1,cam-2\n cam-3"}, Selector(ids=["cam-1", "cam-2", "cam-3"])),
    ],
)
def test_the_form_becomes_a_request(fields, selector):
    form, wanted = read_form(fields, "vision", "2")
    assert (wanted.selector, wanted.slot, form.wrong) == (selector, "main", {})


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"whom": "label"}, "label"),
        ({"whom": "label", "label": "quay"}, "label"),
        ({"whom": "label", "label": "site="}, "label"),
        ({"whom": "profile"}, "profile"),
        ({"whom": "profile", "profile": "../x"}, "profile"),
        ({"whom": "ids", "ids": " , "}, "ids"),
        ({"whom": "ids", "ids": "CAM"}, "ids"),
        ({"whom": "everything-and-more"}, "whom"),
        ({"slot": "A slot"}, "slot"),
    ],
)
def test_what_is_wrong_is_said_beside_its_field(fields, field):
    form, wanted = read_form(fields, "vision", "2")
    assert wanted is None
    assert list(form.wrong) == [field]


def test_the_form_takes_releases_for_other_slots_along():
    fields = {"slot": "cam", "others": "text=words:3, ears=sound:1.0"}
    form, wanted = read_form(fields, "vision", "2")
    assert form.wrong == {}
    assert [(part.slot, part.label) for part in wanted.parts] == [
        ("cam", "vision 2"), ("text", "words 3"), ("ears", "sound 1.0"),
    ]  # fmt: skip
    for others in ("text", "text=words", "cam=words:3", "TEXT=words:3"):
        form, wanted = read_form(fields | {"others": others}, "vision", "2")
        assert (wanted, list(form.wrong), form.others) == (None, ["others"], others)


@pytest.mark.parametrize(
    ("preview", "says", "button", "tone"),
    [
        (Preview(5, 5, {"pi": 5}, ()), "5 devices will get it.", "Start on 5 devices", "good"),
        (Preview(5, 1, {"pi": 1}, (NO_IMAGE,)), "1 of 5 devices will", "Start on 1 device", "warn"),
        (Preview(4, 0, {}, (NO_IMAGE,)), "It fits none of the 4 devices", "", "bad"),
        (Preview(1, 0, {}, (NO_IMAGE,)), "It does not fit the device.", "", "bad"),
    ],
)
def test_a_preview_says_what_would_happen(preview, says, button, tone):
    found = rows.preview_rows(preview)
    assert found.says.startswith(says)
    assert (found.button, found.tone) == (button, tone)
    for one in found.misfits:
        assert one.reason == "It has no image."


# -- in a browser


def test_from_the_list_to_all_that_was_signed(open_page: Callable[..., Page], shoot: Any) -> None:
    page = open_page("/releases")
    expect(page.get_by_role("row")).to_have_count(6)
    shoot(page, "releases")
    page.get_by_role("link", name="vision 2.0.0").click()
    image = page.get_by_role("region", name="raspberry-pi-4")
    expect(image).to_contain_text("golden gate")
    expect(image).to_contain_text("model runtime")
    digest = image.locator(".whole")
    expect(digest).to_be_hidden()
    image.locator(".digest summary").click()
    expect(digest).to_contain_text("@sha256:")
    expect(page.get_by_role("region", name="Where it serves")).to_contain_text("devices:")
    shoot(page, "release")


def test_the_form_shows_what_would_happen_before_it_does(open_page: Callable[..., Page], shoot: Any) -> None:
    page = open_page("/releases/vision/2.0.0/rollout")
    preview = page.locator("#preview")
    expect(preview).to_contain_text("120 devices will get it.")
    page.get_by_label("Device ids").fill("camera-0001 nobody")
    expect(page.get_by_label("Devices by id")).to_be_checked()
    expect(preview).to_contain_text("Device nobody does not exist")
    page.get_by_label("Profile", exact=True).select_option("jetson-orin")
    expect(preview).to_contain_text("jetson-orin")
    expect(preview.get_by_role("button")).to_contain_text("Start on")
    shoot(page, "rollout-form")
    page.goto(page.url.replace("2.0.0", "1.0.0"))
    expect(page.locator(".notice")).to_contain_text("--again")


def test_a_rollout_starts_without_scripts(new_site: Callable[..., Any], open_page: Callable[..., Page]) -> None:
    site = new_site(devices=20)
    page = open_page("/releases/vision/1.1.0/rollout", at=site, scripts=False)
    page.get_by_label("Devices with a label").check()
    page.get_by_label("Label", exact=True).fill("wrong")
    page.get_by_role("button", name="Preview").click()
    expect(page.locator("#wrong-label")).to_contain_text("NAME=VALUE")
    device = site.seeded.devices[0]
    page.get_by_label("Devices by id").check()
    page.get_by_label("Device ids").fill(device)
    page.get_by_role("button", name="Preview").click()
    page.get_by_role("button", name="Start on 1 device").click()
    expect(page.get_by_role("heading", name="vision 1.1.0")).to_be_visible()
    expect(page.get_by_role("row").filter(has_text=device)).to_contain_text("assigned")


def test_devices_that_do_not_fit_are_named_with_the_reason(
    new_site: Callable[..., Any], open_page: Callable[..., Page], shoot: Any, add_device: Callable[..., Any]
) -> None:
    site = new_site(devices=20)
    add_device("old-board", at=site, profile="raspberrypi-3")
    page = open_page("/releases/vision/2.0.0/rollout", at=site)
    preview = page.locator("#preview")
    expect(preview).to_contain_text("20 of 21 devices will get it.")
    expect(preview).to_contain_text("1 device does not fit. It has no image for profile raspberrypi-3")
    shoot(page, "rollout-form-misfit")
    page.get_by_label("Device ids").fill("old-board")
    expect(preview).to_contain_text("It does not fit the device.")
    expect(preview.get_by_role("button")).to_have_count(0)


def test_an_unknown_release_is_a_page_with_a_way_on(open_page: Callable[..., Page]) -> None:
    page = open_page("/releases/vision/9", allow=("404",))
    expect(page.get_by_role("main")).to_contain_text("Release vision 9 does not exist.")
