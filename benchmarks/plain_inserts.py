"""What the audit log is compared with: the same bytes, group-committed into one plain table of the same database.

The same shape as the log, and nothing of a log: writers hand a blob to one thread, the thread commits what waits in one durable
transaction and wakes the writers. No ids, no hashes, no signature, no proof.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg

Insert = Callable[[Sequence[bytes]], None]
"""Commits blobs durably in one transaction; returns a function of its own to close what it opened."""


class GroupCommits:
    """Writers' end of a plain table."""

    def __init__(self, open_table: Callable[[], tuple[Insert, Callable[[], None]]], *, max_batch: int = 1024) -> None:
        self._open_table = open_table
        self._max_batch = max_batch
        self._pending: queue.SimpleQueue[tuple[bytes, asyncio.Future[None]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="plain-inserts")

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pending.put(None)
        await asyncio.to_thread(self._thread.join)

    async def insert(self, blob: bytes) -> None:
        """Return once the blob is durable."""
        done: asyncio.Future[None] = self._loop.create_future()
        self._pending.put((blob, done))
        await done

    def _run(self) -> None:
        insert, close = self._open_table()
        while (first := self._pending.get()) is not None:
            batch = [first]
            while len(batch) < self._max_batch and not self._pending.empty():
                following = self._pending.get()
                if following is None:
                    self._pending.put(None)
                    break
                batch.append(following)
            insert([blob for blob, _ in batch])
            self._loop.call_soon_threadsafe(_wake, [done for _, done in batch])
        close()


def _wake(waiting: Sequence[asyncio.Future[None]]) -> None:
    for done in waiting:
        if not done.done():
            done.set_result(None)


def plain_sqlite(path: Path) -> tuple[Insert, Callable[[], None]]:
    """Open one table with an integer key, under the durability settings of the log's store."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "wal_autocheckpoint=4000"):
        connection.execute(f"PRAGMA {pragma}")
    connection.execute("CREATE TABLE IF NOT EXISTS plain (id INTEGER PRIMARY KEY, data BLOB NOT NULL) STRICT")

    def insert(blobs: Sequence[bytes]) -> None:
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("INSERT INTO plain (data) VALUES (?)", [(blob,) for blob in blobs])
        connection.execute("COMMIT")

    return insert, connection.close


def plain_postgres(dsn: str) -> tuple[Insert, Callable[[], None]]:
    """Open one table with an integer key; a batch is one statement with an array, in one pipeline with its commit."""
    connection = psycopg.connect(dsn, autocommit=True, prepare_threshold=0)
    connection.execute("CREATE TABLE IF NOT EXISTS plain (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, data bytea NOT NULL)")
    connection.execute("ALTER TABLE plain ALTER data SET STORAGE EXTERNAL")

    def insert(blobs: Sequence[bytes]) -> None:
        connection.execute("INSERT INTO plain (data) SELECT * FROM unnest(%b::bytea[])", (list(blobs),))

    return insert, connection.close
