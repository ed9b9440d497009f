"""The device itself: what hardware it is, and how busy, warm, hungry and worn it is. Reads files, decides nothing.

Every path hangs below a root folder, so that recordings of other boards can be read too.
"""

from wherry_agent.host.facts import read_facts
from wherry_agent.host.machine import Host

__all__ = ["Host", "read_facts"]
