"""Which answers of a tenant wait for a reviewer.

Pure: knows what a Tenant states, as the gateway has it, and imports nothing of the gateway. Does not know the queue (rows.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path


class Cause(IntEnum):
    """Why an answer is held; numbers as in review.proto, HoldCause."""

    PURPOSE = 1
    PROFILE = 2
    PROMPT = 3
    ANSWER = 4


class Decision(IntEnum):
    """What became of a held answer; numbers as in review.proto, ReviewDecision."""

    WAITING = 0
    RELEASE = 1
    REFUSE = 2
    EXPIRED = 3


@dataclass(frozen=True, slots=True)
class Notify:
    """Who is told that an answer waits: an https URL, a file with the secret that signs, PEM authorities; None: the system's."""

    url: str
    secret_file: Path
    ca_file: Path | None


@dataclass(frozen=True, slots=True)
class ReviewRules:
    """What a tenant states. `ttl_s`: time to decide, in seconds."""

    purposes: frozenset[str]
    profiles: frozenset[str]
    ttl_s: int
    notify: Notify | None = None

    def cause(self, purpose: str, profile: str) -> Cause | None:
        """Why all answers of this purpose, or under this profile, wait; None where they do not."""
        if purpose in self.purposes:
            return Cause.PURPOSE
        return Cause.PROFILE if profile in self.profiles else None
