"""Every error of the tree: it can be looked up, and it reads the same wherever it is raised."""

from __future__ import annotations

import pytest

from wherry.errors import GateFailed, walk_errors
from wherry_cli.causes import CAUSES

EVERY = walk_errors()


def plain(text):
    return " ".join(text.split())


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.code)
class TestEveryError:
    def test_has_a_page_with_its_sentence_its_reasons_and_the_next_step(self, wherry, kind):
        shown = plain(wherry("explain", kind.code).out)
        sentence = plain(kind.__doc__.partition("\n")[0])
        assert shown.startswith(f"Code {kind.code} Means {sentence} Because ")
        for cause in CAUSES[kind.code]:
            assert f"{cause}." in shown
        assert f"Next {kind.hint}." in shown

    def test_raised_in_a_command_is_three_lines_and_exit_code_1(self, wherry, kind, monkeypatch):
        def fail():
            raise kind("release vision 2", "is late", "Wait for it")

        monkeypatch.setattr("wherry_cli.profile.load_profiles", fail)
        answer = wherry("profile", "list")
        assert (answer.code, answer.out) == (1, "")
        assert answer.err.splitlines() == [
            "Error: release vision 2 is late.",
            "  Next: Wait for it.",
            f"  Code: {kind.code} (wherry explain {kind.code})",
        ]
        told = wherry("profile", "list", "--json").json["error"]
        assert told == {"code": kind.code, "thing": "release vision 2", "reason": "is late", "fix": "Wait for it"}


def test_reasons_are_given_for_codes_that_exist_and_no_others():
    assert set(CAUSES) == {kind.code for kind in EVERY}
    for causes in CAUSES.values():
        assert causes
        assert all(cause[0].isupper() or cause.split()[0] in ("mmdebstrap,", "nftables") for cause in causes)
        assert not any(cause.endswith(".") for cause in causes)


def test_the_list_has_every_code(wherry):
    listed = wherry("explain", "--json").json["items"]
    assert [item["code"] for item in listed] == [kind.code for kind in EVERY]
    assert all(item["meaning"] and item["causes"] and item["fix"] for item in listed)
    assert "deployment.gate" in wherry("explain").out


def test_a_name_does_as_well_as_a_code(wherry):
    assert wherry("explain", GateFailed.__name__, "--json").json["code"] == "deployment.gate"
    assert wherry("explain", " Fit ", "--json").json["kind"] == "wherry"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("gate", "deployment.gate"),
        ("deployment.gat", "deployment.gate"),
        ("trust.expird", "trust.expired"),
        ("regstry", "adapter.registry"),
    ],
)
def test_a_code_that_is_mistyped_finds_its_neighbours(wherry, typed, meant):
    answer = wherry("explain", typed)
    assert answer.code == 1
    assert meant in answer.err.splitlines()[1]


def test_a_code_like_no_other_points_to_the_list(wherry):
    assert "List all with `wherry explain`" in wherry("explain", "qqqqq").err
