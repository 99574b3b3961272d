"""`lionrock audit monitor` and `lionrock audit evidence`. The checks are lionrock.audit.monitor's."""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from lionrock.audit.evidence import EVIDENCE_MAX_BYTES, ForkEvidence, NotEvidence
from lionrock.audit.failures import SinkFailed
from lionrock.audit.monitor import Alarm, Finding, LogMonitor, Look, StateUnusable
from lionrock.audit.monitor_settings import MonitorSettings, SourceUnusable
from lionrock.chassis.telemetry import meter, start_telemetry
from lionrock.cli.errors import EXIT_FAILED, EXIT_UNAVAILABLE, EXIT_USAGE, CommandError
from lionrock.tlog.encoding import MalformedNote
from lionrock.tlog.note import VerifierKey

_AT_ONCE = 4
"""Logs that are looked at at the same time: one that answers slowly holds up no other for long."""


@dataclass(frozen=True, slots=True)
class OneLog:
    """A log named by options."""

    source: str | None
    keys: Sequence[str]
    witnesses: Sequence[str]
    stall_after_s: float | None
    state_dir: Path | None
    interval_s: float


def run(config: Path | None, one: OneLog, *, once: bool, everything: bool) -> int:
    """Look at every log, once or until SIGTERM or SIGINT. Returns the exit status. Raises CommandError.

    everything: the first look reads all tiles and leaves again.
    """
    settings = _settings(config, one)
    try:
        monitors = [LogMonitor(log.watched(), settings.state_dir) for log in settings.logs]
    except (StateUnusable, SourceUnusable, SinkFailed) as error:
        raise CommandError(str(error)) from error
    telemetry = start_telemetry("audit-monitor", settings.telemetry)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # what comes of its retries is an event
    stop = threading.Event()
    if not once:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
    metrics = _Metrics()
    reports = {monitor.origin: _Report(metrics) for monitor in monitors}
    alarmed = unreachable = False
    try:
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="monitor") as pool:
            while True:
                for look in pool.map(partial(_look, everything=everything), monitors):
                    reports[look.origin].tell(look)
                    alarmed = alarmed or any(finding.alarm is not Alarm.UNREACHABLE for finding in look.findings)
                    unreachable = any(finding.alarm is Alarm.UNREACHABLE for finding in look.findings) or (unreachable and once)
                everything = False
                if once or stop.wait(settings.interval_s):
                    break
    finally:
        telemetry.close()
    if alarmed:
        return EXIT_FAILED
    return EXIT_UNAVAILABLE if unreachable and once else 0


def check_evidence(file: Path, keys: Sequence[str], *, as_json: bool) -> int:
    """Say whether a file proves a fork. Returns 0 when it does. Raises CommandError."""
    try:
        with file.open("rb") as opened:
            content = opened.read(EVIDENCE_MAX_BYTES)
        trusted = [VerifierKey.parse(key) for key in keys]
    except OSError as error:
        raise CommandError(f"{file} cannot be read: {error.strerror}") from error
    except MalformedNote as error:
        raise CommandError(f"a key cannot be used: {error}", exit_code=EXIT_USAGE) from error
    try:
        shorter, longer = ForkEvidence.parse(content).verify(trusted[0].name, trusted)
    except NotEvidence as error:
        if as_json:
            print(json.dumps({"forked": False, "detail": str(error)}))
        else:
            print(f"NOT PROVEN  {file}: {error}", file=sys.stderr)
        return EXIT_FAILED
    if as_json:
        sizes = {"shorter_size": shorter.size, "longer_size": longer.size}
        print(json.dumps({"forked": True, "origin": shorter.origin, **sizes}))
    else:
        print(
            f"FORKED  {shorter.origin} signed two histories: the {shorter.size} leaves under the one checkpoint are not the first"
        )
        print(f"        of the {longer.size} leaves under the other. Whoever holds the log's key can check this file.")
    return 0


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


def _event(look: Look, event: str, severity: str, **fields: Any) -> None:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    print(
        json.dumps({"time": now, "severity": severity, "event": event, "log": look.origin, **fields}, ensure_ascii=False),
        flush=True,
    )


def _settings(config: Path | None, one: OneLog) -> MonitorSettings:
    named = one.source is not None or one.keys
    if (config is None) == (not named):
        raise CommandError("which log?", fix="--config FILE, or --source, --key and --state-dir", exit_code=EXIT_USAGE)
    if config is not None:
        try:
            values = yaml.safe_load(config.read_text(encoding="utf-8"))
        except OSError as error:
            raise CommandError(f"{config} cannot be read: {error.strerror}", exit_code=EXIT_USAGE) from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise CommandError(f"{config} is not YAML", exit_code=EXIT_USAGE) from error
    else:
        log: dict[str, Any] = {"source": one.source, "keys": tuple(one.keys), "stall_after_s": one.stall_after_s}
        if one.witnesses:
            log["witnesses"] = {"keys": tuple(one.witnesses), "needed": len(one.witnesses)}
        values = {"state_dir": one.state_dir, "interval_s": one.interval_s, "logs": [log]}
        if one.state_dir is None:
            raise CommandError("where is what was seen last?", fix="--state-dir DIRECTORY", exit_code=EXIT_USAGE)
    try:
        return MonitorSettings.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise CommandError(f"{where}: {first['msg']}", exit_code=EXIT_USAGE) from error
