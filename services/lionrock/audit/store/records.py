"""Records beside the leaves: what is kept of each request, sealed; one SQL for every store.

Knows: the tables of records, payloads, holds and destructions, in the SQL that SQLite and PostgreSQL share ("?" stands for a
parameter; a store translates it). Does not know: keys, what is sealed, what may be destroyed when.

States of a record: "kept"; "destroying" from the moment that its destruction is decided, durably, until it is done; then
"erased" or "expired" for ever, so that nothing is added to it again.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from lionrock.audit.failures import StoreFailed

KEPT: Final = "kept"
DESTROYING: Final = "destroying"
ERASED: Final = "erased"
EXPIRED: Final = "expired"

Ask = Callable[[str, Sequence[object]], Sequence[Sequence[Any]]]
"""Ask one statement with its parameters; returns its rows."""
Write = Callable[[str, Sequence[Any]], object]
"""Run one statement for each row of parameters."""


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """What one request left. `recorded_at_us`: time of its first leaf, from which retention counts."""

    request_id: str
    state: str
    retention_class: str
    case_id: str
    restricted: bool
    """Of the data class "suspicion"."""
    log_book: bool
    """An entry of the log book of refusals; no request."""
    recorded_at_us: int


@dataclass(frozen=True, slots=True)
class SealedPayload:
    """One payload with its salt, encrypted under the record's key."""

    leaf_index: int
    kind: str
    event_id: str
    sealed: bytes


@dataclass(frozen=True, slots=True)
class PayloadPlace:
    """Where a sealed payload lies, without it. `size`: of the ciphertext, bytes."""

    request_id: str
    leaf_index: int
    kind: str
    event_id: str
    size: int


@dataclass(frozen=True, slots=True)
class StoredHold:
    """A hold in force. `sealed`: whom it keeps, why, who placed it; encrypted under a key of its own."""

    hold_id: str
    leaf_index: int
    placed_at_us: int
    restricted: bool
    sealed: bytes


@dataclass(frozen=True, slots=True)
class StoredDestruction:
    """A destruction that was decided and is not finished. `plan`: JSON of records/destruction.py, without any secret."""

    destruction_id: str
    plan: bytes


@dataclass(frozen=True, slots=True)
class RecordCounts:
    """Counts of one log; `records` by state."""

    records: Mapping[str, int]
    open_intents: int
    payload_bytes: int
    holds: int


@dataclass(frozen=True, slots=True)
class Beside:
    """What is written in the transaction of a leaf, if the leaf is new.

    `record`: the leaf belongs to it; it is added when it is not there, and must not be destroyed. `placed` and `released`: a hold.
    """

    record: StoredRecord | None = None
    payloads: Mapping[str, bytes] = field(default_factory=dict)
    placed: StoredHold | None = None
    released: str | None = None


NOTHING: Final = Beside()


def record_tables(*, text: str, integer: str, blob: str, options: str) -> tuple[str, ...]:
    """Statements that make the tables, in a database's own types."""
    return (
        f"""CREATE TABLE records (
            log_id {integer} NOT NULL, request_id {text} NOT NULL, state {text} NOT NULL, retention_class {text} NOT NULL,
            case_id {text} NOT NULL, restricted {integer} NOT NULL, log_book {integer} NOT NULL, recorded_at_us {integer} NOT NULL,
            destruction_id {text} NOT NULL, PRIMARY KEY (log_id, request_id)){options}""",
        # Also counts without touching the table.
        "CREATE INDEX records_by_state ON records (log_id, state, restricted, retention_class, recorded_at_us)",
        "CREATE INDEX records_by_case ON records (log_id, case_id, recorded_at_us) WHERE case_id <> ''",
        f"""CREATE TABLE record_leaves (
            log_id {integer} NOT NULL, request_id {text} NOT NULL, leaf_index {integer} NOT NULL, type {text} NOT NULL,
            PRIMARY KEY (log_id, request_id, leaf_index)){options}""",
        f"""CREATE TABLE payloads (
            log_id {integer} NOT NULL, request_id {text} NOT NULL, leaf_index {integer} NOT NULL, kind {text} NOT NULL,
            event_id {text} NOT NULL, sealed {blob} NOT NULL)""",
        "CREATE INDEX payloads_by_record ON payloads (log_id, request_id)",
        f"""CREATE TABLE holds (
            log_id {integer} NOT NULL, hold_id {text} NOT NULL, leaf_index {integer} NOT NULL, placed_at_us {integer} NOT NULL,
            restricted {integer} NOT NULL, sealed {blob} NOT NULL, PRIMARY KEY (log_id, hold_id)){options}""",
        f"""CREATE TABLE destructions (
            log_id {integer} NOT NULL, destruction_id {text} NOT NULL, plan {blob} NOT NULL,
            PRIMARY KEY (log_id, destruction_id)){options}""",
    )


_AT_ONCE: Final = 128
_COLUMNS: Final = "request_id, state, retention_class, case_id, restricted, log_book, recorded_at_us"


class RecordReader:
    """Questions."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    def records(self, log_id: int, request_ids: Collection[str]) -> dict[str, StoredRecord]:
        """Return those of the records that are there, by request id."""
        wanted = [request_id for request_id in request_ids if "\0" not in request_id]
        found: dict[str, StoredRecord] = {}
        for start in range(0, len(wanted), _AT_ONCE):
            some = wanted[start : start + _AT_ONCE]
            places = ", ".join("?" * len(some))
            found.update((record.request_id, record) for record in self._records(f"request_id IN ({places})", log_id, *some))
        return found

    def records_of_case(self, log_id: int, case_id: str, limit: int) -> list[StoredRecord]:
        """Return records of a case, newest first."""
        if not case_id or "\0" in case_id:
            return []
        rule = "case_id = ? AND case_id <> '' AND log_book = 0 ORDER BY recorded_at_us DESC, request_id DESC LIMIT ?"
        return self._records(rule, log_id, case_id, limit)

    def log_book(self, log_id: int, limit: int) -> list[StoredRecord]:
        """Return entries of the log book that are kept, newest first."""
        rule = "state = ? AND restricted = 0 AND log_book = 1 ORDER BY recorded_at_us DESC, request_id DESC LIMIT ?"
        return self._records(rule, log_id, KEPT, limit)

    def older_records(
        self, log_id: int, retention_class: str, *, restricted: bool, before_us: int, after: tuple[int, str], limit: int
    ) -> list[StoredRecord]:
        """Return kept records of a class from before a time, oldest first, that come after (recorded_at_us, request id)."""
        rule = """state = ? AND restricted = ? AND retention_class = ? AND recorded_at_us < ?
            AND (recorded_at_us, request_id) > (?, ?) ORDER BY recorded_at_us, request_id LIMIT ?"""
        return self._records(rule, log_id, KEPT, int(restricted), retention_class, before_us, *after, limit)

    def kept_records(self, log_id: int, after: str, limit: int) -> list[StoredRecord]:
        """Return kept records of every class, entries of the log book too, in the order of their ids, those after an id."""
        return self._records("request_id > ? AND state = ? ORDER BY request_id LIMIT ?", log_id, after, KEPT, limit)

    def retention_classes(self, log_id: int, *, restricted: bool) -> list[str]:
        """Return the classes that kept records have, each once; one costs a look into the index, however many records it has."""
        sql = """SELECT retention_class FROM records WHERE log_id = ? AND state = ? AND restricted = ? AND retention_class > ?
            ORDER BY retention_class LIMIT 1"""
        found: list[str] = []
        while rows := self._ask(sql, (log_id, KEPT, int(restricted), found[-1] if found else "")):
            found.extend(_typed(rows[0], str))
        return found

    def leaves_of(self, log_id: int, request_id: str) -> list[tuple[int, str]]:
        """Return index and type of the leaves of a record, in order."""
        sql = "SELECT leaf_index, type FROM record_leaves WHERE log_id = ? AND request_id = ? ORDER BY leaf_index"
        return [_typed(row, int, str) for row in self._ask(sql, (log_id, request_id))]

    def leaves_by_record(self, log_id: int, request_ids: Collection[str]) -> dict[str, dict[int, str]]:
        """Return types of the leaves of records, by request id and index."""
        found: dict[str, dict[int, str]] = {}
        for rows in self._of_some("SELECT request_id, leaf_index, type FROM record_leaves", log_id, request_ids):
            for request_id, index, kind in (_typed(row, str, int, str) for row in rows):
                found.setdefault(request_id, {})[index] = kind
        return found

    def payload_places(self, log_id: int, request_ids: Collection[str]) -> list[PayloadPlace]:
        """Say which payloads there are of records, without reading them."""
        sql = "SELECT request_id, leaf_index, kind, event_id, length(sealed) FROM payloads"
        all_rows = self._of_some(sql, log_id, request_ids)
        return [PayloadPlace(*_typed(row, str, int, str, str, int)) for rows in all_rows for row in rows]

    def payload_size(self, log_id: int, request_id: str) -> int:
        """Return the bytes of all ciphertexts of a record."""
        sql = "SELECT coalesce(sum(length(sealed)), 0) FROM payloads WHERE log_id = ? AND request_id = ?"
        return int(self._ask(sql, (log_id, request_id))[0][0])

    def payloads_of_no_leaf(self, log_id: int) -> int:
        """Count payloads whose leaf is not among those of their record."""
        sql = """SELECT count(*) FROM payloads AS p WHERE log_id = ? AND NOT EXISTS (SELECT 1 FROM record_leaves AS r
            WHERE r.log_id = p.log_id AND r.request_id = p.request_id AND r.leaf_index = p.leaf_index)"""
        return int(self._ask(sql, (log_id,))[0][0])

    def all_leaves_of_records(self, log_id: int) -> int:
        """Count what is noted of which leaf belongs to which record."""
        return int(self._ask("SELECT count(*) FROM record_leaves WHERE log_id = ?", (log_id,))[0][0])

    def states(self, log_id: int) -> dict[tuple[str, str], int]:
        """Count all records by state and by the destruction that they are listed for ("" for none)."""
        sql = "SELECT state, destruction_id, count(*) FROM records WHERE log_id = ? GROUP BY state, destruction_id"
        rows = (_typed(row, str, str, int) for row in self._ask(sql, (log_id,)))
        return {(state, destruction_id): count for state, destruction_id, count in rows}

    def payloads(self, log_id: int, request_id: str) -> list[SealedPayload]:
        """Return payloads of a record, in order of their leaves."""
        sql = """SELECT leaf_index, kind, event_id, sealed FROM payloads WHERE log_id = ? AND request_id = ?
            ORDER BY leaf_index, kind"""
        return [SealedPayload(*_typed(row, int, str, str, bytes)) for row in self._ask(sql, (log_id, request_id))]

    def payload(self, log_id: int, place: PayloadPlace) -> SealedPayload | None:
        """Return one payload, None when it is not there any more."""
        sql = """SELECT leaf_index, kind, event_id, sealed FROM payloads
            WHERE log_id = ? AND request_id = ? AND leaf_index = ? AND kind = ?"""
        rows = self._ask(sql, (log_id, place.request_id, place.leaf_index, place.kind))
        return SealedPayload(*_typed(rows[0], int, str, str, bytes)) if rows else None

    def holds(self, log_id: int) -> list[StoredHold]:
        """Return the holds in force, oldest first."""
        sql = "SELECT hold_id, leaf_index, placed_at_us, restricted, sealed FROM holds WHERE log_id = ? ORDER BY leaf_index"
        rows = (_typed(row, str, int, int, int, bytes) for row in self._ask(sql, (log_id,)))
        return [StoredHold(hold_id, index, at_us, bool(hidden), sealed) for hold_id, index, at_us, hidden, sealed in rows]

    def destructions(self, log_id: int) -> list[StoredDestruction]:
        """Return the destructions to finish, oldest first."""
        sql = "SELECT destruction_id, plan FROM destructions WHERE log_id = ? ORDER BY destruction_id"
        return [StoredDestruction(*_typed(row, str, bytes)) for row in self._ask(sql, (log_id,))]

    def listed_for(self, log_id: int, destruction_id: str, limit: int) -> list[str]:
        """Return request ids that a destruction has yet to destroy."""
        sql = "SELECT request_id FROM records WHERE log_id = ? AND state = ? AND destruction_id = ? ORDER BY request_id LIMIT ?"
        return [row[0] for row in self._ask(sql, (log_id, DESTROYING, destruction_id, limit))]

    def counts(self, log_id: int, *, with_restricted: bool) -> RecordCounts:
        """Count; without restricted ones as if there were none."""
        ceiling = int(with_restricted)
        states = """SELECT state, count(*) FROM records WHERE log_id = ? AND restricted <= ? AND log_book = 0
            GROUP BY state"""
        hidden = """SELECT count(*) FROM open_intents AS i JOIN records AS r ON r.log_id = i.log_id AND r.request_id = i.request_id
            WHERE i.log_id = ? AND r.restricted > ?"""
        size = """SELECT coalesce(sum(length(p.sealed)), 0) FROM payloads AS p JOIN records AS r
            ON r.log_id = p.log_id AND r.request_id = p.request_id WHERE p.log_id = ? AND r.restricted <= ?"""
        intents = int(self._ask("SELECT count(*) FROM open_intents WHERE log_id = ?", (log_id,))[0][0])
        return RecordCounts(
            {state: int(count) for state, count in self._ask(states, (log_id, ceiling))},
            intents - int(self._ask(hidden, (log_id, ceiling))[0][0]),
            int(self._ask(size, (log_id, ceiling))[0][0]),
            int(self._ask("SELECT count(*) FROM holds WHERE log_id = ? AND restricted <= ?", (log_id, ceiling))[0][0]),
        )

    def _of_some(self, sql: str, log_id: int, request_ids: Collection[str]) -> Iterator[Sequence[Sequence[Any]]]:
        wanted = [request_id for request_id in request_ids if "\0" not in request_id]
        for start in range(0, len(wanted), _AT_ONCE):
            some = wanted[start : start + _AT_ONCE]
            yield self._ask(f"{sql} WHERE log_id = ? AND request_id IN ({', '.join('?' * len(some))})", (log_id, *some))

    def _records(self, rule: str, *parameters: object) -> list[StoredRecord]:
        sql = f"SELECT {_COLUMNS} FROM records WHERE log_id = ? AND {rule}"  # noqa: S608  rules are written above
        return [_record(row) for row in self._ask(sql, parameters)]


class RecordWriter(RecordReader):
    """Steps of a transaction, beside its questions."""

    def __init__(self, ask: Ask, write: Write) -> None:
        super().__init__(ask)
        self._write = write

    def add_records(self, log_id: int, records: Sequence[StoredRecord]) -> None:
        """Add records that are not there."""
        self._write(
            "INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?, '')",
            [
                (
                    log_id,
                    record.request_id,
                    record.state,
                    record.retention_class,
                    record.case_id,
                    int(record.restricted),
                    int(record.log_book),
                    record.recorded_at_us,
                )
                for record in records
            ],
        )

    def add_leaves_of(self, log_id: int, leaves: Sequence[tuple[str, int, str]]) -> None:
        """Note (request id, leaf index, type)."""
        self._write("INSERT INTO record_leaves VALUES (?, ?, ?, ?)", [(log_id, *leaf) for leaf in leaves])

    def add_payloads(self, log_id: int, payloads: Sequence[tuple[str, SealedPayload]]) -> None:
        """Keep (request id, payload)."""
        rows = [(log_id, request_id, kept.leaf_index, kept.kind, kept.event_id, kept.sealed) for request_id, kept in payloads]
        self._write("INSERT INTO payloads VALUES (?, ?, ?, ?, ?, ?)", rows)

    def add_hold(self, log_id: int, hold: StoredHold) -> None:
        """Place a hold."""
        row = (log_id, hold.hold_id, hold.leaf_index, hold.placed_at_us, int(hold.restricted), hold.sealed)
        self._write("INSERT INTO holds VALUES (?, ?, ?, ?, ?, ?)", [row])

    def remove_hold(self, log_id: int, hold_id: str) -> None:
        """Release a hold."""
        self._write("DELETE FROM holds WHERE log_id = ? AND hold_id = ?", [(log_id, hold_id)])

    def begin_destruction(self, log_id: int, destruction: StoredDestruction, request_ids: Sequence[str]) -> None:
        """List records for destruction; from now on nothing is added to them."""
        self._write("INSERT INTO destructions VALUES (?, ?, ?)", [(log_id, destruction.destruction_id, destruction.plan)])
        self._write(
            "UPDATE records SET state = ?, destruction_id = ? WHERE log_id = ? AND request_id = ?",
            [(DESTROYING, destruction.destruction_id, log_id, request_id) for request_id in request_ids],
        )

    def destroy(self, log_id: int, request_ids: Sequence[str], state: str) -> None:
        """Remove payloads and retry salts of listed records and leave them in their last state."""
        named = [(log_id, request_id) for request_id in request_ids]
        self._write("DELETE FROM payloads WHERE log_id = ? AND request_id = ?", named)
        self._write(
            """DELETE FROM retry_salts WHERE (recorded_at_us, log_id, leaf_index) IN (
                SELECT l.recorded_at_us, l.log_id, l.leaf_index FROM record_leaves AS r
                JOIN leaves AS l ON l.log_id = r.log_id AND l.leaf_index = r.leaf_index
                WHERE r.log_id = ? AND r.request_id = ?)""",
            named,
        )
        self._write(
            "UPDATE records SET state = ?, destruction_id = '' WHERE log_id = ? AND request_id = ?",
            [(state, log_id, request_id) for request_id in request_ids],
        )

    def end_destruction(self, log_id: int, destruction_id: str) -> None:
        """Forget a destruction whose list is done."""
        self._write("DELETE FROM destructions WHERE log_id = ? AND destruction_id = ?", [(log_id, destruction_id)])


def _record(row: Sequence[Any]) -> StoredRecord:
    request_id, state, retention_class, case_id, restricted, log_book, recorded_at_us = _typed(
        row, str, str, str, str, int, int, int
    )
    return StoredRecord(request_id, state, retention_class, case_id, bool(restricted), bool(log_book), recorded_at_us)


def _typed(row: Sequence[Any], *types: type) -> tuple[Any, ...]:
    """Return a row whose values have these types. Raises StoreFailed for one that no writer of ours left."""
    if not all(map(isinstance, row, types)):
        raise StoreFailed("a row beside the leaves does not have the types of the schema: restore the store from its backup")
    return tuple(row)
