"""A short day replayed: everything agrees with the model, and what does not is found out."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import audit_day
from benchmarks.audit_day import Size, replay, table

from lionrock.audit.records.retention import Retention, RetentionClass
from lionrock.audit.store.postgres import PostgresLogStore
from lionrock.audit.store.sqlite import SqliteLogStore

SIZE = Size(tenants=3, requests=120, doings=140, exports=3, tick_s=3600, round_s=7200)


async def test_after_a_day_everything_agrees_and_the_monitor_was_quiet(tmp_path: Path) -> None:
    day, counts = await replay(SIZE, tmp_path, lambda: SqliteLogStore(tmp_path / audit_day.STORE_FILE), seed=1)
    assert day.told.disagreements == []
    assert counts["alarms"] == 0
    assert counts["looks"] > SIZE.tenants * 10
    assert counts["checked leaves"] == counts["leaves"] + counts["platform leaves"]
    done = sum((model.leaves for model in day.models.values()), Counter[str]())
    for kind in ("access", "correction", "erasure", "export", "hold", "hold_release", "key_change", "refusal"):
        assert done[kind] > 0, f"the day has no {kind}"
    states = Counter(record.state for model in day.models.values() for record in model.records.values())
    assert min(states[state] for state in ("kept", "erased", "expired")) > 0
    assert day.told.recovered > 0
    assert len(day.told.verified) == SIZE.exports
    cases = {entry.case: entry.value for entry in table(day, counts)}
    assert cases["disagreements"] == 0


async def test_a_day_in_postgresql_agrees_too(tmp_path: Path, database: str) -> None:
    size = Size(tenants=2, requests=40, doings=40, exports=1, tick_s=3600, round_s=14400)
    day, counts = await replay(size, tmp_path, lambda: PostgresLogStore(database), seed=2)
    assert day.told.disagreements == []
    assert counts["checked leaves"] == counts["leaves"] + counts["platform leaves"]


async def test_a_service_that_erases_too_early_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classes = audit_day.RETENTION.classes
    forgetful = Retention({**classes, "regulated": RetentionClass(0, None)}, audit_day.RETENTION.by_purpose, "standard")
    monkeypatch.setattr(audit_day, "RETENTION", forgetful)
    size = Size(tenants=2, requests=60, doings=80, exports=0, tick_s=3600, round_s=14400)
    day, _ = await replay(size, tmp_path, lambda: SqliteLogStore(tmp_path / audit_day.STORE_FILE), seed=3)
    assert any("erasure" in disagreement for disagreement in day.told.disagreements)


async def test_an_alarm_of_the_monitor_is_a_disagreement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published checkpoint of one log is put back to an earlier one at noon."""
    size = Size(tenants=2, requests=40, doings=0, exports=0, tick_s=3600, round_s=14400)
    afternoon = audit_day.Day.afternoon

    async def rolled_back(day: audit_day.Day, service: audit_day.Service) -> None:
        checkpoint = tmp_path / "tiles" / audit_day.ORIGIN / "tenant-01" / "checkpoint"
        before = checkpoint.read_bytes()
        await afternoon(day, service)
        checkpoint.write_bytes(before)

    monkeypatch.setattr(audit_day.Day, "afternoon", rolled_back)
    day, counts = await replay(size, tmp_path, lambda: SqliteLogStore(tmp_path / audit_day.STORE_FILE), seed=4)
    assert counts["alarms"] > 0
    assert any("alarm" in disagreement for disagreement in day.told.disagreements)
