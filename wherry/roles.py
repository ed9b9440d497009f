"""TUF roles and file names that the operator's tool, the server and the agent share.

Layout (docs/decisions/0002-tuf.md): root, targets and snapshot are signed offline by the owner, timestamp
and the delegated role `director` online by the server. An assignment is `Metadata[Targets]` signed by
`director`, never listed in snapshot, whose version is the device's sequence.
"""

from __future__ import annotations

DIRECTOR = "director"
DIRECTOR_PATHS = ("assign/*",)
ASSIGNMENT_SCHEMA = 1
ASSIGNMENT_FIELD = "x-wherry-assignment"
"""In the assignment's signed part:
{"schema": 1, "device": ID, "slots": {SLOT: TARGET PATH}, "together": [[SLOT, …], …]}.

Its `targets` hold, for each of these paths, the same length and hashes as the owner's own targets
metadata. A slot that is not named is to be emptied. Slots of one group of
`together`, which may be left out, take their images together or not at all.
"""

ROOT_DAYS = 365
TARGETS_DAYS = 180
SNAPSHOT_DAYS = 60
TIMESTAMP_DAYS = 7
ASSIGNMENT_DAYS = 7
