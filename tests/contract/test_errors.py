"""Every error names itself, says why and what to do; codes are stable and unique."""

from __future__ import annotations

from collections import Counter

import pytest

from wherry import errors
from wherry.errors import WherryError, walk_errors

EVERY = [kind for kind in walk_errors() if kind.__module__ == errors.__name__]


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
class TestEveryError:
    def test_has_its_own_code_under_its_parents(self, kind):
        assert "code" in vars(kind)
        parent = kind.__bases__[0]
        if parent not in (WherryError, Exception):
            assert kind.code.startswith(parent.code + ".")

    def test_says_what_it_is(self, kind):
        assert kind.__doc__
        assert kind.__doc__ != WherryError.__doc__ or kind is WherryError

    def test_has_a_hint_that_is_a_sentence_without_its_full_stop(self, kind):
        assert kind.hint[0].isupper()
        assert not kind.hint.endswith(".")

    def test_reads_as_thing_reason_fix(self, kind):
        assert str(kind("release vision 2", "is too big")) == f"release vision 2: is too big. {kind.hint}."
        assert str(kind("disk", "is full", "Free some")) == "disk: is full. Free some."

    def test_is_shown_with_four_fields(self, kind):
        shown = kind("a", "b", "c").as_dict()
        assert shown == {"code": kind.code, "thing": "a", "reason": "b", "fix": "c"}

    def test_is_drawn_in_the_tree(self, kind):
        tree = errors.__doc__.split("```")[1]
        assert kind.__name__ in tree.replace("─", " ").split()

    def test_says_it_in_one_sentence(self, kind):
        sentence = kind.__doc__.partition("\n")[0]
        assert sentence[0].isupper()
        assert sentence.endswith(".")

    def test_is_raised_and_caught_as_its_parents(self, kind):
        with pytest.raises(WherryError, match="a: b") as caught:
            raise kind("a", "b")
        assert type(caught.value) is kind
        assert caught.value.args == ("a", "b", kind.hint)


STABLE = """
    wherry input input.model input.config contract contract.malformed contract.schema trust trust.unsigned
    trust.tampered trust.replayed trust.expired trust.rolled_back trust.wrong_device trust.wrong_profile trust.revoked
    trust.rejected fit admission deployment deployment.gate deployment.phase adapter adapter.engine adapter.registry
    adapter.build adapter.link adapter.server adapter.store adapter.route adapter.inference identity not_allowed
    not_found conflict
"""
"""Codes that were published: devices, dashboards and scripts know them. Add to it; take nothing away."""


def test_codes_stay_what_they_were():
    assert set(STABLE.split()) <= {kind.code for kind in EVERY}


def test_codes_are_unique():
    assert [code for code, times in Counter(kind.code for kind in EVERY).items() if times > 1] == []


def test_the_whole_tree_is_walked():
    defined = {value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, WherryError)}
    assert defined == set(EVERY)
