"""What a store keeps beside leaves and heads, table by table, so that it can be copied to another store as it is (moving.py).

Knows: names, columns and keys, in the SQL that SQLite and PostgreSQL share ("?" stands for a parameter). Does not know: what rows
mean. A test compares the list with the tables of both schemas.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from lionrock.audit.store.records import Ask, Write


@dataclass(frozen=True, slots=True)
class Table:
    """A table of which every row belongs to one log. `key`: the first columns, which tell the rows of one log apart."""

    name: str
    key: tuple[str, ...]
    rest: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns but log_id."""
        return self.key + self.rest


RETIRED_KEYS: Final = Table("retired_keys", ("leaf_index",), ("verifier_key", "checkpoint"))
"""Keys that signed until a log took another: the leaf that says so, and the first checkpoint over it, which both keys signed."""
TABLES: Final[Sequence[Table]] = (
    Table("open_intents", ("request_id", "leaf_index")),
    Table("retry_salts", ("recorded_at_us", "leaf_index"), ("salt",)),
    Table(
        "records",
        ("request_id",),
        ("state", "retention_class", "case_id", "restricted", "log_book", "recorded_at_us", "destruction_id"),
    ),
    Table("record_leaves", ("request_id", "leaf_index"), ("type",)),
    Table("payloads", ("request_id", "leaf_index", "kind"), ("event_id", "sealed")),
    Table("holds", ("hold_id",), ("leaf_index", "placed_at_us", "restricted", "sealed")),
    Table("destructions", ("destruction_id",), ("plan",)),
    RETIRED_KEYS,
    Table("departures", ("stage",), ("plan",)),
)


class TableReader:
    """Rows in the order of their keys."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    def page(self, table: Table, log_id: int, after: Sequence[Any] | None, limit: int) -> list[tuple[Any, ...]]:
        """Return rows (without log_id) whose keys come after `after`; from the first one on for None."""
        key, columns = ", ".join(table.key), ", ".join(table.columns)
        beyond = "" if after is None else f" AND ({key}) > ({', '.join('?' * len(table.key))})"
        sql = f"SELECT {columns} FROM {table.name} WHERE log_id = ?{beyond} ORDER BY {key} LIMIT ?"  # noqa: S608  names are written above
        return [tuple(row) for row in self._ask(sql, (log_id, *(after or ()), limit))]

    def last_key(self, table: Table, log_id: int) -> tuple[Any, ...] | None:
        """Return the highest key, None where there is no row."""
        key, falling = ", ".join(table.key), ", ".join(f"{column} DESC" for column in table.key)
        sql = f"SELECT {key} FROM {table.name} WHERE log_id = ? ORDER BY {falling} LIMIT 1"  # noqa: S608  names are written above
        rows = self._ask(sql, (log_id,))
        return tuple(rows[0]) if rows else None


class TableWriter:
    """Rows as they are."""

    def __init__(self, write: Write) -> None:
        self._write = write

    def add(self, table: Table, log_id: int, rows: Sequence[Sequence[Any]]) -> None:
        """Add rows as `TableReader.page` returned them."""
        places = ", ".join("?" * (1 + len(table.columns)))
        columns = ", ".join(("log_id", *table.columns))
        sql = f"INSERT INTO {table.name} ({columns}) VALUES ({places})"  # noqa: S608  names are written above
        self._write(sql, [(log_id, *row) for row in rows])
