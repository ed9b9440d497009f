"""Releases of the agent itself: how they are named, where they stand, and what is in their images.

The agent travels as models do: an image for each device profile, signed, assigned, rolled out in waves. Nothing of
such an image ever runs as a container; a device unpacks it and starts it in place of the agent that it has.
"""

from __future__ import annotations

AGENT_SLOT = "agent"
"""The slot of every device that holds its agent. It has no port; empty, the installed agent runs."""
AGENT_MODEL = "wherry-agent"
"""The model name of its releases, which nothing else may have."""
AGENT_RUNTIME = "agent"
AGENT_FOLDER = "/opt/wherry/agent"
"""In the image: `app` with the packages `wherry` and `wherry_agent`, and `pythonX.Y` with what they need."""
APP_PART = "app"


def python_part(version: str) -> str:
    """The folder with the packages for one Python, `python3.11`."""
    return f"python{version}"


def misplaced(model: str, slot: str) -> str | None:
    """Why a release may not be in a slot, in words; None when it may.

    Args:
        model: of the release.
        slot: where it should go.
    """
    if (model == AGENT_MODEL) == (slot == AGENT_SLOT):
        return None
    if slot == AGENT_SLOT:
        return f"is a model, and slot {AGENT_SLOT} is for releases of the agent itself"
    return f"is a release of the agent itself, which belongs in slot {AGENT_SLOT} and not in {slot}"
