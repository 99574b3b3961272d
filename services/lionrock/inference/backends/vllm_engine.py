"""vLLM as a backend: its AsyncLLM behind Lionrock's admission, streams, deadlines and errors.

AsyncLLM runs the model in processes of its own. When they are lost every stream ends with ShardGroupLost, and the next `start`
makes new ones. Figures: vLLM is told to run at most `max_running` sequences at once, so what is active beyond them waits; where its
KV cache is short, some of those counted as running wait too. Tenants take turns by weight (turns.py) through the priority that vLLM
is told; it stops whoever runs for another's turn only where the cache is short. Does not know Ray, the wire or settings.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final

from lionrock.inference.backends.turns import Turn, Turns
from lionrock.inference.backends.vllm_options import BackendUnavailable, VllmOptions, require_vllm
from lionrock.inference.backends.vllm_process import VllmProcess, build, in_thread, shut_down_late, warm_up
from lionrock.inference.backends.vllm_request import SAMPLING_OPTIONS, check_for_vllm, sampling_params
from lionrock.inference.backends.vllm_sequence import VllmSequence
from lionrock.inference.engine.admission import check_request
from lionrock.inference.engine.constraints import Constraints
from lionrock.inference.engine.errors import (
    EngineDraining,
    EngineError,
    EngineFull,
    InvalidRequest,
    RequestExpired,
    ShardGroupLost,
)
from lionrock.inference.engine.grammar import AnswerMatcher
from lionrock.inference.engine.runner import RunnerSpec
from lionrock.inference.engine.sequence import Request, RequestId, SequenceId
from lionrock.inference.engine.stream import Coalescing, Stream
from lionrock.inference.served_model import vocabulary_of
from lionrock.modelstore.source import locate
from lionrock.modelstore.vocabulary import Vocabulary

log = logging.getLogger("lionrock.inference")

_PING_INTERVAL_S: Final = 2.0
_RETRY_FLOOR_S, _RETRY_CEILING_S = 0.1, 30.0


@dataclass(slots=True, eq=False)
class _Active:
    """A sequence that vLLM has."""

    sequence: VllmSequence
    stream: Stream
    turn: Turn
    pump: asyncio.Task[None] | None = None
    expiry: asyncio.TimerHandle | None = None


class VllmEngine:
    """See EngineBackend."""

    def __init__(self, options: VllmOptions, *, coalescing: Coalescing | None = None) -> None:
        self._options = options
        self._coalescing = coalescing or Coalescing()
        self._process: VllmProcess | None = None
        self._spec: RunnerSpec | None = None
        self._vocabulary: Vocabulary | None = None
        self._constraints: Constraints | None = None
        self._lost: str | None = "the engine has not started"
        self._draining = False
        self._active: dict[RequestId, _Active] = {}
        self._turns = Turns()
        self._idle = asyncio.Event()
        self._idle.set()
        self._watch: asyncio.Task[None] | None = None
        self._next_id = 0
        self._seconds_per_answer = 1.0

    # ---- life ------------------------------------------------------------------------------------------------------------

    async def start(self, on_lost: Callable[[str], None]) -> None:
        """See EngineBackend. Raises ShardGroupLost also where vLLM is not installed; its message names the package."""
        await self._shut_down()
        begin_s = time.monotonic()
        building: asyncio.Future[VllmProcess] | None = None
        try:
            require_vllm(self._options.plan.chip)
            if self._vocabulary is None:
                self._vocabulary = await in_thread(lambda: vocabulary_of(locate("model", self._options.directory)))
            offered = SAMPLING_OPTIONS if self._vocabulary is None else SAMPLING_OPTIONS | {"stop", "constraint"}
            async with asyncio.timeout(self._options.start_timeout_s):
                building = asyncio.ensure_future(in_thread(lambda: build(self._options, offered)))
                process = await asyncio.shield(building)
                await warm_up(process.llm)
        except BaseException as error:
            if building is not None and building.done() and building.exception() is None:
                await in_thread(building.result().shut_down)
            elif building is not None:
                building.add_done_callback(shut_down_late)
            if isinstance(error, Exception):
                raise ShardGroupLost(f"vLLM did not start: {_said(error)}") from None
            raise
        self._process, self._lost, self._spec = process, None, process.spec
        if self._vocabulary is not None and self._constraints is None:
            self._constraints = Constraints(self._vocabulary, process.spec.vocab_size, process.spec.eos_token_ids)
            self._constraints.warm_up()
        self._watch = asyncio.create_task(self._keep_watch(process, on_lost), name="lionrock-vllm")
        log.info("vLLM is up after %.1f s", time.monotonic() - begin_s)

    async def drain(self) -> None:
        """See EngineBackend."""
        self._draining = True
        await self._idle.wait()

    async def close(self) -> None:
        """See EngineBackend."""
        self._draining = True
        self._end_all(EngineDraining)
        if self._constraints is not None:
            self._constraints.close()
        await self._shut_down()

    def give_up(self, reason: str) -> None:
        """See EngineBackend."""
        self._lost = reason
        self._end_all(lambda: ShardGroupLost(reason))

    async def _shut_down(self) -> None:
        process, self._process = self._process, None
        self._lost = self._lost or "the engine was shut down"
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
        if process is not None:
            await in_thread(process.shut_down)

    async def _keep_watch(self, process: VllmProcess, on_lost: Callable[[str], None]) -> None:
        """Return once the engine's processes died or give no sign of life; then every stream has ended."""
        llm, reason = process.llm, "vLLM's engine died"
        while not llm.errored:
            output_handler = llm.output_handler
            assert output_handler is not None, "the first request started it"
            done, _ = await asyncio.wait({output_handler}, timeout=_PING_INTERVAL_S)
            if done:
                break
            try:
                async with asyncio.timeout(self._options.silence_s):
                    await llm.is_sleeping()  # answered by the engine's loop between two steps
            except TimeoutError:
                reason = "vLLM's engine gives no sign of life"
                break
            except Exception:  # noqa: BLE001  # vLLM's own error of a dead engine
                break
        log.warning("%s", reason)
        self.give_up(reason)
        on_lost(reason)

    # ---- figures ---------------------------------------------------------------------------------------------------------

    @property
    def spec(self) -> RunnerSpec | None:
        """See EngineBackend."""
        return self._spec

    @property
    def running(self) -> int:
        """See EngineBackend."""
        return min(len(self._active), self._options.limits.max_running)

    @property
    def waiting(self) -> int:
        """See EngineBackend."""
        return len(self._active) - self.running

    def sequence_ended(self, sequence_id: SequenceId, traceparent: str) -> None:
        """See EngineBackend: vLLM's ranks make no spans of ours."""

    # ---- requests --------------------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> Stream:
        """See EngineBackend."""
        process, spec = self._process, self._spec
        if self._draining:
            raise EngineDraining
        if process is None or spec is None or self._lost is not None:
            raise ShardGroupLost(self._lost or "the engine is being restarted")
        self._check(request, spec)
        sequence_id = SequenceId(self._next_id)
        self._next_id += 1
        most = self._options.limits.max_answer_tokens
        sequence = VllmSequence(request, sequence_id, spec, most, self._vocabulary, process.grammar_end)
        stream = Stream(request.request_id, sequence_id, self._abort)
        if (last := sequence.ended_before()) is not None:
            stream.push(last, 0)
            return stream
        grammar: Future[AnswerMatcher] | None = None
        if request.constraint is not None:
            assert self._constraints is not None, "admission refuses what is not offered"
            grammar = self._constraints.begin(request.constraint, ())
        turn = self._turns.take(request.tenant, request.weight, request.priority, len(request.token_ids), sequence.max_new_tokens)
        active = self._active[request.request_id] = _Active(sequence, stream, turn)
        self._idle.clear()
        active.pump = asyncio.create_task(self._pump(process, active, grammar), name="lionrock-vllm-stream")
        if request.deadline_s is not None:
            wait_s = max(0.0, request.deadline_s - time.monotonic())
            active.expiry = asyncio.get_running_loop().call_later(wait_s, self._end, active, RequestExpired())
        return stream

    def _check(self, request: Request, spec: RunnerSpec) -> None:
        if request.request_id in self._active:
            raise InvalidRequest("request_id", "is in use by a stream that has not ended")
        check_request(request, spec, spec.context_window)
        check_for_vllm(request)
        if self._is_full_for(request):
            raise EngineFull(self._retry_after_s())

    def _is_full_for(self, request: Request) -> bool:
        """Say whether the queue has no place for a request: as Lionrock's own engine does, with the same bounds."""
        most = self._options.limits.max_waiting
        waiting = len(self._active) - self._options.limits.max_running
        if waiting < most:
            return False
        share = self._turns.share(request.tenant, most, request.weight)
        return self._turns.of_tenant(request.tenant) + 1 > share or waiting >= 2 * most

    def _retry_after_s(self) -> float:
        """Guess when a place comes free: with R sequences in the batch, one ends every (seconds per answer) / R."""
        return min(max(self._seconds_per_answer / max(1, self.running), _RETRY_FLOOR_S), _RETRY_CEILING_S)

    async def _pump(self, process: VllmProcess, active: _Active, grammar: Future[AnswerMatcher] | None) -> None:
        """Carry vLLM's outputs to the stream until the last one, or its error. Cancelling aborts the sequence in vLLM."""
        from vllm.exceptions import VLLMClientError
        from vllm.inputs.engine import tokens_input
        from vllm.v1.engine.exceptions import EngineDeadError

        sequence = active.sequence
        request = sequence.request
        try:
            ebnf = None if grammar is None else (await asyncio.wrap_future(grammar)).ebnf
            outputs = process.llm.generate(
                tokens_input(list(request.token_ids), cache_salt=request.cache_salt.hex() or None),
                sampling_params(request, sequence.max_new_tokens, sequence.stop_token_ids, ebnf),
                request.request_id,
                priority=active.turn.number,
            )
            async with contextlib.aclosing(outputs):
                async for output in outputs:
                    step = sequence.take(output)
                    self._turns.begun(active.turn)
                    active.stream.push(step, self._coalescing.interval_s(len(self._active)))
                    if step.timings is not None:
                        self._seconds_per_answer += 0.1 * (step.timings.total_s - step.timings.queue_s - self._seconds_per_answer)
                        self._forget(active)
                        return
        except EngineDeadError:
            self._end(active, ShardGroupLost("vLLM's engine died"))
        except VLLMClientError as error:  # its words may repeat the request's
            self._end(active, InvalidRequest(getattr(error, "parameter", None) or "sampling", "is refused by vLLM"))
        except EngineError as error:
            self._end(active, error)
        except Exception as error:  # noqa: BLE001  # whatever vLLM raises, and its words may repeat the request's
            kind = type(error.__cause__ or error).__name__
            log.error("a request failed with %s", kind)
            self._end(active, EngineError(f"the request failed with {kind}"))

    # ---- endings ---------------------------------------------------------------------------------------------------------

    def _abort(self, stream: Stream) -> None:
        active = self._active.get(stream.request_id)
        if active is not None and active.stream is stream:
            self._forget(active)

    def _end(self, active: _Active, error: EngineError) -> None:
        """End a stream with an error, unless it has ended."""
        if self._active.get(active.stream.request_id) is active:
            active.stream.fail(error)
            self._forget(active)

    def _end_all(self, error: Callable[[], EngineError]) -> None:
        for active in tuple(self._active.values()):
            self._end(active, error())

    def _forget(self, active: _Active) -> None:
        del self._active[active.stream.request_id]
        self._turns.end(active.turn, active.sequence.new_tokens, whole=active.sequence.ended)
        if active.expiry is not None:
            active.expiry.cancel()
        if active.pump is not None and active.pump is not asyncio.current_task():
            active.pump.cancel()
        if not self._active:
            self._idle.set()


def _said(error: Exception) -> str:
    """Return what may be repeated of an error at the start: it concerns configuration and files, never a request."""
    return str(error) if isinstance(error, BackendUnavailable) else f"{type(error).__name__}: {str(error)[:300]}"
