"""The state that all gateways of a mesh share: transactions over a few small tables, run beside the event loop.

Knows: that work is done whole or not at all, in an order as if one gateway worked at a time; deadlines; how much may wait. Does not
know: what rows mean, nor which database it is (sqlite.py, postgres.py). One test suite runs over both kinds
(tests/gateway/test_state.py).

Duties
- A transaction is serialisable, and durable when `write` returns. Work may be run more than once before it is committed, so it has
  no effect beside its statements.
- Times come from the store (`StateTransaction.now_us`), so that gateways whose clocks differ agree on them.
- Statements are written in the SQL that SQLite and PostgreSQL share, "?" stands for a parameter, and values are str, int, bytes and
  None. Tables are those of schema.py.
- Whatever fails raises StateUnavailable and is never taken for success. After it nobody knows whether the work was committed:
  callers choose their statements so that doing it again, or not, is safe.

This is for what is beside the way of a request: a call costs a round trip and a commit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Protocol, TypeVar

Value = str | int | bytes | None
Row = tuple[Any, ...]
Result = TypeVar("Result")

MAX_WAITING: Final = 256
"""Calls that wait for the session; a call beyond them is refused at once."""


class StateUnavailable(Exception):
    """The store did not do it, or did not say that it did. The message carries no values."""


class StateConflict(Exception):
    """A row with this key is there already; nothing of the transaction was kept."""


class StateTransaction(Protocol):
    """One atomic step."""

    @property
    def now_us(self) -> int:
        """Time of the store in microseconds since 1970, the same at every look within the transaction."""

    def ask(self, sql: str, parameters: Sequence[Value] = ()) -> list[Row]:
        """Run one statement and return its rows; RETURNING is one way to have some."""

    def write(self, sql: str, parameters: Sequence[Value] = ()) -> int:
        """Run one statement and return how many rows it touched. Raises StateConflict."""


class StateSession(Protocol):
    """A database on which one thread works. Sessions of several processes may have the same database open."""

    def run(self, work: Callable[[StateTransaction], Result], *, read_only: bool) -> Result:
        """Run work in a transaction of its own and commit. Raises StateUnavailable, StateConflict, and what work raises."""

    def cut_off(self) -> None:
        """Make a `run` that another thread waits for fail soon."""

    def close(self) -> None:
        """Let go of the database."""


class StateStore:
    """The shared state, for one event loop. Transactions of one gateway are run one after another."""

    def __init__(self, session: StateSession, deadline_s: float) -> None:
        """Own the session. `deadline_s`: of every call, its waiting included."""
        self._session = session
        self._deadline_s = deadline_s
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="gateway-state")
        self._waiting = 0
        self._closed = False

    async def write(self, work: Callable[[StateTransaction], Result]) -> Result:
        """Run work and commit it durably. Raises StateUnavailable, StateConflict, and what work raises: then nothing is kept."""
        return await self._run(work, read_only=False)

    async def read(self, work: Callable[[StateTransaction], Result]) -> Result:
        """Run work that writes nothing, on one committed state. Raises StateUnavailable, and what work raises."""
        return await self._run(work, read_only=True)

    async def close(self) -> None:
        """End when what runs has ended. Further calls raise StateUnavailable."""
        if not self._closed:
            self._closed = True
            await asyncio.get_running_loop().run_in_executor(self._thread, self._session.close)
            self._thread.shutdown(wait=False)

    async def _run(self, work: Callable[[StateTransaction], Result], *, read_only: bool) -> Result:
        if self._closed:
            raise StateUnavailable("the store is closed")
        if self._waiting >= MAX_WAITING:
            raise StateUnavailable(f"{MAX_WAITING} calls wait for the store")
        self._waiting += 1
        submitted = self._thread.submit(lambda: self._session.run(work, read_only=read_only))
        future = asyncio.wrap_future(submitted)
        future.add_done_callback(self._ended)
        done, _ = await asyncio.wait({future}, timeout=self._deadline_s)
        if not done:
            if not submitted.cancel():  # it has begun: a caller who still waits behind it should not lose its own time
                self._session.cut_off()
            raise StateUnavailable(f"the store did not answer within {self._deadline_s:g} s")
        return future.result()

    def _ended(self, future: asyncio.Future[Any]) -> None:
        self._waiting -= 1
        if not future.cancelled():
            future.exception()  # seen, also where its caller went away
