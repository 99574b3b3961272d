"""An auditor's full check of the logs in a store: every leaf is read, every hash computed anew, every signature verified.

    1. the store's own structure: pages, rows, and indexes that agree with them       LogReader.flaws
    2. head: the signed checkpoint is of a key that the auditor trusts, and names the head
    3. leaves 0 … size - 1, each once: leaf hash, the hashes of the subtrees that it completes, its event id and time as the leaf
       itself says them, and that it is found by its event id
    4. at each size that was ever signed, as far as somebody kept the checkpoint (the second place; receipts, a witness, the
       monitor: `trusted`), the root of so many leaves
    5. the intents that wait for an outcome are those without one
    6. the second place is neither ahead of the store nor behind it

Knows: what has to hold. Does not know: SQL, files. It changes nothing, runs beside the service, and never raises for what it
reads: all that is wrong is a `Finding`. Memory: one page of leaves, the hashes on the tree's edge, the checkpoints to compare with,
and the open intents. Not checked, for a leaf says nothing of it: salts that are kept for repeated calls, the epoch, and what lies
sealed beside the leaves.

An edit of everything at once (leaves, both places, the key) is found by a checkpoint that left the building alone: give `trusted`.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, Protocol

from lionrock.audit.failures import StoreFailed
from lionrock.audit.leaf import rfc3339
from lionrock.audit.store import LogId, OpenIntent, StoredLeaf, StoredLog
from lionrock.tlog.checkpoint import Checkpoint
from lionrock.tlog.encoding import MalformedNote
from lionrock.tlog.keys import UntrustedNote, VerifierKey
from lionrock.tlog.merkle import Frontier, leaf_hash
from lionrock.tlog.note import open_note

_PAGE_BYTES: Final = 2**20
_FINDINGS_MAX: Final = 100
"""A log; what follows is counted."""
_CATCH_UP: Final = 10
_RETRY_S: Final = 0.02
_ANY_INDEX: Final = 2**62
_PROGRESS_LEAVES: Final = 10_000


class Flaw(Enum):
    """What can be wrong with a stored log."""

    STORE_DAMAGED = "the store cannot be read as it should"
    LOG_MISSING = "the store does not hold a log that was signed for"
    LOG_UNKNOWN = "the store holds a log whose key was not given"
    KEY_MISMATCH = "the log was begun with another key"
    CHECKPOINT_INVALID = "a checkpoint is not signed by the log's key"
    HEAD_MISMATCH = "the head is not the one that was signed"
    LEAF_MISSING = "a leaf is not there"
    LEAF_ALTERED = "a leaf is not what was hashed, or its row says other things than the leaf"
    LEAF_NOT_FOUND_BY_EVENT = "a leaf is not found by its event id"
    LEAF_SURPLUS = "there are leaves beyond the head"
    ROOT_MISMATCH = "the leaves do not lead to a root that was signed"
    INTENTS_MISMATCH = "the list of open intents is not that of the intents without an outcome"
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


class LogReader(Protocol):
    """The part of a store that the check reads, as LogStore has it, and the store's check of itself."""

    def find_log(self, origin: str) -> StoredLog | None:
        """Head of a log."""

    def logs(self) -> list[StoredLog]:
        """Heads of all logs, by origin."""

    def leaf_of_event(self, log_id: LogId, event_id: str) -> StoredLeaf | None:
        """Leaf of an event."""

    def leaves(self, log_id: LogId, start: int, stop: int, max_bytes: int) -> list[StoredLeaf]:
        """Leaves [start, stop) as far as `max_bytes` of data go, at least one if there is one."""

    def next_index(self, log_id: LogId) -> int:
        """One more than the highest index present."""

    def open_intents(self, log_id: LogId, below: int, limit: int) -> list[OpenIntent]:
        """Return open intents with an index below `below`, oldest first."""

    def flaws(self) -> Sequence[str]:
        """Say what the store's check of its own structure finds."""


def check_store(
    store: LogReader,
    keys: Sequence[VerifierKey],
    signed: Callable[[], Sequence[tuple[str, str]]],
    *,
    trusted: Sequence[str] = (),
    on_progress: Callable[[str, int], None] | None = None,
) -> Check:
    """Check every log of a store. Raises nothing for what it reads.

    `keys`: of the logs that must be there, by their names, from where the auditor trusts; several of one name after rotation.
    `signed`: reads the second place: (origin, checkpoint), oldest first; raises StoreFailed for one that is damaged.
    `trusted`: checkpoints of these logs that somebody else kept. `on_progress(origin, leaves read)` is called now and then.
    """
    check = Check()
    for flaw in store.flaws():
        check.add("", Flaw.STORE_DAMAGED, flaw)
    by_origin: dict[str, list[VerifierKey]] = {}
    for key in keys:
        by_origin.setdefault(key.name, []).append(key)
    try:
        unknown = {log.origin for log in store.logs()} | {origin for origin, _ in signed()}
    except StoreFailed as failure:
        check.add("", Flaw.STORE_DAMAGED, str(failure))
        unknown = set()
    for origin in sorted(unknown - by_origin.keys()):
        check.add("", Flaw.LOG_UNKNOWN, f"{len(origin)} characters of an origin")
    for origin, its_keys in by_origin.items():
        try:
            _LogCheck(check, store, origin, its_keys, on_progress).run(signed, trusted)
        except StoreFailed as failure:
            check.add(origin, Flaw.STORE_DAMAGED, str(failure))
    return check


class _LogCheck:
    """The check of one log."""

    def __init__(
        self,
        check: Check,
        store: LogReader,
        origin: str,
        keys: Sequence[VerifierKey],
        on_progress: Callable[[str, int], None] | None,
    ) -> None:
        self._check = check
        self._store = store
        self._origin = origin
        self._tenant = origin.rpartition("/")[2]
        self._keys = keys
        self._on_progress = on_progress
        self._frontier = Frontier(0, [])
        self._roots: dict[int, list[tuple[bytes, str]]] = {}
        self._open: dict[int, str] = {}
        self._open_of: dict[str, set[int]] = {}

    def run(self, signed: Callable[[], Sequence[tuple[str, str]]], trusted: Sequence[str]) -> None:
        """Run all checks. Raises StoreFailed."""
        head, second = self._head_and_second_place(signed)
        for checkpoint, whose in [
            *((checkpoint, "the second place") for checkpoint in second),
            *((checkpoint, "a checkpoint that was brought") for checkpoint in self._of_this_log(trusted)),
        ]:
            self._roots.setdefault(checkpoint.size, []).append((checkpoint.root, whose))
            if head is None or checkpoint.size > head.size:
                held = "nothing" if head is None else f"{head.size} leaves"
                self._find(Flaw.ROLLED_BACK, f"{whose} names {checkpoint.size} leaves, the store holds {held}")
        if head is None:
            self._find(Flaw.LOG_MISSING, "no row names its origin")
            return
        if head.verifier_key not in {str(key) for key in self._keys}:
            self._find(Flaw.KEY_MISMATCH, "its row names a key that was not given")
        for _ in range(_CATCH_UP):
            self._check_head(head)
            if not self._read_to(head):
                return
            later = self._store.find_log(self._origin)
            if later == head:
                self._check_ends(head)
                return
            if later is None or later.size < head.size:
                self._find(Flaw.HEAD_MISMATCH, "the head went back while it was being read")
                return
            head = later

    def _head_and_second_place(self, signed: Callable[[], Sequence[tuple[str, str]]]) -> tuple[StoredLog | None, list[Checkpoint]]:
        """Read the head, then the second place until it is as far (a running service writes it after the store)."""
        head = self._store.find_log(self._origin)
        second: list[Checkpoint] = []
        for _ in range(_CATCH_UP):
            try:
                lines = signed()
            except StoreFailed as failure:
                self._find(Flaw.STORE_DAMAGED, str(failure))
                return head, []
            second = self._of_this_log([checkpoint for origin, checkpoint in lines if origin == self._origin])
            if head is None or (second and second[-1].size >= head.size):
                break
            time.sleep(_RETRY_S)
        else:
            assert head is not None
            self._find(Flaw.SECOND_PLACE_BEHIND, f"{second[-1].size if second else 'no'} leaves there, {head.size} in the store")
        # What is in the second place by now was in the store before it.
        return (head if head is None else self._store.find_log(self._origin)), second

    def _of_this_log(self, checkpoints: Sequence[str]) -> list[Checkpoint]:
        opened = []
        for note in checkpoints:
            checkpoint = self._opened(note, quiet=note.partition("\n")[0] != self._origin)
            if checkpoint is not None:
                opened.append(checkpoint)
        return opened

    def _opened(self, note: str, *, quiet: bool = False) -> Checkpoint | None:
        """Checkpoint of this log under one of its keys; else None and, unless `quiet`, a finding."""
        try:
            checkpoint = Checkpoint.parse(open_note(note, self._keys).text)
        except (MalformedNote, UntrustedNote) as error:
            if not quiet:
                self._find(Flaw.CHECKPOINT_INVALID, str(error))
            return None
        if checkpoint.origin != self._origin:
            if not quiet:
                self._find(Flaw.CHECKPOINT_INVALID, "it names another log")
            return None
        return checkpoint

    def _check_head(self, head: StoredLog) -> None:
        checkpoint = self._opened(head.checkpoint)
        if checkpoint is not None and (checkpoint.size, checkpoint.root) != (head.size, head.root):
            self._find(Flaw.HEAD_MISMATCH, f"{head.size} leaves in the row, {checkpoint.size} signed, or another root")
        self._roots.setdefault(head.size, []).append((head.root, "the head"))

    def _read_to(self, head: StoredLog) -> bool:
        """Read on to the head. Returns whether every leaf was there."""
        self._check_roots()
        while self._frontier.size < head.size:
            page = self._store.leaves(head.log_id, self._frontier.size, head.size, _PAGE_BYTES)
            for leaf in page:
                if leaf.index != self._frontier.size:
                    break
                self._check_leaf(head.log_id, leaf)
                self._check_roots()
                self._check.leaves += 1
                if self._on_progress is not None and self._frontier.size % _PROGRESS_LEAVES == 0:
                    self._on_progress(self._origin, self._frontier.size)
            if not page or page[-1].index != self._frontier.size - 1:
                self._find(Flaw.LEAF_MISSING, f"leaf {self._frontier.size} of {head.size}")
                return False
        return True

    def _check_leaf(self, log_id: LogId, leaf: StoredLeaf) -> None:
        if self._frontier.append(leaf_hash(leaf.data)) != list(leaf.completed):
            self._find(Flaw.LEAF_ALTERED, f"leaf {leaf.index} does not have the hashes that are stored with it")
        if self._store.leaf_of_event(log_id, leaf.event_id) != leaf:
            self._find(Flaw.LEAF_NOT_FOUND_BY_EVENT, f"leaf {leaf.index}")
        wrong = self._take(leaf)
        if wrong is not None:
            self._find(Flaw.LEAF_ALTERED, f"leaf {leaf.index}: {wrong}")

    def _take(self, leaf: StoredLeaf) -> str | None:
        """Follow the intents, and say where the row differs from its leaf."""
        if not leaf.data.startswith(b"{"):
            return _differs_from_note(leaf)
        try:
            fields = json.loads(leaf.data)
        except (ValueError, RecursionError):
            return "it is no JSON"
        if fields.get("event_id") != leaf.event_id:
            return "its row names another event"
        if fields.get("tenant", self._tenant) != self._tenant:
            return "it belongs to another tenant"
        self._follow(leaf.index, fields)
        try:
            recorded_at = rfc3339(leaf.recorded_at_us)
        except OverflowError:
            return "its row names a time that is none"
        return None if fields.get("ts") == recorded_at else "its row names another time"

    def _follow(self, index: int, fields: Mapping[str, Any]) -> None:
        request_id = str(fields.get("request_id", ""))
        if fields.get("type") == "intent":
            self._open[index] = request_id
            self._open_of.setdefault(request_id, set()).add(index)
        elif fields.get("type") == "outcome":
            named = fields.get("intent_index")
            for closed in [named] if isinstance(named, int) else sorted(self._open_of.get(request_id, ())):
                if self._open.get(closed) == request_id:
                    del self._open[closed]
                    self._open_of[request_id].remove(closed)
            if not self._open_of.get(request_id, True):
                del self._open_of[request_id]

    def _check_roots(self) -> None:
        for root, whose in self._roots.pop(self._frontier.size, ()):
            if self._frontier.root() != root:
                self._find(Flaw.ROOT_MISMATCH, f"{self._frontier.size} leaves, root of {whose}")

    def _check_ends(self, head: StoredLog) -> None:
        """Check what must hold at the end, unless the service writes on meanwhile: then it is not the end."""
        surplus = self._store.next_index(head.log_id)
        stored = self._store.open_intents(head.log_id, _ANY_INDEX, len(self._open) + 1)
        if self._store.find_log(self._origin) != head:
            return
        if surplus > head.size:
            self._find(Flaw.LEAF_SURPLUS, f"an index goes up to {surplus - 1}, the head to {head.size - 1}")
        if stored != [OpenIntent(index, request_id) for index, request_id in sorted(self._open.items())]:
            self._find(Flaw.INTENTS_MISMATCH, f"{len(self._open)} intents have no outcome")

    def _find(self, flaw: Flaw, detail: str) -> None:
        self._check.add(self._origin, flaw, detail)


def _differs_from_note(leaf: StoredLeaf) -> str | None:
    """Compare a leaf of the platform log, a tenant's checkpoint, with its event id, "<tenant>:<size>"."""
    lines = leaf.data.decode(errors="replace").split("\n", 2)
    if len(lines) < 3 or f"{lines[0].rpartition('/')[2]}:{lines[1]}" != leaf.event_id:
        return "its row names another event"
    return None
