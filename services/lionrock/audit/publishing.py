"""Keeps the tiles of all logs up to date while the service runs, and says when it cannot.

Knows: when to look at which log, what to do about failures. Does not know: tiles (publisher.py).
A log whose published files contradict the store gets no more tiles until restart, and an alarm: error in the log of the service,
again every hour, metric `lionrock.audit.tiles.alarms`, text in `alarms`, NOT_SERVING for the part HEALTH_PART in health checks.
Leaves are appended and proven all the same: tiles are a copy, and a pod that left its Endpoints for them would stop every answer.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Final, Self

from lionrock.audit.failures import AuditError, SinkFailed, TileConflict
from lionrock.audit.log import AuditLogs
from lionrock.audit.publisher import LogPublisher, PublishedLog
from lionrock.audit.store import LogStore
from lionrock.audit.tenant_log import Head
from lionrock.audit.tile_sinks import TileSink
from lionrock.chassis.telemetry import meter
from lionrock.tlog.checkpoint import Checkpoint

log = logging.getLogger("lionrock.audit")

HEALTH_PART: Final = "lionrock.audit.tiles"
_FAILURES_PAUSE_MAX_S: Final = 60.0
_REMINDER_S: Final = 3600.0


def tenant_logs(logs: AuditLogs, store: LogStore, platform: str) -> list[PublishedLog]:
    """List the logs of all tenants that can be read, with heads that are durable in both places."""
    published = []
    for tenant in logs.tenants:
        stored = store.find_log(f"{platform}/audit/{tenant}")
        assert stored is not None
        published.append(PublishedLog(stored.origin, stored.log_id, partial(_head, logs, tenant)))
    return published


def _head(logs: AuditLogs, tenant: str) -> Head:
    note = logs.checkpoint(tenant)
    checkpoint = Checkpoint.parse(note.rpartition("\n\n")[0] + "\n")
    return Head(checkpoint.size, checkpoint.root, note)


class TilePublishing:
    """Publishes logs from a thread of its own, each in turn. `async with` it while the store is open."""

    def __init__(
        self,
        logs: Sequence[PublishedLog],
        store: LogStore,
        open_sink: Callable[[], TileSink],
        *,
        interval_s: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Publish `logs`, looking for new leaves every `interval_s` seconds.

        `open_sink` is called from the thread until it succeeds: a sink that another process still holds, or that cannot be
        reached, must not keep the logs from being written.
        """
        self._logs = logs
        self._store = store
        self._open_sink = open_sink
        self._sink: TileSink | None = None
        self._publishers: Sequence[LogPublisher] = ()
        self._interval_s = interval_s
        self._monotonic = monotonic
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="audit-tiles")
        self._task: asyncio.Task[None] | None = None
        self._alarms: dict[str, str] = {}
        self._failing: dict[str, str] = {}
        self._reminded_s: dict[str, float] = {}
        self._alarm = meter().create_gauge(
            "lionrock.audit.tiles.alarms", description="1 for a log whose published tiles contradict the store, else 0."
        )
        self._failures = meter().create_counter("lionrock.audit.tiles.failures", description="Steps of publishing that failed.")
        self._behind = meter().create_gauge("lionrock.audit.tiles.behind", unit="{leaf}", description="Leaves not yet published.")

    @property
    def alarms(self) -> Mapping[str, str]:
        """Logs that are no longer published, by origin, and why."""
        return dict(self._alarms)

    @property
    def failing(self) -> Mapping[str, str]:
        """Logs whose last try failed, by origin, and why; they are tried again."""
        return dict(self._failing)

    async def __aenter__(self) -> Self:
        """Begin to publish."""
        self._task = asyncio.create_task(self._run(), name="audit-tiles")
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop after the step that runs."""
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self.close()

    async def close(self) -> None:
        """End the thread and let another process have the sink."""
        await asyncio.to_thread(self._thread.shutdown)
        if self._sink is not None:
            self._sink.close()

    async def publish(self) -> None:
        """Publish what there is now, every log to its head of this moment unless it fails."""
        if self._sink is None and not await self._opened():
            return
        waiting = [publisher for publisher in self._publishers if publisher.origin not in self._alarms]
        while waiting:  # a step each in turn: a long back-fill of one log holds no other up
            waiting = [publisher for publisher in waiting if await self._step(publisher)]
        self._say_alarms()

    async def _run(self) -> None:
        pause_s = self._interval_s
        while True:
            await self.publish()
            pause_s = min(2 * pause_s, max(_FAILURES_PAUSE_MAX_S, self._interval_s)) if self._failing else self._interval_s
            await asyncio.sleep(pause_s)

    def _say_alarms(self) -> None:
        """Set the metric of every log, and say an alarm when it begins and every hour."""
        for each in self._logs:
            self._alarm.set(int(each.origin in self._alarms), {"lionrock.log": each.origin})
        now_s = self._monotonic()
        for origin, why in self._alarms.items():
            if now_s >= self._reminded_s.get(origin, now_s):
                self._reminded_s[origin] = now_s + _REMINDER_S
                log.error("published tiles contradict the store; they are left as they are", extra={"log": origin, "why": why})

    async def _opened(self) -> bool:
        try:
            self._sink = await asyncio.get_running_loop().run_in_executor(self._thread, self._open_sink)
        except SinkFailed as error:
            for each in self._logs:
                self._fail(each.origin, error)
            return False
        self._publishers = [LogPublisher(each, self._store, self._sink) for each in self._logs]
        return True

    def _fail(self, origin: str, error: AuditError) -> None:
        self._failures.add(1, {"lionrock.log": origin})
        if self._failing.get(origin) != str(error):
            log.error("tiles could not be published; this is tried again", extra={"log": origin, "why": str(error)})
        self._failing[origin] = str(error)

    async def _step(self, publisher: LogPublisher) -> bool:
        origin = publisher.origin
        try:
            more = await asyncio.get_running_loop().run_in_executor(self._thread, publisher.step)
        except TileConflict as conflict:
            self._alarms[origin] = str(conflict)
            self._failing.pop(origin, None)
            self._say_alarms()
            return False
        except AuditError as error:
            self._fail(origin, error)
            return False
        except Exception as error:  # a defect must not end publishing unheard
            log.exception("publishing tiles failed", extra={"log": origin})
            self._fail(origin, SinkFailed(f"publishing failed with {type(error).__name__}"))
            return False
        self._failing.pop(origin, None)
        if not more:
            self._behind.set(publisher.behind or 0, {"lionrock.log": origin})
        return more
