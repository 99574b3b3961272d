"""Asks every gateway how the revisions of models answer (`stats.proto`), for canaries and autoscaling.

Every few seconds, while this operator leads and a model depends on the answer. A headless Service's name is resolved to the pods'
addresses, and each is asked over mutual TLS as the operator; whoever does not show a gateway's certificate, does not answer in time
or tells nonsense counts as silent, and `gateway_figures` says what follows. Runtime, not pure: one thread with an event loop, calls
with deadlines, so many at a time. Figures that are not renewed are none after a while.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from types import MappingProxyType
from typing import Any, Final

import grpc

from lionrock.chassis.channel import MeshChannel
from lionrock.chassis.settings import PeerSettings
from lionrock.chassis.tls import TlsFilesUnusable
from lionrock.gateway.v1 import stats_pb2 as pb
from lionrock.gateway.v1.stats_pb2_grpc import GatewayStatsServiceStub
from lionrock.operator.gateway_figures import (
    GatewayFigures,
    GatewayReading,
    RevisionReading,
    Unreadable,
    wanted_of,
    what_matters,
)
from lionrock.operator.reports import NO_REPORTS, Reports
from lionrock.operator.resources import ModelDeployment, ObjectKey, Revision
from lionrock.operator.settings import GatewaysSettings

log = logging.getLogger("lionrock.operator")

MAX_GATEWAYS: Final = 256
"""Asked in a round; of more the sums are partial."""
MAX_REVISIONS: Final = 4096
"""Entries of an answer, at most; a full one may lack revisions."""
_AT_A_TIME: Final = 64
_GOOD_FOR: Final = 3
"""Intervals for which figures are good."""

Resolve = Callable[[], Awaitable[Sequence[str]]]


class GatewayStats:
    """What the gateways said last, all together."""

    def __init__(
        self,
        settings: GatewaysSettings,
        namespace: str,
        *,
        resolve: Resolve | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`namespace`: whose routes the gateways read. `resolve`: addresses of gateways, host:port; by default from DNS."""
        self._settings = settings
        self._namespace = namespace
        self._resolve = resolve or self._resolved
        self._clock = clock
        self._figures = GatewayFigures()
        self._channels: dict[str, MeshChannel] = {}
        self._silent: Mapping[str, str] = {}
        self._matters: Mapping[ObjectKey, object] = {}
        self._reports: tuple[float, Reports] = (clock(), NO_REPORTS)
        self._stop = threading.Event()
        self._cancel: Callable[[], object] | None = None
        self._thread: threading.Thread | None = None

    def reports(self) -> Reports:
        """Return reports of revisions on whose figures something depends; none that are old."""
        at, reports = self._reports
        return reports if self._clock() - at <= _GOOD_FOR * self._settings.interval_s else NO_REPORTS

    def start(
        self,
        models: Callable[[], Sequence[ModelDeployment]],
        leads: Callable[[], bool],
        look_at: Callable[[Iterable[ObjectKey]], None],
    ) -> None:
        """Begin to ask while `leads`. look_at is told of models for which something has changed that matters."""

        def run() -> None:
            with suppress(asyncio.CancelledError):
                asyncio.run(self._run(models, leads, look_at))

        self._thread = threading.Thread(target=run, name="gateway-stats", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Ask no more; whom it is asking at the moment is not waited for."""
        self._stop.set()
        if self._cancel is not None:
            with suppress(RuntimeError):  # it has ended by itself
                self._cancel()
        if self._thread is not None:
            self._thread.join(timeout_s)

    async def ask(self, models: Sequence[ModelDeployment]) -> set[ObjectKey]:
        """Ask all gateways once. Returns the models for which something has changed that matters."""
        wanted = wanted_of(models, self._namespace)
        if not wanted:
            return await self.forget()
        told = await self._told()
        reports = self._figures.add(told, wanted)
        return self._keep(MappingProxyType(reports), what_matters(models, reports))

    async def forget(self) -> set[ObjectKey]:
        """Hold no figures and no connections any more. Returns the models that had figures."""
        self._figures.forget()
        self._silent = {}
        await self._connect(())
        return self._keep(NO_REPORTS, {})

    def _keep(self, reports: Reports, matters: Mapping[ObjectKey, object]) -> set[ObjectKey]:
        self._reports = (self._clock(), reports)
        changed = {model for model in {*matters, *self._matters} if matters.get(model) != self._matters.get(model)}
        self._matters = matters
        return changed

    # ---- asking ------------------------------------------------------------------------------------------------------------

    async def _told(self) -> dict[str, GatewayReading | None]:
        """Return what each gateway tells, None of those that do not. Empty: no gateway is known."""
        addresses: Sequence[str] = ()
        silent: dict[str, str] = {}
        try:
            addresses = sorted(set(await asyncio.wait_for(self._resolve(), self._settings.answer_s)))
        except (OSError, UnicodeError) as error:  # a time-out is an OSError
            silent[self._settings.target] = f"its name cannot be resolved: {type(error).__name__}"
        asked = addresses[:MAX_GATEWAYS]
        silent |= dict.fromkeys(addresses[MAX_GATEWAYS:], f"more than {MAX_GATEWAYS} gateways")
        try:
            await self._connect(asked)
        except TlsFilesUnusable as error:
            silent |= dict.fromkeys(asked, str(error))
            asked = ()
        room = asyncio.Semaphore(_AT_A_TIME)
        answers = await asyncio.gather(*(self._asked(self._channels[address], room) for address in asked))
        told: dict[str, GatewayReading | None] = dict.fromkeys(addresses)
        for address, answer in zip(asked, answers, strict=True):
            if isinstance(answer, str):
                silent[address] = answer
            else:
                told[address] = answer
        if silent != self._silent:
            self._silent = silent
            few = "; ".join(f"{address}: {why}" for address, why in sorted(silent.items())[:8])
            if few:
                log.warning("no figures from %d of the gateways: %s", len(silent), few)
            else:
                log.info("all gateways tell their figures")
        return told

    async def _asked(self, channel: MeshChannel, room: asyncio.Semaphore) -> GatewayReading | str:
        """Ask one gateway. Returns what it tells, or why it does not."""
        stub: Any = GatewayStatsServiceStub(channel)
        async with room:
            try:
                return _reading(await stub.GetModelStats(pb.GetModelStatsRequest(), timeout=self._settings.answer_s))
            except grpc.aio.AioRpcError as error:
                return str(error.code().name)
            except Unreadable as error:
                return str(error)

    async def _connect(self, addresses: Sequence[str]) -> None:
        """Have a channel to each of them, and to no other. Raises TlsFilesUnusable."""
        for address in [address for address in self._channels if address not in addresses]:
            await self._channels.pop(address).close()
        for address in addresses:
            if address not in self._channels:
                peer = PeerSettings(target=address, service="gateway", timeout_s=self._settings.answer_s)
                self._channels[address] = MeshChannel(peer, self._settings.tls)

    async def _resolved(self) -> Sequence[str]:
        """Resolve the name to all its addresses. Raises OSError."""
        host, _, port = self._settings.target.rpartition(":")
        found = await asyncio.get_running_loop().getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        hosts = [(family, at[0]) for family, _, _, _, at in found if isinstance(at[0], str)]
        return [f"[{address}]:{port}" if family == socket.AF_INET6 else f"{address}:{port}" for family, address in hosts]

    # ---- the thread --------------------------------------------------------------------------------------------------------

    async def _run(
        self,
        models: Callable[[], Sequence[ModelDeployment]],
        leads: Callable[[], bool],
        look_at: Callable[[Iterable[ObjectKey]], None],
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._cancel = partial(asyncio.get_running_loop().call_soon_threadsafe, task.cancel)
        try:
            while not self._stop.is_set():
                try:
                    look_at(sorted(await self.ask(models()) if leads() else await self.forget()))
                except Exception:
                    log.exception("gateways could not be asked")
                await asyncio.sleep(self._settings.interval_s)
        finally:
            await self.forget()


def _reading(message: pb.GetModelStatsResponse) -> GatewayReading:
    """Read an answer. Raises Unreadable."""
    if not message.HasField("counting_since"):
        raise Unreadable("it does not say since when it counts")
    return GatewayReading(
        counting_since_ns=message.counting_since.ToNanoseconds(),
        ttft_bounds_s=tuple(message.ttft_bounds_seconds),
        revisions={
            (each.model, Revision(each.revision)): RevisionReading(
                waiting=each.waiting,
                answers=each.answers,
                failed=each.failed_answers,
                ttft_counts=tuple(each.ttft_counts),
                window_ttft_counts=tuple(each.window_ttft_counts),
            )
            for each in message.revisions[:MAX_REVISIONS]
        },
        complete=len(message.revisions) < MAX_REVISIONS,
    )
