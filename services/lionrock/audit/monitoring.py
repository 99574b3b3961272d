"""Runs a monitor: looks at every log again and again, tells what is new as events and metrics, answers probes.

Knows: when to look, what was told already. Does not know: what is checked (monitor.py), where logs are (monitor_settings.py).
`python -m lionrock.audit.monitoring --config FILE` is the monitor as a service, `lionrock audit monitor` the same for people.

Probes say that the process answers (alive), and that every log was looked at once (ready). They say nothing about the logs: an
alarm does not end with a restart, and whoever restarts a monitor for it loses time. Alarms are events and metrics.
"""

import argparse
import asyncio
import json
import logging
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from lionrock.audit.failures import SinkFailed
from lionrock.audit.monitor import Alarm, Finding, LogMonitor, Look, StateUnusable
from lionrock.audit.monitor_settings import MonitorSettings, SettingsUnusable, SourceUnusable, read_settings
from lionrock.chassis.telemetry import meter, start_telemetry

_AT_ONCE = 4
"""Logs that are looked at at the same time: one that answers slowly holds up no other for long."""
_PROBED = "lionrock.audit.monitor"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a monitor found until it ended: an alarm about a log; a log that could not be read at the end (once: at all)."""

    alarmed: bool
    unreachable: bool


async def watch(settings: MonitorSettings, *, once: bool = False, everything: bool = False) -> Outcome:
    """Look at every log, once or until SIGTERM or SIGINT; with `everything` the first look reads all tiles and leaves again.

    Raises StateUnusable, SourceUnusable, SinkFailed before the first look, RuntimeError for a port of probes that is taken.
    """
    monitors = [LogMonitor(log.watched(), settings.state_dir) for log in settings.logs]
    telemetry = start_telemetry("audit-monitor", settings.telemetry)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # what comes of its retries is an event
    try:
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="monitor") as pool:
            async with _probes(None if once else settings.probe_listen) as looked_at_all:
                stop = asyncio.Event()
                if not once:
                    for number in (signal.SIGTERM, signal.SIGINT):
                        asyncio.get_running_loop().add_signal_handler(number, stop.set)
                return await _look_until(
                    stop, monitors, pool, looked_at_all, interval_s=None if once else settings.interval_s, everything=everything
                )
    finally:
        await asyncio.to_thread(telemetry.close)


async def _look_until(
    stop: asyncio.Event,
    monitors: Sequence[LogMonitor],
    pool: ThreadPoolExecutor,
    looked_at_all: Callable[[], None],
    *,
    interval_s: float | None,
    everything: bool,
) -> Outcome:
    """Look at all logs every `interval_s` seconds; None: once."""
    metrics = _Metrics()
    reports = {monitor.origin: _Report(metrics) for monitor in monitors}
    alarmed = False
    while True:
        unreachable = False
        look = partial(_look, everything=everything)
        for looking in [asyncio.get_running_loop().run_in_executor(pool, look, monitor) for monitor in monitors]:
            found = await looking
            reports[found.origin].tell(found)
            alarmed = alarmed or any(finding.alarm is not Alarm.UNREACHABLE for finding in found.findings)
            unreachable = unreachable or any(finding.alarm is Alarm.UNREACHABLE for finding in found.findings)
        everything = False
        looked_at_all()
        if interval_s is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), interval_s)
        if interval_s is None or stop.is_set():
            return Outcome(alarmed, unreachable)


@asynccontextmanager
async def _probes(listen: str | None) -> AsyncIterator[Callable[[], None]]:
    """Answer probes while the block runs; gives what says that it is ready. Raises RuntimeError when the address is taken."""
    if listen is None:
        yield lambda: None
        return
    from lionrock.chassis.health import Health  # and with it gRPC, which a look from the command line does not need
    from lionrock.chassis.probes import start_probes

    health = Health([_PROBED])
    server, _ = await start_probes(listen, health)
    try:
        yield health.serving
    finally:
        await server.stop(None)


def _look(monitor: LogMonitor, *, everything: bool) -> Look:
    try:
        return monitor.look(everything=everything)
    except StateUnusable as error:
        # Not remembered is not checked against: the next look would be consistent with less than was seen.
        return Look(monitor.origin, None, 0, None, [Finding(Alarm.UNREACHABLE, str(error))])


class _Metrics:
    """What a collector gets."""

    def __init__(self) -> None:
        instruments = meter()
        self.alarm = instruments.create_gauge("lionrock.audit.monitor.alarm", description="1 while a log shows what it must not.")
        self.size = instruments.create_gauge("lionrock.audit.monitor.size", unit="{leaf}", description="Leaves that passed.")
        self.age = instruments.create_gauge("lionrock.audit.monitor.age", unit="s", description="Time since the log last changed.")
        self.looked = instruments.create_gauge(
            "lionrock.audit.monitor.looked",
            unit="s",
            description="When the last look ended, as Unix time.",
        )


class _Report:
    """Tells what is new about one log: growth, and alarms when they begin, change or end."""

    def __init__(self, metrics: _Metrics) -> None:
        self._metrics = metrics
        self._told: dict[Alarm, str] = {}
        self._size: int | None = None

    def tell(self, look: Look) -> None:
        """Print events and set metrics."""
        found = {finding.alarm: finding.detail for finding in look.findings}
        for finding in look.findings:
            told = self._told.get(finding.alarm)
            if told is None or (told != finding.detail and finding.alarm is not Alarm.STALL):  # a stall counts its seconds
                evidence = {} if finding.evidence is None else {"evidence": str(finding.evidence)}
                _event(look, finding.alarm.value, "alarm", detail=finding.detail, **evidence)
        for alarm in self._told.keys() - found.keys():
            _event(look, f"{alarm.value}_ended", "info")
        passed = found.keys() <= {Alarm.STALL, Alarm.COSIGNATURES_MISSING}
        if passed and look.size is not None and look.size != self._size:
            self._size = look.size
            _event(look, "verified", "info", size=look.size, new_leaves=look.new_leaves)
        self._told = found
        attributes = {"lionrock.log": look.origin}
        for alarm in Alarm:
            self._metrics.alarm.set(int(alarm in found), {**attributes, "lionrock.alarm": alarm.value})
        if look.size is not None:
            self._metrics.size.set(look.size, attributes)
        if look.age_s is not None:
            self._metrics.age.set(look.age_s, attributes)
        self._metrics.looked.set(time.time(), attributes)


def _event(look: Look, event: str, severity: str, **fields: Any) -> None:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    print(
        json.dumps({"time": now, "severity": severity, "event": event, "log": look.origin, **fields}, ensure_ascii=False),
        flush=True,
    )


def main(argv: Sequence[str]) -> int:
    """Follow the logs of a file until SIGTERM. Returns the exit status: 0, 1 what it needs cannot be had, 2 wrong settings."""
    parser = argparse.ArgumentParser(prog="python -m lionrock.audit.monitoring", description="Follow audit logs from outside.")
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="YAML file with the logs to follow")
    arguments = parser.parse_args(argv)
    try:
        settings = read_settings(arguments.config)
    except SettingsUnusable as error:
        print(f"lionrock audit monitor: {error}", file=sys.stderr)
        return 2
    try:
        asyncio.run(watch(settings))
    except (StateUnusable, SourceUnusable, SinkFailed, RuntimeError) as error:
        print(f"lionrock audit monitor: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
