"""Sequencer and store against a literal log in memory: any order of appends, repeats, batches, restarts, failures and usurpers.

The model is a list of leaves a tenant, RFC 6962 word for word over it (rfc6962_reference.py), and a set of open intents. After
every step the product's checkpoint must be that of the list. Failures are injected at each durable step: the store's own
operations before the commit, a commit that fails, a commit that succeeds without saying so, the second place before and after its
write. Whatever is unanswered then is sent again after a restart, and must be in the log once.
"""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import psycopg
import pytest
from audit_harness import PLATFORM, TENANTS, Place, intent, outcome
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from rfc6962_reference import audit_path, consistency, tree_hash

from lionrock.audit.failures import AuditError, EventAlreadyRecorded, IntentClosed, IntentNotFound, StoreFailed, StoreHeld
from lionrock.audit.leaf import Event, Intent
from lionrock.audit.log import AuditLogs
from lionrock.audit.sequencer import Appended
from lionrock.audit.signed_checkpoints import SignedCheckpoints
from lionrock.audit.store import LogStore, Transaction
from lionrock.audit.store.postgres import PostgresLogStore
from lionrock.audit.store.sqlite import SqliteLogStore
from lionrock.audit.verify import verify_receipt
from lionrock.tlog.checkpoint import Checkpoint
from lionrock.tlog.keys import VerifierKey
from lionrock.tlog.note import open_note
from postgres_server import PostgresServer

STEPS = (
    "leaves_of_events",
    "add_leaves",
    "add_open_intents",
    "close_intents",
    "keep_retry_salts",
    "advance",
    "commit fails",
    "commit succeeds in silence",
    "second place fails",
    "second place succeeds in silence",
)
DURABLE_ALL_THE_SAME = {"commit succeeds in silence", "second place fails", "second place succeeds in silence"}


class _FailingTransaction:
    """A transaction whose step `fails` raises."""

    def __init__(self, transaction: Transaction, fails: str) -> None:
        self._transaction = transaction
        self._fails = fails

    def __getattr__(self, name: str) -> Any:
        if name == self._fails:
            raise StoreFailed(f"injected: {name}")
        return getattr(self._transaction, name)


class FailingStore:
    """A store that fails once, at the step that `fails` names."""

    def __init__(self, store: LogStore) -> None:
        self._store = store
        self.fails = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        fails = self.fails
        with self._store.transaction() as transaction:
            yield _FailingTransaction(transaction, fails)
            if fails == "commit fails":
                raise StoreFailed("injected: commit")
        if fails == "commit succeeds in silence":
            raise StoreFailed("injected: commit")


@dataclass(slots=True)
class ModelLog:
    """One tenant's log, literally."""

    leaves: list[bytes] = field(default_factory=list)
    told: dict[str, int] = field(default_factory=dict)
    """Index by event id."""
    events: dict[str, Event] = field(default_factory=dict)
    open: dict[int, Event] = field(default_factory=dict)
    """Intents without an outcome, by index."""


class Sequencing(RuleBasedStateMachine):
    """One place with two tenants."""

    open_store: Callable[[Path], LogStore]
    usurp: Callable[[Path], None]

    def __init__(self) -> None:
        super().__init__()
        self._directory = TemporaryDirectory(prefix="sequencing-")
        self.place = Place(Path(self._directory.name))
        self.runner = asyncio.Runner()
        self.model = {tenant: ModelLog() for tenant in TENANTS}
        self.stack = AsyncExitStack()
        self.failing: FailingStore
        self.logs: AuditLogs
        self.signed_fails = ""

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    @initialize()
    def start(self) -> None:
        self.failing, self.logs = self.run(self._open(self.stack))

    async def _open(self, stack: AsyncExitStack) -> tuple[FailingStore, AuditLogs]:
        failing = FailingStore(type(self).open_store(self.place.root))
        logs = await stack.enter_async_context(self.place.open(failing))  # type: ignore[arg-type]
        return failing, logs

    def teardown(self) -> None:
        self.run(self.stack.aclose())
        self.runner.close()
        self._directory.cleanup()

    # ---- what is done ----------------------------------------------------------------------------------------------------

    @rule(tenant=st.sampled_from(TENANTS), payload=st.booleans())
    def append_an_intent(self, tenant: str, payload: bool) -> None:
        self.append(intent(tenant, prompt=b"prompt" if payload else b""))

    @precondition(lambda self: any(log.open for log in self.model.values()))
    @rule(data=st.data(), by_index=st.booleans())
    def append_an_outcome(self, data: st.DataObject, by_index: bool) -> None:
        tenant = data.draw(st.sampled_from([tenant for tenant, log in self.model.items() if log.open]))
        index = data.draw(st.sampled_from(sorted(self.model[tenant].open)))
        self.append(outcome(self.model[tenant].open[index], index if by_index else None, answer=b"answer"))

    @rule(tenant=st.sampled_from(TENANTS))
    def refuse_an_outcome_of_no_intent(self, tenant: str) -> None:
        with pytest.raises((IntentNotFound, IntentClosed)):
            self.run(self.logs.append(outcome(intent(tenant), len(self.model[tenant].leaves) + 3), want_receipt=False))

    @precondition(lambda self: any(log.events for log in self.model.values()))
    @rule(data=st.data(), other_content=st.booleans())
    def repeat_an_event(self, data: st.DataObject, other_content: bool) -> None:
        tenant = data.draw(st.sampled_from([tenant for tenant, log in self.model.items() if log.events]))
        event = self.model[tenant].events[data.draw(st.sampled_from(sorted(self.model[tenant].events)))]
        if not other_content:
            self.append(event)
            return
        forged = intent(tenant, prompt=b"another prompt", event_id=event.event_id)
        with pytest.raises(EventAlreadyRecorded):
            self.run(self.logs.append(forged, want_receipt=False))

    @rule(data=st.data(), size=st.integers(2, 6))
    def append_a_crowd_at_once(self, data: st.DataObject, size: int) -> None:
        self.append(*self._crowd(data, size))

    def _crowd(self, data: st.DataObject, size: int) -> list[Event]:
        """Intents of both tenants, outcomes of intents that are open, repeats, and one event twice."""
        events = [intent(data.draw(st.sampled_from(TENANTS)), prompt=b"prompt") for _ in range(size)]
        for log in self.model.values():
            for index, waiting in sorted(log.open.items())[: data.draw(st.integers(0, 2))]:
                events.append(outcome(waiting, index))
        known = [event for log in self.model.values() for event in log.events.values()]
        if known and data.draw(st.booleans()):
            events.append(data.draw(st.sampled_from(known)))
        return [*events, events[0]]

    @rule()
    def restart(self) -> None:
        self.run(self.stack.aclose())
        self.stack = AsyncExitStack()
        self.start()

    @rule(data=st.data(), step=st.sampled_from(STEPS), size=st.integers(1, 4))
    def fail_at_a_step(self, data: st.DataObject, step: str, size: int) -> None:
        """Nobody is answered, nothing is written until a restart; then every call can be repeated."""
        events = self._crowd(data, size)
        heads = {tenant: self.logs.checkpoint(tenant) for tenant in TENANTS}
        with self._failure(step):
            answers = self.run(self._gather(events))
        steps_not_reached = {"close_intents", "keep_retry_salts", "add_open_intents"}
        failed = [answer for answer in answers if isinstance(answer, StoreFailed)]
        assert failed or step in steps_not_reached
        if failed:
            assert len(failed) == len(events)
            assert {tenant: self.logs.checkpoint(tenant) for tenant in TENANTS} == heads
            with pytest.raises(StoreFailed):
                self.run(self.logs.append(intent("bank"), want_receipt=False))
        self.restart()
        before = {tenant: len(log.leaves) for tenant, log in self.model.items()}
        now = {tenant: self.logs.size(tenant) for tenant in TENANTS}
        if failed:
            assert (now != before) == (step in DURABLE_ALL_THE_SAME) or all(self._known(event) for event in events)
        self.append(*events)

    @contextmanager
    def _failure(self, step: str) -> Iterator[None]:
        self.failing.fails = step
        record = SignedCheckpoints.record

        def failing(signed: SignedCheckpoints, checkpoints: Any) -> None:
            if step == "second place succeeds in silence":
                record(signed, checkpoints)
            raise StoreFailed("injected: second place")

        if step.startswith("second place"):
            SignedCheckpoints.record = failing  # type: ignore[method-assign]
        try:
            yield
        finally:
            SignedCheckpoints.record = record  # type: ignore[method-assign]
            self.failing.fails = ""

    @rule()
    def a_second_sequencer_takes_the_store(self) -> None:
        """Whoever loses the store signs nothing more, even when two believe that it is theirs."""
        with pytest.raises(StoreHeld):
            type(self).open_store(self.place.root)
        type(self).usurp(self.place.root)
        loser, self.stack = (self.stack, self.logs), AsyncExitStack()
        self.start()
        self.append(intent("bank"), intent("broker"))
        for tenant in TENANTS:
            held = loser[1].checkpoint(tenant)
            with pytest.raises(StoreFailed):
                self.run(loser[1].append(intent(tenant), want_receipt=True))
            assert loser[1].checkpoint(tenant) == held
        self.check_heads()
        self.run(loser[0].aclose())

    # ---- what must hold --------------------------------------------------------------------------------------------------

    def _known(self, event: Event) -> bool:
        return event.event_id in self.model[event.context.tenant].told

    async def _gather(self, events: list[Event]) -> list[Appended | BaseException]:
        return await asyncio.gather(*(self.logs.append(event, want_receipt=True) for event in events), return_exceptions=True)

    def append(self, *events: Event) -> None:
        """Append at once; the model then holds what the log says it recorded, each event once."""
        answers = self.run(self._gather(list(events)))
        for tenant, log in self.model.items():
            log.leaves += self.run(self._leaves(tenant, len(log.leaves)))
        for event, answer in zip(events, answers, strict=True):
            log = self.model[event.context.tenant]
            if isinstance(answer, AuditError):
                # Two outcomes for one intent in one crowd: the second one came too late.
                assert isinstance(answer, IntentClosed), answer
                continue
            assert isinstance(answer, Appended), answer
            assert log.told.setdefault(event.event_id, answer.leaf_index) == answer.leaf_index
            assert answer.proof is not None
            verified = verify_receipt(answer.proof, self.run(self._keys(event.context.tenant)))
            assert (verified.data, verified.leaf_index) == (log.leaves[answer.leaf_index], answer.leaf_index)
            assert verified.fields["event_id"] == event.event_id
            if event.event_id not in log.events:
                log.events[event.event_id] = event
                if isinstance(event.body, Intent):
                    log.open[answer.leaf_index] = event
        for tenant, log in self.model.items():
            assert len(log.told) == len(log.leaves), f"every leaf of {tenant} is somebody's, and nobody's twice"
        for event, answer in zip(events, answers, strict=True):
            if isinstance(answer, Appended) and not isinstance(event.body, Intent):
                log = self.model[event.context.tenant]
                named = getattr(event.body, "intent_index", None)
                for index, waiting in list(log.open.items()):
                    before = index < answer.leaf_index
                    if before and (index == named or (named is None and waiting.context.request_id == event.context.request_id)):
                        del log.open[index]

    async def _keys(self, tenant: str) -> list[str]:
        return list(self.logs.verifier_keys(tenant))

    async def _leaves(self, tenant: str, start: int) -> list[bytes]:
        return [leaf.data async for page in self.logs.leaves(tenant, start, 10**6) for leaf in page]

    @invariant()
    def check_heads(self) -> None:
        for tenant, log in self.model.items():
            origin = f"{PLATFORM}/audit/{tenant}"
            key = VerifierKey.parse(self.run(self._keys(tenant))[0])
            head = Checkpoint.parse(open_note(self.logs.checkpoint(tenant), [key]).text)
            assert (head.origin, head.size, head.root) == (origin, len(log.leaves), tree_hash(log.leaves))
            waiting = self.run(self.logs.open_intents(tenant, 10**6, 10**6))
            assert [found.index for found, _ in waiting] == sorted(log.open)

    @precondition(lambda self: any(log.leaves for log in self.model.values()))
    @rule(data=st.data())
    def prove_as_rfc_6962_does(self, data: st.DataObject) -> None:
        tenant = data.draw(st.sampled_from([tenant for tenant, log in self.model.items() if log.leaves]))
        leaves = self.model[tenant].leaves
        index, first = data.draw(st.integers(0, len(leaves) - 1)), data.draw(st.integers(1, len(leaves)))
        receipt = self.run(self.logs.receipt(tenant, index))
        assert receipt.proof is not None
        path = receipt.proof.partition("\n\n")[0].split("\n")[3:]
        assert [base64.b64decode(line) for line in path] == audit_path(index, leaves)
        hashes, _ = self.run(self.logs.consistency_proof(tenant, first, 0))
        assert list(hashes) == consistency(first, leaves)


QUICK = settings(max_examples=12, stateful_step_count=14, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)


@pytest.mark.slow
def test_any_order_of_steps_and_failures_gives_the_literal_log_on_sqlite() -> None:
    class OnSqlite(Sequencing):
        @staticmethod
        def open_store(root: Path) -> LogStore:
            return SqliteLogStore(root / "store" / "audit.db")

        @staticmethod
        def usurp(root: Path) -> None:
            os.unlink(root / "store" / "audit.db.lock")  # as a careless operator might

    run_state_machine_as_test(OnSqlite, settings=QUICK)


@pytest.mark.slow
def test_any_order_of_steps_and_failures_gives_the_literal_log_on_postgres(postgres: PostgresServer) -> None:
    class OnPostgres(Sequencing):
        databases: ClassVar[dict[Path, str]] = {}

        @classmethod
        def open_store(cls, root: Path) -> LogStore:
            if root not in cls.databases:
                cls.databases[root] = postgres.new_database()
            return PostgresLogStore(cls.databases[root])

        @classmethod
        def usurp(cls, root: Path) -> None:
            """Let the writer lose its session, and the lock with it, without a word."""
            with psycopg.connect(cls.databases[root], autocommit=True) as connection:
                connection.execute(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_locks WHERE locktype = 'advisory' AND granted"
                    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
                )

    run_state_machine_as_test(OnPostgres, settings=settings(QUICK, max_examples=6))
