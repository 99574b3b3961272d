"""What a check of stored logs can find, and a place to note it.

Knows: the names of flaws. Does not know: how they are looked for (store_check.py, record_check.py).
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Final

_FINDINGS_MAX: Final = 100
"""A log; what follows is counted."""


class Flaw(Enum):
    """What can be wrong with a stored log."""

    STORE_DAMAGED = "the store cannot be read as it should"
    LOG_MISSING = "the store does not hold a log that was signed for"
    LOG_UNKNOWN = "the store holds a log whose key was not given"
    KEY_MISMATCH = "the log was begun with another key"
    KEYS_MISMATCH = "the list of earlier keys is not that of the leaves by which they changed"
    CHECKPOINT_INVALID = "a checkpoint is not signed by the log's key"
    HEAD_MISMATCH = "the head is not the one that was signed"
    LEAF_MISSING = "a leaf is not there"
    LEAF_ALTERED = "a leaf is not what was hashed, or its row says other things than the leaf"
    LEAF_NOT_FOUND_BY_EVENT = "a leaf is not found by its event id"
    LEAF_SURPLUS = "there are leaves beyond the head"
    ROOT_MISMATCH = "the leaves do not lead to a root that was signed"
    INTENTS_MISMATCH = "the list of open intents is not that of the intents without an outcome"
    RECORD_MISSING = "a record that leaves name is not there"
    RECORD_MISMATCH = "a record says other things than its leaves"
    RECORD_SURPLUS = "something is kept that no leaf names"
    PAYLOAD_MISSING = "a payload of a record that is kept is not there"
    PAYLOAD_NOT_GONE = "a payload of a record that was destroyed is still there"
    DESTRUCTIONS_MISMATCH = "what was destroyed, or is to be, is not what erasure and expiry leaves say"
    DEPARTURE_MISMATCH = "how far its tenant has left is not what leaves say"
    HOLDS_MISMATCH = "the list of holds is not that of the holds that were placed and not released"
    SECOND_PLACE_BEHIND = "the file of signed checkpoints is behind the store; a crash leaves it so until the next start"
    ROLLED_BACK = "a larger tree was signed than the store holds"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. `detail` quotes no leaf."""

    origin: str
    flaw: Flaw
    detail: str

    def __str__(self) -> str:
        return f"{self.origin or 'store'}: {self.flaw.value}: {self.detail}"


@dataclass(slots=True)
class Check:
    """What was read and found. Nothing found: the stored logs are those that were signed."""

    findings: list[Finding] = field(default_factory=list)
    leaves: int = 0
    more: int = 0
    """Findings beyond the first ones of a log."""

    def add(self, origin: str, flaw: Flaw, detail: str) -> None:
        """Note a finding."""
        if sum(finding.origin == origin for finding in self.findings) < _FINDINGS_MAX:
            self.findings.append(Finding(origin, flaw, detail))
        else:
            self.more += 1
