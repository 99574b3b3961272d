"""Follows logs from outside, by their published tiles, and says what a log must never do.

Rule, per log, at every look
1. The checkpoint is signed by a known key of the log, and cosigned by as many known witnesses as are asked for.
2. It has not become smaller, and the tree that was seen last is a prefix of the new one: its root is computed from tiles that were
   all checked against the new root.
3. If leaves are read: every new leaf is hashed, and the root computed from them and from those before is the signed one.
4. It has changed, or was cosigned, within the time that is allowed.
Only a checkpoint that passes 1 to 3 is remembered, durably; after a fork every look says so again.

Knows: checks, state, evidence. Does not know: how often (cli), what a leaf says. Shares with the service the formats alone
(lionrock.tlog); a monitor is to run elsewhere, by somebody else, with keys that it got on another way.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from pathlib import Path

from lionrock.audit.evidence import ForkEvidence
from lionrock.chassis.durable_files import replace_through
from lionrock.tlog.encoding import MalformedNote
from lionrock.tlog.merkle import Frontier, consistency_proof, leaf_hash
from lionrock.tlog.note import UntrustedNote, VerifierKey
from lionrock.tlog.tile_client import (
    CorruptLog,
    SignedCheckpoint,
    SourceFailed,
    TileSource,
    TreeReader,
    open_checkpoint,
    read_checkpoint,
)

_CLOCK_DIFFERENCE_S = 60.0


class Alarm(StrEnum):
    """What a look can find. All but UNREACHABLE say something about the log."""

    FORK = "fork"
    """Two signed checkpoints, neither a prefix of the other."""
    ROLL_BACK = "roll_back"
    """The log is shorter than it was."""
    UNKNOWN_KEY = "unknown_key"
    """No known key of the log signed the checkpoint, or a known key's signature is wrong."""
    COSIGNATURES_MISSING = "cosignatures_missing"
    """Fewer witnesses cosigned than are asked for."""
    CORRUPT = "corrupt"
    """A file is missing, malformed, or not what the signed root commits to."""
    STALL = "stall"
    """The checkpoint is older than the limit."""
    UNREACHABLE = "unreachable"
    """The log could not be read; that says nothing about it."""


class StateUnusable(Exception):
    """What the monitor remembers of a log cannot be read or written. The message says which file and what to do."""


@dataclass(frozen=True, slots=True)
class WatchedLog:
    """A log to follow. `keys`: the log's own; `stall_after_s` None: it may stand still."""

    origin: str
    source: TileSource
    keys: Sequence[VerifierKey]
    witnesses: Sequence[VerifierKey] = ()
    witnesses_needed: int = 0
    stall_after_s: float | None = None
    read_leaves: bool = True


@dataclass(frozen=True, slots=True)
class Finding:
    """An alarm of one look. `evidence`: a file that proves it to others."""

    alarm: Alarm
    detail: str
    evidence: Path | None = None


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at a log found. `size`: of the last checkpoint that passed; None before there was one."""

    origin: str
    size: int | None
    new_leaves: int
    age_s: float | None
    """Time since the log last changed or was cosigned, as far as the monitor knows."""
    findings: Sequence[Finding]


@dataclass(frozen=True, slots=True)
class _Seen:
    """What is remembered: the last checkpoint that passed, since when, and the leaves read so far with the edge of their tree."""

    signed: SignedCheckpoint
    since_s: float
    leaves: int
    edge: Sequence[bytes]


class LogMonitor:
    """Looks at one log again and again. Belongs to one thread at a time."""

    def __init__(self, log: WatchedLog, state_dir: Path, *, clock: Callable[[], float] = time.time) -> None:
        """Remember in `state_dir`. Raises StateUnusable."""
        self._log = log
        self._clock = clock
        name = sha256(log.origin.encode()).hexdigest()[:16]
        self._state_file = state_dir / f"{name}.json"
        self._evidence = state_dir / f"{name}-fork.json"
        try:
            state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StateUnusable(f"{state_dir}: {error.strerror}") from error
        self._seen = self._read_state()

    @property
    def origin(self) -> str:
        """Which log."""
        return self._log.origin

    def look(self, *, everything: bool = False) -> Look:
        """Read the checkpoint and check what is new; with `everything`, all tiles and leaves, also those that passed before.

        Raises StateUnusable when what was found cannot be remembered.
        """
        before = self._size
        findings: list[Finding] = []
        signed_s: float | None = None
        try:
            signed_s = self._follow(findings, everything=everything)
        except SourceFailed as error:
            findings.append(Finding(Alarm.UNREACHABLE, str(error)))
        except UntrustedNote as error:
            findings.append(Finding(Alarm.UNKNOWN_KEY, str(error)))
        except (CorruptLog, MalformedNote) as error:
            findings.append(Finding(Alarm.CORRUPT, str(error)))
        age_s = None
        if self._seen is not None:
            age_s = max(0.0, self._clock() - max(self._seen.since_s, signed_s or 0.0))
            if self._log.stall_after_s is not None and age_s > self._log.stall_after_s:
                findings.append(Finding(Alarm.STALL, f"nothing new for {age_s:.0f} s; {self._log.stall_after_s:.0f} s are allowed"))
        return Look(self.origin, self._size, (self._size or 0) - (before or 0), age_s, findings)

    @property
    def _size(self) -> int | None:
        return None if self._seen is None else self._seen.signed.checkpoint.size

    def _open(self, note: str) -> SignedCheckpoint:
        return open_checkpoint(note, self.origin, self._log.keys, self._log.witnesses)

    def _follow(self, findings: list[Finding], *, everything: bool) -> float | None:
        """Go on to the published checkpoint if it passes. Returns the latest time that a signature on it states."""
        new = self._open(read_checkpoint(self._log.source))
        needed = self._log.witnesses_needed
        cosigned = len({signature.key for signature in new.opened.signatures} & set(self._log.witnesses))
        if cosigned < needed:
            findings.append(Finding(Alarm.COSIGNATURES_MISSING, f"{cosigned} witnesses cosigned it; {needed} are asked for"))
        tree = TreeReader(self._log.source, new.checkpoint)
        finding = None if self._seen is None else self._contradiction(self._seen.signed, new, tree)
        if finding is not None:
            findings.append(finding)
        else:
            if everything:
                tree.verify_tiles()
                for _ in tree.entries(0, new.checkpoint.size):
                    pass  # each leaf is checked against its tile as it is read
            self._accept(new, tree)
        latest_s = self._clock() + _CLOCK_DIFFERENCE_S  # who signs for tomorrow does not hide that it stands still today
        times = [signature.time_s for signature in new.opened.signatures if signature.time_s is not None]
        return max((time_s for time_s in times if time_s <= latest_s), default=None)

    def _contradiction(self, seen: SignedCheckpoint, new: SignedCheckpoint, tree: TreeReader) -> Finding | None:
        """Find a fork or a roll-back between what was seen and what is shown. Raises SourceFailed, CorruptLog."""
        old_size, new_size = seen.checkpoint.size, new.checkpoint.size
        if new_size >= old_size:
            return self._fork(seen, new, tree)
        try:
            fork = self._fork(new, seen, TreeReader(self._log.source, seen.checkpoint))
        except (SourceFailed, CorruptLog):
            fork = None  # the tiles of the longer tree are gone: whether the shorter one belongs to it cannot be said
        return fork or Finding(Alarm.ROLL_BACK, f"it has {new_size} leaves, and had {old_size}")

    def _fork(self, shorter: SignedCheckpoint, longer: SignedCheckpoint, tree: TreeReader) -> Finding | None:
        """Find out whether the shorter tree is no prefix of the longer, and keep the evidence. Raises SourceFailed, CorruptLog."""
        size, later = shorter.checkpoint.size, longer.checkpoint.size
        root = longer.checkpoint.root if size == later else tree.root_at(size)
        if root == shorter.checkpoint.root:
            return None
        proof = consistency_proof(size, later, tree.subtree_hashes) if 0 < size < later else []
        detail = f"its {size} leaves are not the first of its {later} leaves"
        if size == later:
            detail = f"it signed two trees of {size} leaves"
        try:
            if not self._evidence.exists():  # the first stays
                self._write(self._evidence, ForkEvidence(shorter.note, longer.note, root, proof).text())
        except StateUnusable as error:
            return Finding(Alarm.FORK, f"{detail}; the evidence could not be kept: {error}")
        return Finding(Alarm.FORK, detail, self._evidence)

    def _accept(self, new: SignedCheckpoint, tree: TreeReader) -> None:
        """Check what is new under a checkpoint and remember it. Raises SourceFailed, CorruptLog, StateUnusable."""
        size, seen = new.checkpoint.size, self._seen
        leaves, edge = (0, []) if seen is None else (seen.leaves, list(seen.edge))
        changed = seen is None or seen.signed.checkpoint != new.checkpoint
        if not changed and (leaves == size or not self._log.read_leaves):
            return
        tree.root_at(size)  # the edge, also where nothing else is read
        if self._log.read_leaves:
            frontier = Frontier(leaves, edge)
            for _, page in tree.entries(leaves, size):
                for leaf in page:
                    frontier.append(leaf_hash(leaf))
            if frontier.root() != new.checkpoint.root:
                raise CorruptLog(f"the {size} leaves lead to another root than was signed")
            leaves, edge = size, list(frontier.subtrees().values())
        since_s = self._clock() if changed or seen is None else seen.since_s
        state = {
            "origin": self.origin,
            "checkpoint": new.note,
            "since": since_s,
            "leaves": leaves,
            "edge": [hash_.hex() for hash_ in edge],
        }
        self._write(self._state_file, json.dumps(state, ensure_ascii=False, indent=1))
        self._seen = _Seen(new, since_s, leaves, edge)

    def _read_state(self) -> _Seen | None:
        try:
            state = json.loads(self._state_file.read_bytes())
            if state["origin"] != self.origin:
                raise ValueError("the state of another log")
            edge = [bytes.fromhex(each) for each in state["edge"]]
            seen = _Seen(self._open(state["checkpoint"]), float(state["since"]), int(state["leaves"]), edge)
            Frontier(seen.leaves, seen.edge)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            # Beginning anew would forget what the log has to be consistent with.
            raise StateUnusable(
                f"{self._state_file}, which remembers {self.origin}, cannot be used ({error}): restore it, or remove it to trust "
                "the log anew from what it shows now"
            ) from error
        return seen

    def _write(self, path: Path, text: str) -> None:
        try:
            replace_through(path, text.encode())
        except OSError as error:
            raise StateUnusable(f"writing {path}: {error.strerror}") from error
