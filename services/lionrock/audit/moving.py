"""Moves all logs from one store to another, with their proofs intact.

Knows: what is read, what is checked on the way, where an interrupted move goes on. Does not know: which database is at either end.

- Leaves go over with the very subtree hashes that prove them, each computed again from the data; so does the root of every batch,
  and at the end the root that was signed, whose checkpoint goes over last, to the byte. Whatever verified before the move verifies
  after it.
- A move can be interrupted and started again: a log at 10^8 leaves takes hours, and beginning anew after a lost connection would
  take them again. Until its checkpoint is there a log in the target is unfinished: no service signs for it, and nothing but the
  same move goes on with it, after checking that what is there is a prefix of the source.
- Both stores are held meanwhile. The source is not changed; the file of signed checkpoints, which stays with the keys, keeps a
  service from signing on it once the target has grown.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Final

from lionrock.audit.failures import MoveRefused, StoreFailed
from lionrock.audit.store import UNFINISHED, LogStore, StoredLeaf, StoredLog
from lionrock.audit.store.tables import TABLES, Table
from lionrock.tlog.checkpoint import Checkpoint
from lionrock.tlog.merkle import EMPTY_ROOT, Frontier, leaf_hash, root_at, subtrees_of
from lionrock.tlog.note import MalformedNote, UntrustedNote, VerifierKey, open_note

Progress = Callable[[str, int, int], None]
"""Told of a log's origin, how many of its leaves are moved, and how many there are."""
_BATCH_BYTES: Final = 4 * 2**20
_BATCH_LEAVES: Final = 4096
_ROWS_AT_ONCE: Final = 512


def move_logs(source: LogStore, target: LogStore, progress: Progress = lambda *_: None) -> list[StoredLog]:
    """Move every log. Returns the heads, as they are in the target. Raises MoveRefused, StoreFailed."""
    logs = source.logs()
    _check_target(logs, source, target)
    return [_move(log, source, target, partial(progress, log.origin)) for log in logs]


def _check_target(logs: list[StoredLog], source: LogStore, target: LogStore) -> None:
    """Let a move begin or go on. Raises MoveRefused."""
    if not logs:
        raise MoveRefused("the source has no logs")
    known = {log.origin: log for log in logs}
    for there in target.logs():
        log = known.get(there.origin)
        if log is None or there.verifier_key != log.verifier_key:
            raise MoveRefused(f"the target is not empty: it has a log {there.origin} that is not the source's")
        if there.size > log.size or root_at(there.size, partial(source.subtree_hashes, log.log_id)) != there.root:
            raise MoveRefused(f"the target is not empty: its {there.origin} is no prefix of the source's")
        if there.checkpoint not in (UNFINISHED, log.checkpoint):
            raise MoveRefused(f"the target is not empty: a service has signed for its {there.origin}")


def _move(log: StoredLog, source: LogStore, target: LogStore, progress: Callable[[int, int], None]) -> StoredLog:
    _check_signed(log)
    moved = target.find_log(log.origin) or target.create_log(log.origin, log.verifier_key, EMPTY_ROOT, UNFINISHED)
    frontier = Frontier(moved.size, target.subtree_hashes(moved.log_id, subtrees_of(0, moved.size)) if moved.size else [])
    if frontier.root() != moved.root:
        raise MoveRefused(f"the hashes of {log.origin} in the target do not give its root: empty the target and begin anew")
    progress(moved.size, log.size)
    root = moved.root
    for batch in _batches(log, source, moved.size):
        size = frontier.size
        for leaf in batch:
            _append(frontier, leaf, log.origin)
        with target.transaction() as transaction:
            transaction.add_leaves(moved.log_id, batch)
            transaction.advance(moved.log_id, size, root, frontier.size, frontier.root(), UNFINISHED)
        root = frontier.root()
        progress(frontier.size, log.size)
    if (frontier.size, root) != (log.size, log.root):
        raise MoveRefused(f"the leaves of {log.origin} do not give the root that was signed: restore the source from its backup")
    for table in TABLES:
        _copy(table, log, moved, source, target)
    with target.transaction() as transaction:
        transaction.advance(moved.log_id, log.size, log.root, log.size, log.root, log.checkpoint)
    return _compare(log, target)


def _check_signed(log: StoredLog) -> None:
    """Check that the checkpoint is the log's own, for its head. Raises MoveRefused."""
    try:
        note = open_note(log.checkpoint, [VerifierKey.parse(log.verifier_key)])
        signed = Checkpoint.parse(note.text)
    except (MalformedNote, UntrustedNote) as error:
        raise MoveRefused(f"the checkpoint of {log.origin} in the source is not signed by its key: {error}") from error
    if (signed.origin, signed.size, signed.root) != (log.origin, log.size, log.root):
        raise MoveRefused(f"the source names another head of {log.origin} than was signed: restore it from its backup")


def _batches(log: StoredLog, source: LogStore, start: int) -> Iterator[list[StoredLeaf]]:
    while start < log.size:
        source.heartbeat()  # the source stays ours to the end, or the move ends
        batch = source.leaves(log.log_id, start, min(log.size, start + _BATCH_LEAVES), _BATCH_BYTES)
        if not batch or batch[0].index != start or any(after.index != before.index + 1 for before, after in pairwise(batch)):
            raise MoveRefused(f"the source lacks leaves of {log.origin} from {start} on: restore it from its backup")
        yield batch
        start = batch[-1].index + 1


def _append(frontier: Frontier, leaf: StoredLeaf, origin: str) -> None:
    if frontier.append(leaf_hash(leaf.data)) != list(leaf.completed):
        raise MoveRefused(f"leaf {leaf.index} of {origin} in the source is not what was hashed: restore it from its backup")


def _copy(table: Table, log: StoredLog, moved: StoredLog, source: LogStore, target: LogStore) -> None:
    """Copy what the target does not have yet: rows go over in the order of their keys."""
    after = target.tables.last_key(table, moved.log_id)
    source.heartbeat()
    while rows := source.tables.page(table, log.log_id, after, _ROWS_AT_ONCE):
        with target.transaction() as transaction:
            transaction.tables.add(table, moved.log_id, rows)
        source.heartbeat()
        after = rows[-1][: len(table.key)]


def _compare(log: StoredLog, target: LogStore) -> StoredLog:
    """Read back what was written. Raises StoreFailed."""
    there = target.find_log(log.origin)
    if there is None or (there.size, there.root, there.checkpoint, there.verifier_key) != (
        log.size,
        log.root,
        log.checkpoint,
        log.verifier_key,
    ):
        raise StoreFailed(f"the head of {log.origin} in the target is not the source's")
    if target.next_index(there.log_id) != log.size:
        raise StoreFailed(f"the target does not hold {log.size} leaves of {log.origin}")
    if root_at(log.size, partial(target.subtree_hashes, there.log_id)) != log.root:
        raise StoreFailed(f"the hashes of {log.origin} in the target do not give its root")
    return there
