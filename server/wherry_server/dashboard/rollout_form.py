"""The form that starts a rollout: fields in, a request or sentences about the fields out. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import ValidationError

from wherry.api.base import DEFAULT_SLOT
from wherry.api.rollouts import RolloutPart, RolloutRequest, Selector

WHOM = ("all", "label", "profile", "ids")


@dataclass(frozen=True, slots=True)
class RolloutForm:
    """What was typed, to be shown again, and what is wrong with it.

    Attributes:
        others: releases for other slots that go together with this one, `SLOT=MODEL:VERSION` each.
        whom: one of WHOM; it says which of the fields after it counts.
        wrong: sentence by field.
    """

    slot: str = DEFAULT_SLOT
    others: str = ""
    whom: str = "all"
    label: str = ""
    profile: str = ""
    ids: str = ""
    wrong: dict[str, str] = field(default_factory=dict)


def read_form(fields: Mapping[str, str], model: str, version: str) -> tuple[RolloutForm, RolloutRequest | None]:
    """The form as typed, and the request that it asks for when nothing is wrong."""
    slot = fields.get("slot", "").strip() or DEFAULT_SLOT
    whom = fields.get("whom", "all")
    label, profile, ids, others = (fields.get(name, "").strip() for name in ("label", "profile", "ids", "others"))
    wrong: dict[str, str] = {}
    try:
        selector = _selector(whom, label, profile, ids)
        if selector is None:
            wrong[whom if whom in WHOM else "whom"] = _MISSING.get(whom, "Choose which devices.")
    except ValidationError:
        selector, wrong = None, {whom: _MALFORMED[whom]}
    request = None
    if selector is not None:
        try:
            request = _request(model, version, slot, _words(others), selector)
        except ValidationError:
            wrong["others" if others else "slot"] = _OTHERS if others else _SLOT
    return RolloutForm(slot, others, whom if whom in WHOM else "all", label, profile, ids, wrong), request


def _request(model: str, version: str, slot: str, others: list[str], selector: Selector) -> RolloutRequest:
    if not others:
        return RolloutRequest(model=model, version=version, slot=slot, selector=selector)
    parts = [RolloutPart(model=model, version=version, slot=slot)]
    for text in others:
        place, _, release = text.partition("=")
        name, _, of = release.partition(":")
        parts.append(RolloutPart(model=name, version=of, slot=place))
    return RolloutRequest(together=parts, selector=selector)


_SLOT = "A slot's name has small letters, digits and hyphens, 32 at most."
_OTHERS = "Write SLOT=MODEL:VERSION, for example text=words:3, with another slot for each release."


_MISSING = {
    "label": "Write labels as NAME=VALUE, for example site=quay.",
    "profile": "Choose a device profile.",
    "ids": "Name at least one device.",
}
_MALFORMED = {
    "all": "Choose which devices.",
    "label": "Write labels as NAME=VALUE, for example site=quay.",
    "profile": "There is no such device profile.",
    "ids": "Device ids have small letters, digits and hyphens.",
}


def _selector(whom: str, label: str, profile: str, ids: str) -> Selector | None:
    """None when the field that counts is empty or not usable."""
    match whom:
        case "all":
            return Selector(everything=True)
        case "label":
            pairs = [one.partition("=") for one in _words(label)]
            if not pairs or not all(name and sign and value for name, sign, value in pairs):
                return None
            return Selector(labels={name: value for name, _, value in pairs})
        case "profile":
            return Selector(profiles=[profile]) if profile else None
        case "ids":
            return Selector(ids=_words(ids)) if _words(ids) else None
    return None


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[\s,]+", text) if word]
