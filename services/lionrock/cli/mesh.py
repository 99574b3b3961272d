"""One run of the mesh: certificates, configuration, services, and what is told about them, until it is told to stop.

Reads as the story of a run; the parts are in certificates.py, configuration.py, probe.py and supervisor.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import os
import signal
import sys
import time
from collections.abc import Coroutine, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lionrock.cli.certificates import CLIENT, SUPERVISOR, Certificates
from lionrock.cli.configuration import (
    DRAIN_ORDER,
    START_ORDER,
    MeshConfiguration,
    certificate_plan,
    choose_ports,
    configure,
    write_configuration,
)
from lionrock.cli.errors import ServiceNotReady
from lionrock.cli.logs import BoundedLog, last_lines, prune_traces
from lionrock.cli.probe import health_probe, models_probe
from lionrock.cli.settings import MeshSettings
from lionrock.cli.state import Endpoint, MeshInfo, StateDir
from lionrock.cli.supervisor import ChildFailed, ChildSpec, Event, State, Supervisor
from lionrock.modelstore.source import ModelSource

# What a service needs beyond its own grace to end in order.
_DRAIN_MARGIN_S = 10.0
_TAIL_LINES = 100
_WORDS = 4


class Mesh:
    """All services of one machine. `pid` is what users see as the mesh's."""

    def __init__(self, settings: MeshSettings, state: StateDir, model: ModelSource, pid: int) -> None:
        """Issue certificates and write the configuration. Raises CommandError."""
        self._settings = settings
        self._state = state
        self._model = model
        self._pid = pid
        self._console = Console(highlight=False, soft_wrap=True)
        self._log = BoundedLog(state.log("up"), max_bytes=settings.log_max_bytes)
        self._began = time.monotonic()
        self._started_at = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        self._ready = False
        prune_traces(state.traces, settings.trace_max_bytes)
        self._certificates = Certificates(state, certificate_plan(settings))
        self._certificates.issue_all()
        self._configuration = self._configure()
        self._supervisor = Supervisor([self._spec(name) for name in START_ORDER], drain_order=DRAIN_ORDER, on_event=self._tell)

    def _configure(self) -> MeshConfiguration:
        configuration = configure(self._settings, self._state, self._certificates, choose_ports(self._settings), self._model)
        write_configuration(self._state, configuration)
        return configuration

    def _spec(self, name: str) -> ChildSpec:
        targets, certificates = self._configuration.targets, self._certificates
        probe = health_probe(name, targets[name], certificates.tls(SUPERVISOR))
        if name == "inference":
            probe = models_probe(probe, targets["gateway"], certificates.tls(CLIENT))
        return ChildSpec(
            name=name,
            argv=(sys.executable, "-m", f"lionrock.{name}", "--config", str(self._state.config(name))),
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            log=BoundedLog(self._state.log(name), max_bytes=self._settings.log_max_bytes),
            probe=probe,
            ready_timeout_s=self._settings.ready_timeout_s,
            drain_grace_s=self._settings.drain_grace_s + _DRAIN_MARGIN_S,
        )

    async def run(self) -> int:
        """Start, serve until SIGTERM or SIGINT, drain. Returns 0. Raises ServiceNotReady."""
        stop = asyncio.Event()

        def on_signal() -> None:
            if stop.is_set():
                self._supervisor.hurry()
            stop.set()

        for signum in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(signum, on_signal)
        self._console.print(f"starting the mesh on {self._state.root}: {self._model.name}, {self._shards()}")
        rotation = asyncio.create_task(self._certificates.rotate(self._on_rotated), name="rotate certificates")
        try:
            if await _before(stop, self._supervisor.start()):
                self._ready = True
                self._write_mesh()
                self._say_ready()
                await stop.wait()
            self._console.print("draining: first the gateway, then the others; Ctrl-C again ends them at once")
        except ChildFailed as failure:
            raise self._explained(failure) from failure
        finally:
            self._state.mesh_file.unlink(missing_ok=True)
            rotation.cancel()
            await self._supervisor.drain()
        self._console.print(f"stopped; the state stays in {self._state.root}")
        return 0

    def _shards(self) -> str:
        tensor, pipeline = self._settings.tensor_parallel, self._settings.pipeline_parallel
        return f"{tensor * pipeline} shard{'s' if tensor * pipeline > 1 else ''} (tensor {tensor} × pipeline {pipeline})"

    def _tell(self, event: Event) -> None:
        """Say what happened, on the terminal and in logs/up.jsonl."""
        now = dt.datetime.now(dt.UTC)
        fields = {
            "time": now.isoformat(timespec="milliseconds"),
            "service": event.name,
            "state": event.state.value,
            "event": event.what,
            "pid": event.pid,
            "level": "WARNING" if event.problem else "INFO",
        }
        self._log.write(json.dumps(fields).encode() + b"\n")
        style = "bold red" if event.problem else "green" if event.state is State.READY else "dim"
        self._console.print(f"  {event.name:<13} [{style}]{escape(event.what)}[/]")
        if self._ready and event.state is State.READY:
            self._write_mesh()  # a restarted service has another pid

    def _on_rotated(self) -> None:
        line = {
            "time": dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds"),
            "event": "certificates rotated",
            "lifetime_s": self._settings.certificate_lifetime_s,
            "level": "INFO",
        }
        self._log.write(json.dumps(line).encode() + b"\n")

    def _write_mesh(self) -> None:
        pids = self._supervisor.pids
        endpoints = {name: Endpoint(target, pids.get(name, 0)) for name, target in self._configuration.targets.items()}
        domain, http = self._settings.trust_domain, self._configuration.http
        self._state.write_mesh(MeshInfo(self._pid, self._started_at, domain, endpoints, [self._model.name], http))

    def _say_ready(self) -> None:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("SERVICE", "LISTENS ON (mTLS)", "PID", "LOG"):
            table.add_column(column)
        pids = self._supervisor.pids
        for name in reversed(START_ORDER):
            table.add_row(name, self._configuration.targets[name], str(pids.get(name, "-")), str(self._state.log(name)))
        print_ = self._console.print
        print_(table)
        certs = self._state.client_certs
        state = f" --state-dir {self._state.root}"
        print_(f"ready after {time.monotonic() - self._began:.1f} s, pid {self._pid}; Ctrl-C drains and ends it")
        print_(f"  ask     lionrock chat{state} 'Name three rivers.'", markup=False)
        print_(
            f"  list    grpcurl -cacert {certs}/ca.crt -cert {certs}/tls.crt -key {certs}/tls.key "
            f"-authority gateway.lionrock.internal {self._configuration.targets['gateway']} list",
            markup=False,
        )
        if self._configuration.http is not None:
            url = f"https://{self._configuration.http}/v1"
            print_(f"  openai  {url}   # base_url of OpenAI's clients, with the certificate; api_key: certificate", markup=False)
            shown = f"--cacert {certs}/ca.crt --cert {certs}/tls.crt --key {certs}/tls.key"
            print_(f"          curl {shown} {url}/models", markup=False)

    def _explained(self, failure: ChildFailed) -> ServiceNotReady:
        log = self._state.log(failure.name)
        words = "\n".join(f"    {line[:300]}" for line in last_words(last_lines(log, _TAIL_LINES)))
        fix = f"read {log}; `lionrock doctor` shows what this machine lacks"
        return ServiceNotReady(f"the mesh did not start: {failure}; its last words:\n{words}", fix=fix)


def last_words(lines: Sequence[str]) -> list[str]:
    """Pick what explains an end: the last warnings and errors, or, where a program said none, its last lines."""
    said = []
    for line in lines:
        with contextlib.suppress(ValueError):
            fields = json.loads(line)
            if isinstance(fields, dict) and fields.get("level") in ("WARNING", "ERROR", "CRITICAL"):
                said.append(" ".join(str(fields[key]) for key in ("message", "error", "error_id") if fields.get(key)))
    return (list(dict.fromkeys(said)) or list(lines))[-_WORDS:]


async def _before(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Do the work unless `stop` is set first, which cancels it. Returns whether it was done; raises what it raises."""
    task, stopped = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
            return True
        return False
    finally:
        for pending in (task, stopped):
            pending.cancel()
        await asyncio.gather(task, stopped, return_exceptions=True)
