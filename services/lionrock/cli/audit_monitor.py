"""`lionrock audit monitor` and `lionrock audit evidence`.

The checks are lionrock.audit.monitor's, what is told of them lionrock.audit.monitoring's.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lionrock.audit.evidence import EVIDENCE_MAX_BYTES, ForkEvidence, NotEvidence
from lionrock.audit.failures import SinkFailed
from lionrock.audit.monitor import StateUnusable
from lionrock.audit.monitor_settings import MonitorSettings, SettingsUnusable, SourceUnusable, read_settings, settings_of
from lionrock.audit.monitoring import watch
from lionrock.cli.errors import EXIT_FAILED, EXIT_UNAVAILABLE, EXIT_USAGE, CommandError
from lionrock.tlog.encoding import MalformedNote
from lionrock.tlog.note import VerifierKey


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
        outcome = asyncio.run(watch(settings, once=once, everything=everything))
    except (StateUnusable, SourceUnusable, SinkFailed, RuntimeError) as error:
        raise CommandError(str(error)) from error
    if outcome.alarmed:
        return EXIT_FAILED
    return EXIT_UNAVAILABLE if outcome.unreachable and once else 0


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


def _settings(config: Path | None, one: OneLog) -> MonitorSettings:
    named = one.source is not None or one.keys
    if (config is None) == (not named):
        raise CommandError("which log?", fix="--config FILE, or --source, --key and --state-dir", exit_code=EXIT_USAGE)
    try:
        if config is not None:
            return read_settings(config)
        if one.state_dir is None:
            raise CommandError("where is what was seen last?", fix="--state-dir DIRECTORY", exit_code=EXIT_USAGE)
        log: dict[str, Any] = {"source": one.source, "keys": tuple(one.keys), "stall_after_s": one.stall_after_s}
        if one.witnesses:
            log["witnesses"] = {"keys": tuple(one.witnesses), "needed": len(one.witnesses)}
        return settings_of({"state_dir": one.state_dir, "interval_s": one.interval_s, "logs": [log]})
    except SettingsUnusable as error:
        raise CommandError(str(error), exit_code=EXIT_USAGE) from error
