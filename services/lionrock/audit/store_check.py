"""An auditor's full check of the logs in a store: every leaf is read, every hash computed anew, every signature verified.

    1. the store's own structure: pages, rows, and indexes that agree with them       LogReader.flaws
    2. head: the signed checkpoint is of a key that the auditor trusts, and names the head
    3. leaves 0 … size - 1, each once: leaf hash, the hashes of the subtrees that it completes, its event id and time as the leaf
       itself says them, and that it is found by its event id
    4. at each size that was ever signed, as far as somebody kept the checkpoint (the second place; receipts, a witness, the
       monitor: `trusted`), the root of so many leaves
    5. the intents that wait for an outcome are those without one
    6. the second place is neither ahead of the store nor behind it
    7. the keys that signed before are those that KEY_CHANGE leaves name, and their last checkpoints are of this tree
    8. records, payloads, holds and destructions are what the leaves say                                      record_check.py

Knows: what has to hold. Does not know: SQL, files. It changes nothing, runs beside the service, and never raises for what it
reads: all that is wrong is a `Finding`. What is compared is read in one state (`LogReader.snapshot`), a page at a time and in the
end once more: leaves are never changed, and a snapshot over the whole check would keep erased rows on the disk as long.
Memory: one page of leaves, the hashes on the tree's edge, the checkpoints to compare with, the open intents and the holds. Not
checked, for a leaf says nothing of it: salts that are kept for repeated calls, the epoch, and what is in a ciphertext.

An edit of everything at once (leaves, both places, the key) is found by a checkpoint that left the building alone: give `trusted`.
"""

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, Protocol

from lionrock.audit.failures import StoreFailed
from lionrock.audit.findings import Check, Flaw
from lionrock.audit.key_links import key_digest
from lionrock.audit.leaf import rfc3339
from lionrock.audit.record_check import RecordCheck
from lionrock.audit.store import LogId, OpenIntent, StoredLeaf, StoredLog
from lionrock.audit.store.departures import DepartureReader
from lionrock.audit.store.records import RecordReader
from lionrock.audit.store.tables import RETIRED_KEYS, TableReader
from lionrock.audit.tenant_log import RETIRED_KEYS_MAX
from lionrock.tlog.checkpoint import Checkpoint
from lionrock.tlog.encoding import MalformedNote
from lionrock.tlog.keys import UntrustedNote, VerifierKey
from lionrock.tlog.merkle import Frontier, leaf_hash
from lionrock.tlog.note import open_note

_PAGE_BYTES: Final = 2**18
_CATCH_UP: Final = 10
_NEAR_LEAVES: Final = 10_000
"""So few leaves are read in the last snapshot."""
_RETRY_S: Final = 0.02
_ANY_INDEX: Final = 2**62
_PROGRESS_LEAVES: Final = 10_000


class LogReader(Protocol):
    """A store opened for a check alone, which changes nothing; each kind of store has one."""

    @property
    def records(self) -> RecordReader:
        """Records beside the leaves."""

    @property
    def departures(self) -> DepartureReader:
        """Tenants that leave."""

    @property
    def tables(self) -> TableReader:
        """What is beside leaves and heads, row by row."""

    def snapshot(self) -> AbstractContextManager[None]:
        """Have the reads of a block see one state. Blocks are short and do not nest."""

    def find_log(self, origin: str) -> StoredLog | None:
        """Head of a log."""

    def logs(self) -> list[StoredLog]:
        """Heads of all logs, by origin."""

    def leaves_of_events(self, log_id: LogId, event_ids: Collection[str]) -> dict[str, StoredLeaf]:
        """Leaves of those events that are there, by event id."""

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
        self._key_changes: list[tuple[int, str]] = []
        self._records: RecordCheck | None = None

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
        self._records = RecordCheck(self._store, head.log_id, self._find)
        self._expect_roots_of_changes(head)
        for _ in range(_CATCH_UP):
            self._check_head(head)
            if not self._read_to(head, self._store.snapshot):
                return
            later = self._store.find_log(self._origin)
            if later is None or later.size < head.size:
                self._find(Flaw.HEAD_MISMATCH, "the head went back while it was being read")
                return
            if later.size - head.size < _NEAR_LEAVES:
                break
            head = later
        with self._store.snapshot():
            last = self._store.find_log(self._origin)
            if last is None or last.size < head.size:
                self._find(Flaw.HEAD_MISMATCH, "the head went back while it was being read")
                return
            if last != head:
                self._check_head(last)
            if self._read_to(last, nullcontext):
                self._check_ends(last)

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

    def _opened(self, note: str, *, quiet: bool = False, also: str | None = None) -> Checkpoint | None:
        """Checkpoint of this log under one of its keys (or `also`); else None and, unless `quiet`, a finding."""
        try:
            keys = self._keys if also is None else [VerifierKey.parse(also), *self._keys]
            checkpoint = Checkpoint.parse(open_note(note, keys).text)
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

    def _expect_roots_of_changes(self, head: StoredLog) -> None:
        """Have the checkpoints at which the key changed compared with the leaves."""
        for index, verifier_key, note in self._store.tables.page(RETIRED_KEYS, head.log_id, None, RETIRED_KEYS_MAX):
            if not (isinstance(index, int) and isinstance(verifier_key, str) and isinstance(note, str)):
                raise StoreFailed("an earlier key does not have the types of the schema")
            checkpoint = self._opened(note, also=verifier_key)
            if checkpoint is None or checkpoint.size != index + 1:
                self._find(Flaw.KEYS_MISMATCH, f"the checkpoint of the change at leaf {index} is not one of it")
            elif checkpoint.size <= head.size:
                self._roots.setdefault(checkpoint.size, []).append((checkpoint.root, "the change of a key"))

    def _read_to(self, head: StoredLog, snapshot: Callable[[], AbstractContextManager[None]]) -> bool:
        """Read on to the head. Returns whether every leaf was there."""
        self._check_roots()
        while self._frontier.size < head.size:
            with snapshot():
                page = self._store.leaves(head.log_id, self._frontier.size, head.size, _PAGE_BYTES)
                found = self._store.leaves_of_events(head.log_id, [leaf.event_id for leaf in page])
                for leaf in page:
                    if leaf.index != self._frontier.size:
                        break
                    self._check_leaf(leaf, found.get(leaf.event_id))
                    self._check_roots()
                    self._check.leaves += 1
                    if self._on_progress is not None and self._frontier.size % _PROGRESS_LEAVES == 0:
                        self._on_progress(self._origin, self._frontier.size)
                assert self._records is not None
                self._records.check_page()
            if not page or page[-1].index != self._frontier.size - 1:
                self._find(Flaw.LEAF_MISSING, f"leaf {self._frontier.size} of {head.size}")
                return False
        return True

    def _check_leaf(self, leaf: StoredLeaf, by_event: StoredLeaf | None) -> None:
        if self._frontier.append(leaf_hash(leaf.data)) != list(leaf.completed):
            self._find(Flaw.LEAF_ALTERED, f"leaf {leaf.index} does not have the hashes that are stored with it")
        if by_event != leaf:
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
        assert self._records is not None
        self._records.take(leaf, fields)
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
        elif fields.get("type") == "key_change":
            self._key_changes.append((index, str(fields.get("previous_key", ""))))

    def _check_roots(self) -> None:
        for root, whose in self._roots.pop(self._frontier.size, ()):
            if self._frontier.root() != root:
                self._find(Flaw.ROOT_MISMATCH, f"{self._frontier.size} leaves, root of {whose}")

    def _check_ends(self, head: StoredLog) -> None:
        """Check what must hold at the head, which is the end as long as the snapshot lasts."""
        surplus = self._store.next_index(head.log_id)
        if surplus > head.size:
            self._find(Flaw.LEAF_SURPLUS, f"an index goes up to {surplus - 1}, the head to {head.size - 1}")
        stored = self._store.open_intents(head.log_id, _ANY_INDEX, len(self._open) + 1)
        if stored != [OpenIntent(index, request_id) for index, request_id in sorted(self._open.items())]:
            self._find(Flaw.INTENTS_MISMATCH, f"{len(self._open)} intents have no outcome")
        retired = self._store.tables.page(RETIRED_KEYS, head.log_id, None, RETIRED_KEYS_MAX)
        if [(index, key_digest(str(verifier_key))) for index, verifier_key, _ in retired] != self._key_changes:
            self._find(Flaw.KEYS_MISMATCH, f"{len(retired)} are kept, {len(self._key_changes)} leaves say that the key changed")
        assert self._records is not None
        self._records.check_ends(stored)

    def _find(self, flaw: Flaw, detail: str) -> None:
        self._check.add(self._origin, flaw, detail)


def _differs_from_note(leaf: StoredLeaf) -> str | None:
    """Compare a leaf of the platform log, a tenant's checkpoint, with its event id, "<tenant>:<size>"."""
    lines = leaf.data.decode(errors="replace").split("\n", 2)
    if len(lines) < 3 or f"{lines[0].rpartition('/')[2]}:{lines[1]}" != leaf.event_id:
        return "its row names another event"
    return None
