"""The vault's metrics: what whoever runs it would act on.

Attributes are bounded and written here: operations, outcomes, causes, states. Neither tenants nor anything of a record: which
tenant it is says the service's log, and no metric says whose data is held, kept or erased.

Knows: names, and figures that are read when metrics are. Does not know: how anything is done. docs/audit.md lists what to do about
each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from lionrock.audit.failures import KeysUnavailable
from lionrock.audit.vault.key_management import KeyManagement

Cause = Literal["erasure", "expiry", "sweep"]
_CALL_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_RUN_SECONDS: Final = (0.1, 1.0, 10.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 7200.0, 14400.0)

_Values = Iterable[tuple[float, dict[str, str]]]


@dataclass(slots=True)
class UpkeepRun:
    """What one run over all tenants found. `kept`: due, and rightly still there; `overdue`: due, and there for want of success."""

    keys: int = 0
    kept: int = 0
    overdue: int = 0
    failing: int = 0


class VaultMetrics:
    """One instance a key store."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._last: UpkeepRun | None = None
        self._completed_s: float | None = None
        self._made = meter.create_counter(
            "lionrock.audit.vault.keys_made", unit="{key}", description="Keys made: one for each record that is encrypted, or hold."
        )
        self._destroyed = meter.create_counter(
            "lionrock.audit.vault.keys_destroyed", unit="{key}", description="Keys destroyed, by cause: erasure, expiry, sweep."
        )
        self._store_failures = meter.create_counter(
            "lionrock.audit.vault.key_store.failures", description="Calls of the key store that failed."
        )
        self._calls = meter.create_histogram(
            "lionrock.audit.vault.key_management.duration",
            unit="s",
            description="Calls of the tenants' key management, by operation and outcome.",
            explicit_bucket_boundaries_advisory=_CALL_SECONDS,
        )
        self._runs = meter.create_histogram(
            "lionrock.audit.vault.upkeep.duration",
            unit="s",
            description="Runs of expiry and of the sweep over all tenants.",
            explicit_bucket_boundaries_advisory=_RUN_SECONDS,
        )
        # Read when metrics are: the first run ends before there is a collector.
        meter.create_observable_gauge(
            "lionrock.audit.vault.upkeep.completed",
            [_callback(self._completed)],
            unit="s",
            description="When the last run ended in which no tenant failed, as Unix time.",
        )
        meter.create_observable_gauge(
            "lionrock.audit.vault.upkeep.failing",
            [_callback(lambda: self._of_last("failing"))],
            unit="{tenant}",
            description="Tenants whose expiry, sweep or unfinished erasure failed in the last run.",
        )
        meter.create_observable_gauge(
            "lionrock.audit.vault.expiry.backlog",
            [_callback(self._backlog)],
            unit="{record}",
            description="Records due for expiry that the last run left, by state: kept (held, or not ended), overdue.",
        )
        meter.create_observable_gauge(
            "lionrock.audit.vault.keys",
            [_callback(lambda: self._of_last("keys"))],
            unit="{key}",
            description="Keys older than an hour that the last run found in use.",
        )

    def measure_key_store(self, size_bytes: Callable[[], int | None]) -> None:
        """Read the size of the key store, with its write-ahead log, whenever metrics are read."""

        def values() -> _Values:
            size = size_bytes()
            return [] if size is None else [(size, {})]

        self._meter.create_observable_gauge(
            "lionrock.audit.vault.key_store.size", [_callback(values)], unit="By", description="Size of the key store on its disk."
        )

    def made(self) -> None:
        """Count a key that was made and kept."""
        self._made.add(1)

    def destroyed(self, keys: int, cause: Cause) -> None:
        """Count keys that were destroyed."""
        self._destroyed.add(keys, {"lionrock.cause": cause})

    def key_store_failed(self) -> None:
        """Count a call of the key store that failed."""
        self._store_failures.add(1)

    @contextmanager
    def calling(self, operation: Literal["prepare", "wrap", "unwrap", "destroy"]) -> Iterator[None]:
        """Time a call of the key management."""
        began_s, outcome = time.perf_counter(), "ok"
        try:
            yield
        except KeysUnavailable:
            outcome = "failed"
            raise
        finally:
            attributes = {"lionrock.operation": operation, "lionrock.outcome": outcome}
            self._calls.record(time.perf_counter() - began_s, attributes)

    def upkept(self, run: UpkeepRun, *, seconds: float, ended_s: float) -> None:
        """Take the figures of a run that ended at a Unix time."""
        self._runs.record(seconds)
        self._last = run
        if run.failing == 0:
            self._completed_s = ended_s

    def _completed(self) -> _Values:
        return [] if self._completed_s is None else [(self._completed_s, {})]

    def _of_last(self, figure: Literal["failing", "keys"]) -> _Values:
        return [] if self._last is None else [(getattr(self._last, figure), {})]

    def _backlog(self) -> _Values:
        if self._last is None:
            return []
        return [(self._last.kept, {"lionrock.state": "kept"}), (self._last.overdue, {"lionrock.state": "overdue"})]


class MeasuredKeyManagement:
    """Key management whose calls are timed and counted."""

    def __init__(self, management: KeyManagement, metrics: VaultMetrics) -> None:
        self._management = management
        self._metrics = metrics

    async def prepare(self, tenant: str) -> None:
        """Make the key of a tenant, if that is for it to make."""
        with self._metrics.calling("prepare"):
            await self._management.prepare(tenant)

    async def wrap(self, tenant: str, key: bytes, aad: bytes) -> bytes:
        """Encrypt a key."""
        with self._metrics.calling("wrap"):
            return await self._management.wrap(tenant, key, aad)

    async def unwrap(self, tenant: str, wrapped: bytes, aad: bytes) -> bytes:
        """Decrypt a key."""
        with self._metrics.calling("unwrap"):
            return await self._management.unwrap(tenant, wrapped, aad)

    def mark(self, tenant: str) -> bytes | None:
        """Return how everything begins that `wrap` returns now, where a tenant states its key."""
        return self._management.mark(tenant)

    async def destroy(self, tenant: str) -> bool:
        """Destroy the key of a tenant, if that is for it to do."""
        with self._metrics.calling("destroy"):
            return await self._management.destroy(tenant)

    async def close(self) -> None:
        """Let go of connections."""
        await self._management.close()


def _callback(values: Callable[[], _Values]) -> Callable[[CallbackOptions], list[Observation]]:
    def observe(options: CallbackOptions) -> list[Observation]:
        del options
        return [Observation(value, attributes) for value, attributes in values()]

    return observe
