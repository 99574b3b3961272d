"""Starting and ending vLLM's AsyncLLM with the processes that it runs the model in. Both block, so they have threads of their own.

Source: vLLM 0.32, `vllm/v1/engine/async_llm.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any, Final, TypeVar

from lionrock.inference.backends.vllm_options import BackendUnavailable, VllmOptions, prepare_environment
from lionrock.inference.engine.runner import RunnerSpec
from lionrock.planner.chips import chip

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

T = TypeVar("T")

_SHUTDOWN_S: Final = 10.0


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


@dataclass(frozen=True, slots=True)
class VllmProcess:
    """An AsyncLLM that is up."""

    llm: AsyncLLM
    spec: RunnerSpec
    grammar_end: frozenset[int]
    """What vLLM lets come after an answer that completes a grammar: the tokenizer's end-of-sequence token."""
    processes: frozenset[BaseProcess]

    def shut_down(self) -> None:
        """End the processes and wait until they are gone: vLLM itself kills slow ones and looks away (blocking, seconds)."""
        self.llm.shutdown(timeout=_SHUTDOWN_S)
        for process in self.processes:
            process.join(_SHUTDOWN_S)


def build(options: VllmOptions, sampling_options: frozenset[str]) -> VllmProcess:
    """Start vLLM's processes and load the model (blocking, up to minutes). Raises BackendUnavailable and whatever vLLM raises."""
    others = frozenset(multiprocessing.active_children())
    prepare_environment(options)
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.async_llm import AsyncLLM

    wanted = chip(options.plan.chip)
    if current_platform.device_type != wanted.torch_device:
        raise BackendUnavailable(
            f"the vLLM that is installed runs on {current_platform.device_type or 'no device here'}; "
            f"chip {wanted.name} needs the Python package {wanted.engine_plugin}"
        )
    llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**options.engine_arguments()), stat_loggers=[lambda *_: _NoStatistics()])
    config, cache = options.config, llm.vllm_config.cache_config
    spec = RunnerSpec(
        vocab_size=config.vocab_size,
        context_window=llm.vllm_config.model_config.max_model_len,
        eos_token_ids=config.eos_token_ids,
        kv_block_size=cache.block_size,
        kv_blocks=cache.num_gpu_blocks,
        kv_bytes_per_token=options.plan.kv_bytes_per_token,
        sampling_options=sampling_options,
    )
    grammar_end = frozenset({llm.get_tokenizer().eos_token_id} - {None}) if options.has_tokenizer else frozenset()
    return VllmProcess(llm, spec, grammar_end, frozenset(multiprocessing.active_children()) - others)


async def warm_up(llm: AsyncLLM) -> None:
    """Have one answer: it proves that the ranks work, and has vLLM compile what it compiles at first use, which takes seconds."""
    from vllm.inputs.engine import tokens_input
    from vllm.sampling_params import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=2, logprobs=1, detokenize=False, ignore_eos=True)
    async for _ in llm.generate(tokens_input([0]), params, "lionrock-warm-up"):
        pass


def shut_down_late(building: asyncio.Future[VllmProcess]) -> None:
    """Take away what came up when nobody waited for it any more (a done callback)."""
    if not building.cancelled() and building.exception() is None:
        threading.Thread(target=building.result().shut_down, name="lionrock-vllm-shutdown", daemon=True).start()


async def in_thread(call: Callable[[], T]) -> T:
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
