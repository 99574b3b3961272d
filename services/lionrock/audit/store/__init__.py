"""What a store of logs must do. One test suite runs over every implementation (tests/audit/test_store.py).

A store keeps, for each log: its head (size, root, signed checkpoint), its leaves with the subtree hashes that each completed
(merkle.py), the event ids, the intents without an outcome, and for a limited time the salts by which a repeated call is
recognised.

Duties
- A store has one writer. Opening it takes a lock that dies with the process, and raises an epoch that every transaction
  checks (fencing): a writer that lost the lock can commit nothing. `StoreHeld` names the holder. Where the lock is a lease, the
  writer keeps it by `heartbeat`.
- A transaction is all or nothing, and durable (fsynced) when `commit` returns. `advance` compares and swaps (size, root).
- Whatever fails on the way raises `StoreFailed` and is never taken for success; the caller stops writing until restart.
- Reads may come from another thread than writes, one at a time, and see committed state.
"""

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, NewType, Protocol

from lionrock.audit.store.departures import DepartureReader, DepartureWriter
from lionrock.audit.store.records import RecordReader, RecordWriter
from lionrock.audit.store.tables import TableReader, TableWriter
from lionrock.tlog.merkle import Subtree

LogId = NewType("LogId", int)
UNFINISHED: Final = ""
"""What stands for the checkpoint of a log that is being moved here (moving.py) and not wholly there; no note is empty."""


@dataclass(frozen=True, slots=True)
class StoredLog:
    """Head of a log. `checkpoint`: the signed note over (origin, size, root).

    `failed_over`: what happened to the store since this head was committed, if commits after it may have been lost with it.
    """

    log_id: LogId
    origin: str
    verifier_key: str
    size: int
    root: bytes
    checkpoint: str
    failed_over: str | None = None


@dataclass(frozen=True, slots=True)
class StoredLeaf:
    """One leaf. `completed`: hashes of the subtrees that it completed, level 0 first."""

    index: int
    event_id: str
    recorded_at_us: int
    completed: Sequence[bytes]
    data: bytes


@dataclass(frozen=True, slots=True)
class OpenIntent:
    """An intent without an outcome."""

    index: int
    request_id: str


class Transaction(Protocol):
    """One atomic step of the writer."""

    @property
    def records(self) -> RecordWriter:
        """Records beside the leaves."""

    @property
    def departures(self) -> DepartureWriter:
        """Tenants that leave."""

    @property
    def tables(self) -> TableWriter:
        """What is beside leaves and heads, row by row."""

    def leaves_of_events(self, log_id: LogId, event_ids: Collection[str]) -> dict[str, StoredLeaf]:
        """Leaves of those events that were recorded, by event id."""

    def retry_salt(self, log_id: LogId, leaf: StoredLeaf) -> bytes | None:
        """Salt of a leaf while its retry window lasts."""

    def open_intent(self, log_id: LogId, index: int) -> OpenIntent | None:
        """Return the intent at `index` unless it is closed or not an intent. May be slow: it serves a refusal."""

    def open_intents_of(self, log_id: LogId, request_ids: Collection[str]) -> list[OpenIntent]:
        """Intents of these requests that wait for an outcome, oldest first."""

    def add_leaves(self, log_id: LogId, leaves: Sequence[StoredLeaf]) -> None:
        """Append, in order of index."""

    def add_open_intents(self, log_id: LogId, intents: Sequence[OpenIntent]) -> None:
        """Note intents that wait for an outcome."""

    def close_intents(self, log_id: LogId, intents: Sequence[OpenIntent]) -> None:
        """Forget intents that have one."""

    def keep_retry_salts(self, log_id: LogId, salts: Sequence[tuple[int, int, bytes]]) -> None:
        """Keep (leaf index, recorded_at_us, salt) for the retry window."""

    def forget_retry_salts(self, before_us: int, limit: int) -> int:
        """Destroy at most `limit` salts recorded before a time. Returns how many."""

    def set_key(self, log_id: LogId, verifier_key: str) -> None:
        """Say that another key signs the log from its next head on."""

    def advance(self, log_id: LogId, old_size: int, old_root: bytes, size: int, root: bytes, checkpoint: str) -> None:
        """Move the head. Raises StoreConflict unless it stands at (old_size, old_root)."""


class LogStore(Protocol):
    """A durable set of logs with one writer."""

    @property
    def records(self) -> RecordReader:
        """Records beside the leaves."""

    @property
    def departures(self) -> DepartureReader:
        """Tenants that leave."""

    @property
    def tables(self) -> TableReader:
        """What is beside leaves and heads, row by row."""

    def forget_deleted(self) -> None:
        """Overwrite what was deleted wherever this store itself still holds it; the writer's thread calls it.

        Raises StoreFailed.
        """

    def transaction(self) -> AbstractContextManager[Transaction]:
        """Commit at the end of the block, or roll back if it raises. Raises StoreFailed, StoreConflict."""

    def create_log(self, origin: str, verifier_key: str, root: bytes, checkpoint: str) -> StoredLog:
        """Create an empty log, durably."""

    def find_log(self, origin: str) -> StoredLog | None:
        """Head of a log."""

    def logs(self) -> list[StoredLog]:
        """Heads of all logs, by origin."""

    def leaf(self, log_id: LogId, index: int) -> StoredLeaf | None:
        """Leaf at an index."""

    def leaf_of_event(self, log_id: LogId, event_id: str) -> StoredLeaf | None:
        """Leaf of an event."""

    def leaves(self, log_id: LogId, start: int, stop: int, max_bytes: int) -> list[StoredLeaf]:
        """Leaves [start, stop) as far as `max_bytes` of data go, at least one if there is one."""

    def next_index(self, log_id: LogId) -> int:
        """One more than the highest index present."""

    def subtree_hashes(self, log_id: LogId, subtrees: Sequence[Subtree]) -> list[bytes]:
        """Hashes in the order asked. Raises StoreFailed when one is absent."""

    def open_intents(self, log_id: LogId, below: int, limit: int) -> list[OpenIntent]:
        """Return open intents with an index below `below`, oldest first."""

    def heartbeat(self) -> None:
        """Show that the writer lives; the writer's thread calls it when nothing else was written for some seconds.

        Raises StoreFailed, StoreConflict when another has taken over.
        """

    def close(self) -> None:
        """Release the store."""
