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


def test_codes_are_unique():
    assert [code for code, times in Counter(kind.code for kind in EVERY).items() if times > 1] == []


def test_the_whole_tree_is_walked():
    defined = {value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, WherryError)}
    assert defined == set(EVERY)
