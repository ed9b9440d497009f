"""What a page says after a form did its work: fixed words, so that no address can put words into our mouth."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Notice:
    """A line on top of a page."""

    tone: str
    text: str


NOTICES = {
    "polled": Notice("good", "The device was asked to fetch its assignment now. What it reports appears below."),
    "retried": Notice("good", "The device forgets that it rejected the image and tries it again."),
    "cleared": Notice("good", "The slot is to be empty. The device stops and removes what runs there."),
    "removed": Notice(
        "good",
        "The device was removed. What it did is in the audit trail. If it may be in wrong hands, give its replacement "
        "another id: enrolled again under the old one, its old certificate would count at the broker until it ends.",
    ),
    "rollout-created": Notice("good", "The rollout was started. This page follows its devices."),
    "rollout-start": Notice("good", "The rollout goes on. Devices that wait get their assignments."),
    "rollout-pause": Notice(
        "good", "The rollout is paused. Devices that have their assignment go on; no other gets one."
    ),
    "rollout-retry": Notice("good", "Devices that failed forget that they did, and try once more."),
    "rollout-abort": Notice("warn", "The rollout was aborted. Devices that have it keep it; no other gets it."),
    "labelled": Notice("good", "The labels are stored."),
}
