"""The vault's metrics say what happened to keys and records, and of whom is in none of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from audit_harness import Place
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from records_harness import Clock, RecordsPlace, Unreliable, who

from lionrock.audit import failures
from lionrock.audit.records.holds import RecordScope
from lionrock.audit.vault.telemetry import MeasuredKeyManagement, VaultMetrics

PREFIX = "lionrock.audit.vault."


class Measured:
    """A meter, and what it has measured."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader])
        self.meter = self.provider.get_meter("test")

    def points(self, name: str) -> dict[str, Any]:
        """Points of an instrument by the values of their attributes."""
        data = self.reader.get_metrics_data()
        if data is None:
            return {}
        metrics = [metric for each in data.resource_metrics[0].scope_metrics for metric in each.metrics]
        found: dict[str, Any] = {}
        for metric in metrics:
            if metric.name == PREFIX + name:
                for point in metric.data.data_points:
                    said = ",".join(str(value) for _, value in sorted((point.attributes or {}).items()))
                    found[said] = getattr(point, "value", None) if hasattr(point, "value") else point
        return found


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Iterator[Measured]:
    made = Measured()
    monkeypatch.setattr("lionrock.audit.vault.record_keys.meter", lambda: made.meter)
    yield made
    made.provider.shutdown()


async def test_what_becomes_of_keys_is_counted_by_its_cause(place: Place, measured: Measured) -> None:
    clock = Clock()
    async with RecordsPlace(place).open(clock=clock) as opened:
        for _ in range(3):
            await opened.say(subjects=("c-1",))
        for _ in range(2):
            await opened.say(purpose="chit_chat")
        await opened.keys.key_for("bank", "never-written", [])
        assert measured.points("keys_made") == {"": 6}
        await opened.records.erase(who("privacy_officer"), RecordScope("subject", "c-1"), basis="asked", allow_partial=False)
        clock.advance(31)
        run = await opened.upkeep.look_after_all()
        assert measured.points("keys_destroyed") == {"erasure": 3, "expiry": 2, "sweep": 1}
        assert (run.failing, run.kept, run.overdue, run.keys) == (0, 0, 0, 0)
        assert measured.points("key_store.size")[""] == opened.key_store.size_bytes()


async def test_the_backlog_tells_what_may_stay_from_what_may_not(place: Place, measured: Measured) -> None:
    at, clock = RecordsPlace(place), Clock()
    management = Unreliable(at.tenant_key_dir)
    async with at.open(clock=clock, management=management, cached_keys=0) as opened:
        assert measured.points("expiry.backlog") == measured.points("upkeep.completed") == {}
        held = await opened.say(purpose="chit_chat", subjects=("c-1",))
        await opened.records.place_hold(who("mlro"), RecordScope("request", held.request_id), "inquiry")
        for _ in range(4):
            await opened.say(purpose="chit_chat")
        clock.advance(31)
        management.down = frozenset({"bank"})  # without its key nobody knows which records are held
        await opened.upkeep.look_after_all()
        assert measured.points("upkeep.failing") == {"": 1}
        assert measured.points("expiry.backlog") == {"kept": 0, "overdue": 5}
        assert measured.points("upkeep.completed") == {}
        management.down = frozenset()
        await opened.upkeep.look_after_all()
        assert measured.points("upkeep.failing") == {"": 0}
        assert measured.points("expiry.backlog") == {"kept": 1, "overdue": 0}
        assert measured.points("upkeep.completed")[""] == pytest.approx(clock() / 1e6, abs=60)
        assert measured.points("keys") == {"": 2}  # of the record, and of the hold
        assert measured.points("upkeep.duration")[""].count == 2


async def test_a_defect_in_one_tenants_upkeep_is_told_and_ends_nobody_elses(
    place: Place, measured: Measured, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    async with RecordsPlace(place).open(clock=clock) as opened:
        await opened.say(purpose="chit_chat", tenant="broker")
        clock.advance(31)
        sweep = opened.upkeep.sweep_keys

        async def defective(tenant: str, run: Any = None) -> int:
            if tenant == "bank":
                raise ZeroDivisionError
            return await sweep(tenant, run)

        monkeypatch.setattr(opened.upkeep, "sweep_keys", defective)
        assert (await opened.upkeep.look_after_all()).failing == 1
        assert measured.points("keys_destroyed") == {"expiry": 1}
        assert [vars(each)["tenant"] for each in caplog.records if each.message == "looking after records failed"] == ["bank"]


async def test_calls_of_key_management_are_timed_by_operation_and_outcome(tmp_path: Path, measured: Measured) -> None:
    unreliable = Unreliable(tmp_path / "kek")
    management = MeasuredKeyManagement(unreliable, VaultMetrics(measured.meter))
    await management.prepare("bank")
    wrapped = await management.wrap("bank", bytes(32), b"aad")
    assert await management.unwrap("bank", wrapped, b"aad") == bytes(32)
    unreliable.down = frozenset({"bank"})
    for _ in range(2):
        with pytest.raises(failures.KeysUnavailable):
            await management.unwrap("bank", wrapped, b"aad")
    counts = {said: point.count for said, point in measured.points("key_management.duration").items()}
    assert counts == {"prepare,ok": 1, "wrap,ok": 1, "unwrap,ok": 1, "unwrap,failed": 2}
    await management.close()


async def test_a_key_store_that_fails_is_counted(place: Place, measured: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    async with RecordsPlace(place).open() as opened:
        said = await opened.say()

        def fail(*arguments: Any) -> None:
            del arguments
            raise failures.KeysUnavailable("the key store: reading: SQLITE_IOERR")

        with monkeypatch.context() as broken:
            broken.setattr(opened.key_store, "members", fail)
            with pytest.raises(failures.KeysUnavailable):
                await opened.records.search(who("auditor"), RecordScope("subject", "c-1"), 1)
        assert measured.points("key_store.failures") == {"": 1}
        assert (await opened.records.read(who("auditor"), said.request_id)).payloads


async def test_nothing_of_a_record_and_no_tenant_is_in_any_metric(place: Place, measured: Measured) -> None:
    clock = Clock()
    async with RecordsPlace(place).open(clock=clock) as opened:
        said = await opened.say(b"a canary", subjects=("canary-1",), case_id="CANARY-2", purpose="chit_chat")
        await opened.records.erase(who("privacy_officer"), RecordScope("case", "CANARY-2"), basis="asked", allow_partial=False)
        await opened.say(b"a canary", purpose="chit_chat")
        clock.advance(31)
        await opened.upkeep.look_after_all()
        data = measured.reader.get_metrics_data()
        assert data is not None
        points = [
            point for each in data.resource_metrics[0].scope_metrics for metric in each.metrics for point in metric.data.data_points
        ]
        values = {str(value) for point in points for value in (point.attributes or {}).values()}
        assert values == {"erasure", "expiry", "kept", "overdue"}
        told = data.to_json().lower()
        assert not [word for word in ("canary", "bank", "chit_chat", said.request_id) if word in told]
