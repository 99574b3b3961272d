"""The engines behind the routes: a channel each, opened and closed as routes change, and the choice of one for each call.

Knows channels and routes. Does not know where routes come from (routes_file.py) or what an answer is: generation.py asks for
calls, and says when the engine of the last one will not do.

An engine that leaves the routes gets no new calls; its channel is closed once the calls that run on it have ended.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lionrock.chassis.channel import MeshChannel
from lionrock.chassis.errors import MeshError
from lionrock.gateway import errors
from lionrock.gateway.generation import GenerateCall
from lionrock.gateway.model_stats import AnswerStats
from lionrock.gateway.peers import Deadline, Inference
from lionrock.gateway.routes import Endpoint, ModelRoute, RouteTable, pick
from lionrock.inference.v1 import inference_pb2 as inf

DRAIN_S = 600.0
"""Longest time that a channel out of the routes stays open: the longest deadline of a call. One without calls is closed at once."""
LIST_TIMEOUT_S = 3.0
"""Of one engine among several: one that does not answer must not hold the list up."""


@dataclass(frozen=True, slots=True)
class _Engine:
    channel: MeshChannel
    client: Inference


class Engines:
    """All engines of a gateway. One event loop uses it. Close it at the end."""

    def __init__(self, open_channel: Callable[[str], MeshChannel], timeout_s: float) -> None:
        """`open_channel` of a target; `timeout_s`: of calls that are not answers."""
        self._open_channel = open_channel
        self._timeout_s = timeout_s
        self._engines: Mapping[str, _Engine] = {}
        self._draining: dict[asyncio.Task[None], MeshChannel] = {}
        self.table = RouteTable()
        self.version = 0
        """Another one whenever the routes are others."""

    def follow(self, table: RouteTable) -> None:
        """Go by these routes from now on. Raises TlsFilesUnusable, and then goes by the former ones."""
        opened = {target: self._opened(target) for target in sorted(table.targets - self._engines.keys())}
        kept = {target: engine for target, engine in self._engines.items() if target in table.targets}
        left = [engine for target, engine in self._engines.items() if target not in table.targets]
        self._engines, self.table = {**kept, **opened}, table
        self.version += 1
        for engine in left:
            self._drain(engine.channel)

    def answering(self, model: str, tenant: str, deadline: Deadline, stats: AnswerStats) -> EngineChoice:
        """Return what makes the Generate calls of one answer. Raises ModelNotFound."""
        if self.table.route(model, tenant) is None:
            raise no_such_model()
        return EngineChoice(self, model, tenant, deadline, stats)

    def client(self, target: str) -> Inference:
        """Return the client of an engine that the present routes name."""
        return self._engines[target].client

    async def list_models(self, deadline: Deadline) -> Sequence[inf.ServedModel]:
        """Return what is served, by name. With routes, a model that no engine speaks for now is one that is not ready.

        Raises InferenceUnavailable when there is one engine, and it does not answer.
        """
        table = self.table
        if table.only is not None:
            return await self.client(table.only.target).list_models(deadline)
        targets = sorted(table.targets)
        answers = await asyncio.gather(*(self._list(target, deadline) for target in targets))
        told = dict(zip(targets, answers, strict=True))
        return [_merged(model, table.models[model], told) for model in sorted(table.models)]

    async def close(self) -> None:
        """End every channel and the calls on them."""
        draining = dict(self._draining)
        for task in draining:
            task.cancel()
        await asyncio.gather(*draining, return_exceptions=True)
        channels = [*draining.values(), *(engine.channel for engine in self._engines.values())]
        await asyncio.gather(*(channel.close() for channel in channels))

    async def _list(self, target: str, deadline: Deadline) -> Mapping[str, inf.ServedModel]:
        try:
            models = await self.client(target).list_models(Deadline.after(deadline.left_s(LIST_TIMEOUT_S)))
        except MeshError:
            return {}
        return {model.identity.model: model for model in models}

    def _opened(self, target: str) -> _Engine:
        channel = self._open_channel(target)
        channel.get_state(try_to_connect=True)  # so that the first question does not pay for the handshake
        return _Engine(channel, Inference(channel, self._timeout_s))

    def _drain(self, channel: MeshChannel) -> None:
        task = asyncio.create_task(channel.close(DRAIN_S), name="lionrock-drain")
        self._draining[task] = channel
        task.add_done_callback(lambda done: self._draining.pop(done, None))


class EngineChoice:
    """Makes the Generate calls of one answer: each on an engine that has not failed it, of the same revision if there is one."""

    def __init__(
        self,
        engines: Engines,
        model: str,
        tenant: str,
        deadline: Deadline,
        stats: AnswerStats,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._engines = engines
        self._model = model
        self._tenant = tenant
        self._deadline = deadline
        self._stats = stats
        self._draw = draw
        self._last: Endpoint | None = None
        self._tried: set[str] = set()
        self._unfit: set[str] = set()

    def start(self, request: inf.GenerateRequest) -> GenerateCall:
        """Start a call: the first by weight, a further one elsewhere if there is an elsewhere. Raises InferenceUnavailable."""
        endpoint = self._first() if self._last is None else self._next()
        if endpoint is None:
            raise errors.InferenceUnavailable(
                "no engine serves the model now", metadata={"peer_reason": "NO_ENDPOINT"}, retry_after_s=1.0
            )
        self._last = endpoint
        self._tried.add(endpoint.target)
        self._stats.asked(endpoint.revision)
        return self._engines.client(endpoint.target).generate(request, self._deadline)

    def elsewhere(self) -> bool:
        """Whether an engine is left that this answer has not been tried on."""
        return any(endpoint.target not in self._tried for endpoint in self._candidates())

    def reject(self) -> bool:
        """Never go back to the last engine: what it serves is another model. Returns whether there is any other."""
        assert self._last is not None, "an engine was asked"
        self._unfit.add(self._last.target)
        self._stats.withdrawn()
        return bool(self._candidates())

    def _first(self) -> Endpoint | None:
        return pick(self._candidates(), self._draw())

    def _next(self) -> Endpoint | None:
        assert self._last is not None, "an engine was asked"
        candidates = self._candidates()
        untried = [endpoint for endpoint in candidates if endpoint.target not in self._tried]
        if not untried:  # another round
            self._tried.clear()
            untried = [endpoint for endpoint in candidates if endpoint.target != self._last.target] or candidates
        alike = [endpoint for endpoint in untried if endpoint.revision == self._last.revision] or untried
        return pick(alike, self._draw()) or next(iter(alike), None)

    def _candidates(self) -> list[Endpoint]:
        route: ModelRoute | None = self._engines.table.route(self._model, self._tenant)
        return [] if route is None else [endpoint for endpoint in route.endpoints if endpoint.target not in self._unfit]


def no_such_model() -> errors.ModelNotFound:
    """Return what a caller hears of a model that is not served, and of one that is not theirs."""
    return errors.ModelNotFound("no such model is served")


def _merged(model: str, route: ModelRoute, told: Mapping[str, Mapping[str, inf.ServedModel]]) -> inf.ServedModel:
    """Put together what the model's engines say: the heaviest one's words, ready if any is, the options that all offer."""
    endpoints = sorted(route.endpoints, key=lambda endpoint: -endpoint.weight)
    entries = [entry for endpoint in endpoints if (entry := told[endpoint.target].get(model)) is not None]
    merged = inf.ServedModel()
    merged.identity.model = model
    if not entries:
        return merged
    merged.CopyFrom(entries[0])
    merged.ready = any(entry.ready for entry in entries)
    del merged.sampling_options[:]
    merged.sampling_options.extend(o for o in entries[0].sampling_options if all(o in entry.sampling_options for entry in entries))
    return merged
