"""The engines behind the routes, and what knows their tokenizers: the choice of one for each answer, before its prompt is encoded.

Knows routes and the rule of choice. Does not know where routes come from (routes_file.py), how channels live (routed_channels.py)
or what an answer is: generation.py asks for calls, and says when the engine of the last one will not do.

A prompt is encoded for one engine. Another one may take the answer over when it serves the same weights; while it has said nothing
yet, its tokenizer must be the one that encoded the prompt (`EngineChoice.check_tokenizer`).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from lionrock.chassis.errors import MeshError
from lionrock.gateway import errors
from lionrock.gateway.generation import GenerateCall
from lionrock.gateway.model_stats import AnswerStats
from lionrock.gateway.peers import Deadline, Inference, Tokenization
from lionrock.gateway.routed_channels import RoutedChannels
from lionrock.gateway.routes import Endpoint, ModelRoute, RouteTable, Share, pick
from lionrock.inference.v1 import inference_pb2 as inf

LIST_TIMEOUT_S = 3.0
"""Of one engine among several: one that does not answer must not hold the list up."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """The engine of one answer, and what encodes for it. Both can be called until the choice is given up, whatever routes say."""

    model: str
    share: Share
    endpoint: Endpoint
    engine: Inference
    tokenization: Tokenization


class Engines:
    """All engines of a gateway. One event loop uses it. Close it at the end."""

    def __init__(
        self,
        engines: RoutedChannels[Inference],
        tokenizations: RoutedChannels[Tokenization],
        own_tokenization: Tokenization | None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """`own_tokenization`: for endpoints that name none; None: the gateway has none. `draw`: from [0, 1), evenly."""
        self._engines = engines
        self._tokenizations = tokenizations
        self._own_tokenization = own_tokenization
        self._draw = draw
        self.table = RouteTable()
        self.version = 0
        """Another one whenever the routes are others."""

    def follow(self, table: RouteTable) -> None:
        """Go by these routes from now on. Raises TlsFilesUnusable, and then goes by the former ones."""
        engines, tokenizations = self._engines.opened(table.targets), self._tokenizations.opened(table.tokenizations)
        self._engines.follow(table.targets, engines)
        self._tokenizations.follow(table.tokenizations, tokenizations)
        self.table = table
        self.version += 1

    @contextmanager
    def choose(self, model: str, share: Share) -> Iterator[Chosen]:
        """Choose an engine by weight. Raises ModelNotFound, InferenceUnavailable and TokenizationUnavailable."""
        endpoint = pick(self.endpoints(model, share), self._draw())
        if endpoint is None:
            raise no_endpoint()
        with ExitStack() as holding:
            tokenization = self._tokenization(endpoint, holding)
            yield Chosen(model, share, endpoint, holding.enter_context(self._engines.held(endpoint.target)), tokenization)

    @contextmanager
    def tokenizing(self, model: str, share: Share) -> Iterator[Tokenization]:
        """Have what encodes for a model, also while no engine of it takes requests. Raises like choose."""
        endpoints = self.endpoints(model, share)
        endpoint = pick(endpoints, self._draw()) or next(iter(endpoints), None)
        with ExitStack() as holding:
            if endpoint is not None:
                yield self._tokenization(endpoint, holding)
            elif self._own_tokenization is not None:
                yield self._own_tokenization
            else:
                raise no_endpoint()

    def endpoints(self, model: str, share: Share) -> Sequence[Endpoint]:
        """Return where a model is answered for a tenant. Raises ModelNotFound."""
        route = self.table.route(model, share)
        if route is None:
            raise no_such_model()
        return route.endpoints

    def client(self, target: str) -> Inference:
        """Return the client of an engine that the present routes name."""
        return self._engines.client(target)

    def tokenization(self, endpoint: Endpoint) -> Tokenization:
        """Return what encodes for an endpoint of the present routes. Raises TokenizationUnavailable."""
        if endpoint.tokenization is not None:
            return self._tokenizations.client(endpoint.tokenization)
        return self._own()

    async def list_models(self, deadline: Deadline) -> Sequence[inf.ServedModel]:
        """Return what is served, by name. With routes, a model that no engine speaks for now is one that is not ready.

        Raises InferenceUnavailable when there is one engine, and it does not answer.
        """
        table = self.table
        if table.only is not None:
            return await self.client(table.only.target).list_models(deadline)
        targets = sorted(table.targets)
        with ExitStack() as holding:  # routes may change while they answer
            engines = [holding.enter_context(self._engines.held(target)) for target in targets]
            answers = await asyncio.gather(*(_list(engine, deadline) for engine in engines))
        told = dict(zip(targets, answers, strict=True))
        return [_merged(model, table.models[model], told) for model in sorted(table.models)]

    async def close(self) -> None:
        """End every channel and the calls on them."""
        await asyncio.gather(self._engines.close(), self._tokenizations.close())

    def _tokenization(self, endpoint: Endpoint, holding: ExitStack) -> Tokenization:
        if endpoint.tokenization is not None:
            return holding.enter_context(self._tokenizations.held(endpoint.tokenization))
        return self._own()

    def _own(self) -> Tokenization:
        if self._own_tokenization is None:
            raise errors.TokenizationUnavailable(
                "nothing is named that encodes for the model", metadata={"peer_reason": "NO_ENDPOINT"}, retry_after_s=1.0
            )
        return self._own_tokenization


class EngineChoice:
    """Makes the Generate calls of one answer: the first on the chosen engine, others on engines that have not failed it.

    Of those it prefers the revision of the last one.
    """

    def __init__(
        self, engines: Engines, chosen: Chosen, deadline: Deadline, stats: AnswerStats, draw: Callable[[], float] = random.random
    ) -> None:
        self._engines = engines
        self._chosen = chosen
        self._deadline = deadline
        self._stats = stats
        self._draw = draw
        self._last: Endpoint | None = None
        self._tried: set[str] = set()
        self._unfit: set[str] = set()

    def start(self, request: inf.GenerateRequest) -> GenerateCall:
        """Start a call: the first where the prompt was encoded for, a further one elsewhere if there is an elsewhere.

        Raises InferenceUnavailable.
        """
        first = self._last is None
        endpoint = self._chosen.endpoint if first else self._next()
        if endpoint is None:
            raise no_endpoint()
        self._last = endpoint
        self._tried.add(endpoint.target)
        self._stats.asked(endpoint.revision)
        engine = self._chosen.engine if first else self._engines.client(endpoint.target)
        return engine.generate(request, self._deadline)

    async def check_tokenizer(self, tokenizer_digest: str) -> None:
        """Make sure that the engine that took the sequence has the tokenizer that encoded it, before anything it says is used.

        Only where another than the chosen one took it is there anything to ask. Raises InferenceUnavailable when it has not, and
        what Tokenization raises.
        """
        first, last = self._chosen.endpoint, self._last
        assert last is not None, "an engine was asked"
        if last.tokenization == first.tokenization:
            return
        if last.tokenization is not None and last.tokenization not in self._engines.table.tokenizations:
            raise another_tokenizer()
        tokenization = self._engines.tokenization(last)
        if await tokenization.digest(self._chosen.model, self._deadline) != tokenizer_digest:
            raise another_tokenizer()

    def elsewhere(self) -> bool:
        """Whether an engine is left that this answer has not been tried on."""
        return any(endpoint.target not in self._tried for endpoint in self._candidates())

    def reject(self) -> bool:
        """Never go back to the last engine: what it serves is another model. Returns whether there is any other."""
        assert self._last is not None, "an engine was asked"
        self._unfit.add(self._last.target)
        self._stats.withdrawn()
        return bool(self._candidates())

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
        route: ModelRoute | None = self._engines.table.route(self._chosen.model, self._chosen.share)
        return [] if route is None else [endpoint for endpoint in route.endpoints if endpoint.target not in self._unfit]


async def _list(engine: Inference, deadline: Deadline) -> Mapping[str, inf.ServedModel]:
    try:
        models = await engine.list_models(Deadline.after(deadline.left_s(LIST_TIMEOUT_S)))
    except MeshError:
        return {}
    return {model.identity.model: model for model in models}


def no_such_model() -> errors.ModelNotFound:
    """Return what a caller hears of a model that is not served, and of one that is not theirs."""
    return errors.ModelNotFound("no such model is served")


def no_endpoint() -> errors.InferenceUnavailable:
    """Return what a caller hears of a model that no engine takes requests for."""
    return errors.InferenceUnavailable("no engine serves the model now", metadata={"peer_reason": "NO_ENDPOINT"}, retry_after_s=1.0)


def another_tokenizer() -> errors.InferenceUnavailable:
    """Return what a caller hears when another revision took the prompt over, and reads its ids otherwise."""
    return errors.InferenceUnavailable(
        "the model changed before the answer began", metadata={"peer_reason": "MODEL_CHANGED"}, retry_after_s=0.1
    )


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
