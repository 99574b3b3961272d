"""vLLM as a backend: its AsyncLLM behind Lionrock's admission, streams, deadlines and errors.

AsyncLLM runs the model in processes of its own. When they are lost every stream ends with ShardGroupLost, and the next `start`
makes new ones. Figures: vLLM is told to run at most `max_running` sequences at once, so what is active beyond them waits; where its
KV cache is short, some of those counted as running wait too. Does not know Ray, the wire or settings.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any, Final, TypeVar

from lionrock.inference.backends.vllm_options import BackendUnavailable, VllmOptions, prepare_environment, require_vllm
from lionrock.inference.backends.vllm_request import (
    WITH_TOKENIZER,
    WITHOUT_TOKENIZER,
    check_for_vllm,
    new_tokens,
    sampling_params,
)
from lionrock.inference.engine.admission import check_request
from lionrock.inference.engine.errors import (
    EngineDraining,
    EngineError,
    EngineFull,
    InvalidRequest,
    RequestExpired,
    ShardGroupLost,
    UnsupportedSamplingOption,
)
from lionrock.inference.engine.runner import RunnerSpec
from lionrock.inference.engine.sequence import FinishReason, Request, RequestId, SequenceId, StepOutput, Timings
from lionrock.inference.engine.stream import Coalescing, Stream
from lionrock.planner.chips import chip

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM

log = logging.getLogger("lionrock.inference")

T = TypeVar("T")

_PING_INTERVAL_S: Final = 2.0
_SHUTDOWN_S: Final = 10.0
_RETRY_FLOOR_S, _RETRY_CEILING_S = 0.1, 30.0


@dataclass(slots=True, eq=False)
class _Active:
    """A request that vLLM has."""

    request: Request
    stream: Stream
    stop_token_ids: frozenset[int]
    admitted_s: float
    pump: asyncio.Task[None] | None = None
    expiry: asyncio.TimerHandle | None = None
    first_token_s: float | None = None
    answer_tokens: int = 0


class _NoStatistics:
    """A stat logger that logs nothing: having one makes vLLM fill in the times of each request."""

    def record(self, *arguments: Any, **keywords: Any) -> None:
        """Take a step's statistics."""

    def log_engine_initialized(self) -> None:
        """Take note that the engine is up."""

    def log(self) -> None:
        """Log what was recorded."""

    def record_sleep_state(self, *arguments: Any, **keywords: Any) -> None:
        """Take note that the engine sleeps."""


class VllmEngine:
    """See EngineBackend."""

    def __init__(self, options: VllmOptions, *, coalescing: Coalescing | None = None) -> None:
        self._options = options
        self._coalescing = coalescing or Coalescing()
        self._llm: AsyncLLM | None = None
        self._spec: RunnerSpec | None = None
        self._lost: str | None = "the engine has not started"
        self._draining = False
        self._active: dict[RequestId, _Active] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._watch: asyncio.Task[None] | None = None
        self._processes: frozenset[BaseProcess] = frozenset()
        self._next_id = 0
        self._seconds_per_answer = 1.0

    # ---- life ------------------------------------------------------------------------------------------------------------

    async def start(self, on_lost: Callable[[str], None]) -> None:
        """See EngineBackend. Raises ShardGroupLost also where vLLM is not installed; its message names the package."""
        await self._shut_down()
        try:
            require_vllm(self._options.plan.chip)
        except BackendUnavailable as error:
            raise ShardGroupLost(str(error)) from None
        begin_s = time.monotonic()
        others = frozenset(multiprocessing.active_children())
        prepare_environment(self._options)
        building = asyncio.ensure_future(_in_thread(lambda: _build(self._options)))
        try:
            async with asyncio.timeout(self._options.start_timeout_s):
                llm = await asyncio.shield(building)
                await _warm_up(llm)
        except BaseException as error:
            building.add_done_callback(_shut_down_late)
            if isinstance(error, Exception):
                raise ShardGroupLost(f"vLLM did not start: {_said(error)}") from None
            raise
        self._llm, self._lost, self._spec = llm, None, _spec(llm, self._options)
        self._processes = frozenset(multiprocessing.active_children()) - others
        self._watch = asyncio.create_task(self._keep_watch(llm, on_lost), name="lionrock-vllm")
        log.info("vLLM is up after %.1f s", time.monotonic() - begin_s)

    async def drain(self) -> None:
        """See EngineBackend."""
        self._draining = True
        await self._idle.wait()

    async def close(self) -> None:
        """See EngineBackend."""
        self._draining = True
        self._end_all(EngineDraining)
        await self._shut_down()

    def give_up(self, reason: str) -> None:
        """See EngineBackend."""
        self._lost = reason
        self._end_all(lambda: ShardGroupLost(reason))

    async def _shut_down(self) -> None:
        llm, self._llm = self._llm, None
        processes, self._processes = self._processes, frozenset()
        self._lost = self._lost or "the engine was shut down"
        if self._watch is not None and self._watch is not asyncio.current_task():
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
        if llm is not None:
            await _in_thread(lambda: _shut_down(llm, processes))

    async def _keep_watch(self, llm: AsyncLLM, on_lost: Callable[[str], None]) -> None:
        """Return once the engine's processes died or give no sign of life; then every stream has ended."""
        reason = "vLLM's engine died"
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
        llm, spec = self._llm, self._spec
        if self._draining:
            raise EngineDraining
        if llm is None or spec is None or self._lost is not None:
            raise ShardGroupLost(self._lost or "the engine is being restarted")
        self._check(request, spec)
        sampling, limits = request.sampling, self._options.limits
        prompt_tokens = len(request.token_ids) - request.resumed_tokens
        answer_tokens = min(sampling.max_tokens or limits.max_answer_tokens, limits.max_answer_tokens)
        new_answer_tokens = min(answer_tokens - request.resumed_tokens, spec.context_window - len(request.token_ids))
        stop_token_ids = frozenset(i for i in sampling.stop_token_ids if i < spec.vocab_size)  # others never come
        if not sampling.ignore_eos:
            stop_token_ids |= spec.eos_token_ids
        sequence_id = SequenceId(self._next_id)
        self._next_id += 1
        stream = Stream(request.request_id, sequence_id, self._abort)
        active = _Active(request, stream, stop_token_ids, time.monotonic(), answer_tokens=request.resumed_tokens)
        if new_answer_tokens <= 0:  # resumed after its last token
            stream.push(self._output(active, (), (), FinishReason.LENGTH, None, prompt_tokens), 0)
            return stream
        self._active[request.request_id] = active
        self._idle.clear()
        active.pump = asyncio.create_task(self._pump(llm, active, new_answer_tokens), name="lionrock-vllm-stream")
        if request.deadline_s is not None:
            wait_s = max(0.0, request.deadline_s - time.monotonic())
            active.expiry = asyncio.get_running_loop().call_later(wait_s, self._end, active, RequestExpired())
        return stream

    def _check(self, request: Request, spec: RunnerSpec) -> None:
        if request.request_id in self._active:
            raise InvalidRequest("request_id", "is in use by a stream that has not ended")
        check_request(request, spec, spec.context_window)
        check_for_vllm(request)
        if request.constraint is not None and not self._options.has_tokenizer:
            raise UnsupportedSamplingOption("constraint of a model without tokenizer files")
        if len(self._active) - self._options.limits.max_running >= self._options.limits.max_waiting:
            raise EngineFull(self._retry_after_s())

    def _retry_after_s(self) -> float:
        """Guess when a place comes free: with R sequences in the batch, one ends every (seconds per answer) / R."""
        return min(max(self._seconds_per_answer / max(1, self.running), _RETRY_FLOOR_S), _RETRY_CEILING_S)

    async def _pump(self, llm: AsyncLLM, active: _Active, max_tokens: int) -> None:
        """Carry vLLM's outputs to the stream until the last one, or its error. Cancelling aborts the sequence in vLLM."""
        from vllm.exceptions import VLLMClientError
        from vllm.inputs.engine import tokens_input
        from vllm.v1.engine.exceptions import EngineDeadError

        request = active.request
        try:
            outputs = llm.generate(
                tokens_input(list(request.token_ids), cache_salt=request.cache_salt.hex() or None),
                sampling_params(request, max_tokens, active.stop_token_ids),
                request.request_id,
                priority=-request.priority,
            )
            async for output in outputs:
                self._deliver(active, output)
        except VLLMClientError as error:  # its words may repeat the request's
            field = "constraint" if request.constraint is not None else (getattr(error, "parameter", None) or "sampling")
            self._end(active, InvalidRequest(field, "is refused by vLLM"))
        except EngineDeadError:
            self._end(active, ShardGroupLost("vLLM's engine died"))
        except Exception as error:
            log.exception("vLLM failed a request")
            self._end(active, EngineError(f"vLLM failed with {type(error).__name__}"))

    def _deliver(self, active: _Active, output: RequestOutput) -> None:
        (completion,) = output.outputs
        token_ids, logprobs = new_tokens(completion, active.request.sampling, active.stop_token_ids)
        if active.first_token_s is None and completion.token_ids:
            active.first_token_s = time.monotonic()
        active.answer_tokens += len(token_ids)
        finish: FinishReason | None = None
        if output.finished:
            match completion.finish_reason:
                case "stop":
                    finish = FinishReason.STOP
                case "length":
                    finish = FinishReason.LENGTH
                case reason:
                    self._end(active, EngineError(f"vLLM ended the sequence with {reason}"))
                    return
        prompt_tokens = len(active.request.token_ids) - active.request.resumed_tokens
        step = self._output(active, token_ids, logprobs, finish, output, prompt_tokens)
        active.stream.push(step, self._coalescing.interval_s(len(self._active)))
        if finish is not None:
            assert step.timings is not None
            self._seconds_per_answer += 0.1 * (step.timings.total_s - step.timings.queue_s - self._seconds_per_answer)
            self._forget(active)

    def _output(
        self,
        active: _Active,
        token_ids: tuple[int, ...],
        logprobs: Any,
        finish: FinishReason | None,
        output: RequestOutput | None,
        prompt_tokens: int,
    ) -> StepOutput:
        timings = None
        if finish is not None:
            metrics = None if output is None else output.metrics
            total_s = time.monotonic() - active.admitted_s
            timings = Timings(
                # Both times are of the engine's process.
                queue_s=total_s if metrics is None else max(0.0, metrics.scheduled_ts - metrics.queued_ts),
                first_token_s=None if active.first_token_s is None else active.first_token_s - active.admitted_s,
                total_s=total_s,
                prompt_tokens=prompt_tokens,
                cached_prompt_tokens=0 if output is None else min(output.num_cached_tokens or 0, prompt_tokens),
                completion_tokens=active.answer_tokens,
                preemptions=0 if metrics is None else metrics.num_preemptions,
            )
        return StepOutput(active.request.request_id, active.stream.sequence_id, token_ids, logprobs, finish, timings)

    # ---- endings ---------------------------------------------------------------------------------------------------------

    def _abort(self, stream: Stream) -> None:
        active = self._active.get(stream.request_id)
        if active is not None and active.stream is stream:
            self._forget(active)

    def _end(self, active: _Active, error: EngineError) -> None:
        """End a stream with an error, unless it has ended."""
        if self._active.get(active.request.request_id) is active:
            active.stream.fail(error)
            self._forget(active)

    def _end_all(self, error: Callable[[], EngineError]) -> None:
        for active in tuple(self._active.values()):
            self._end(active, error())

    def _forget(self, active: _Active) -> None:
        del self._active[active.request.request_id]
        if active.expiry is not None:
            active.expiry.cancel()
        if active.pump is not None and active.pump is not asyncio.current_task():
            active.pump.cancel()
        if not self._active:
            self._idle.set()


def _build(options: VllmOptions) -> AsyncLLM:
    """Start vLLM's processes and load the model (blocking, up to minutes)."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.async_llm import AsyncLLM

    wanted = chip(options.plan.chip)
    if current_platform.device_type != wanted.torch_device:
        raise BackendUnavailable(
            f"the vLLM that is installed runs on {current_platform.device_type or 'no device here'}; "
            f"chip {wanted.name} needs the Python package {wanted.engine_plugin}"
        )
    arguments = AsyncEngineArgs(**options.engine_arguments())
    return AsyncLLM.from_engine_args(arguments, stat_loggers=[lambda *_: _NoStatistics()])


async def _warm_up(llm: AsyncLLM) -> None:
    """Have one answer: it proves that the ranks work, and has vLLM compile what it compiles at first use, which takes seconds."""
    from vllm.inputs.engine import tokens_input
    from vllm.sampling_params import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=2, logprobs=1, detokenize=False, ignore_eos=True)
    async for _ in llm.generate(tokens_input([0]), params, "lionrock-warm-up"):
        pass


def _shut_down(llm: AsyncLLM, processes: frozenset[BaseProcess]) -> None:
    """End vLLM's processes and wait until they are gone (blocking): vLLM itself kills slow ones and looks away."""
    llm.shutdown(timeout=_SHUTDOWN_S)
    for process in processes:
        process.join(_SHUTDOWN_S)


def _spec(llm: AsyncLLM, options: VllmOptions) -> RunnerSpec:
    config, cache = options.config, llm.vllm_config.cache_config
    return RunnerSpec(
        vocab_size=config.vocab_size,
        context_window=llm.vllm_config.model_config.max_model_len,
        eos_token_ids=config.eos_token_ids,
        kv_block_size=cache.block_size,
        kv_blocks=cache.num_gpu_blocks,
        kv_bytes_per_token=options.plan.kv_bytes_per_token,
        sampling_options=WITH_TOKENIZER if options.has_tokenizer else WITHOUT_TOKENIZER,
    )


def _said(error: Exception) -> str:
    """Return what may be repeated of an error at the start: it concerns configuration and files, never a request."""
    return str(error) if isinstance(error, BackendUnavailable) else f"{type(error).__name__}: {str(error)[:300]}"


def _shut_down_late(building: asyncio.Future[AsyncLLM]) -> None:
    """Take away an engine that came up when nobody waited for it any more."""
    if not building.cancelled() and building.exception() is None:
        llm = building.result()
        threading.Thread(target=llm.shutdown, name="lionrock-vllm-shutdown", daemon=True).start()


async def _in_thread(call: Callable[[], T]) -> T:
    """Run a blocking call in a thread that the interpreter does not wait for at its end."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(result)  # type: ignore[arg-type]
        else:
            done.set_exception(error)

    def run() -> None:
        result, failure = None, None
        try:
            result = call()
        except BaseException as error:  # noqa: BLE001  # it belongs to whoever awaits
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody awaits
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, name="lionrock-vllm-call", daemon=True).start()
    return await done
