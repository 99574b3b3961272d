"""What vLLM is told when it is started: a plan and settings as its engine arguments and environment.

Refuses by name what vLLM cannot do as planned. Knows vLLM's words, but does not import it. Source: vLLM 0.32, `AsyncEngineArgs` and
`vllm/envs.py`. On clusters vLLM's Ray executor takes the bundles of the replica's placement group; that has never been run.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lionrock.inference.engine.engine import EngineLimits
from lionrock.inference.model.config import ModelConfig
from lionrock.planner.chips import chip
from lionrock.planner.plan import ShardPlan

MAX_LOGPROBS: Final = 20
_TOKENIZER_FILES: Final = ("tokenizer.json", "tokenizer.model")
_REPORTS_NOTHING: Final = {
    # vLLM reports its use to its makers unless told otherwise, and asks a hub for what it does not find.
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    # Its loggers are ours: no handlers of its own, no colours, no banner.
    "VLLM_CONFIGURE_LOGGING": "0",
}


class BackendUnavailable(Exception):
    """The vllm backend cannot serve a model as configured; the message says what to change."""


@dataclass(frozen=True, slots=True)
class VllmOptions:
    """One model's engine. Picklable: it travels to the replica."""

    directory: Path
    """config.json, safetensors files, and the tokenizer's where stop strings and constraints are wanted."""
    config: ModelConfig
    plan: ShardPlan
    limits: EngineLimits
    kv_cache_bytes: int
    """Of each rank."""
    threads: int | None = None
    """Compute threads of a CPU rank; None: vLLM binds them to the cores that it may use."""
    enforce_eager: bool = False
    """Start without compiling anything: slower steps, for tests and short-lived engines."""
    interface: str | None = None
    """Network interface of CPU ranks' collectives; None: gloo chooses."""
    start_timeout_s: float = 600.0
    silence_s: float = 30.0
    """Longest time that the engine's process may leave a call unanswered before it counts as lost; a step must be shorter."""

    def __post_init__(self) -> None:
        if self.directory.is_file():
            raise BackendUnavailable(f"the vllm backend reads directories with safetensors files, not {self.directory.name}")
        if even := _uneven(self.plan):
            raise BackendUnavailable(f"vLLM splits a model evenly only, and this plan does not: {even}")
        if self.enforce_eager and self.plan.pipeline_parallel > 1 and chip(self.plan.chip).ray_resource == "CPU":
            # Seen with 0.32: its stages find no buffers at the first step, which only the skipped compilation makes.
            raise BackendUnavailable("vLLM on CPUs cannot run pipeline stages with vllm.enforce_eager: leave it unset")

    @property
    def has_tokenizer(self) -> bool:
        """Whether the model's directory holds a tokenizer."""
        return any((self.directory / name).is_file() for name in _TOKENIZER_FILES)

    def engine_arguments(self) -> dict[str, Any]:
        """Keyword arguments of vLLM's AsyncEngineArgs."""
        limits, row = self.limits, chip(self.plan.chip)
        return {
            "model": str(self.directory),
            "skip_tokenizer_init": not self.has_tokenizer,
            "trust_remote_code": False,
            "dtype": self.plan.dtype,
            "tensor_parallel_size": self.plan.tensor_parallel,
            "pipeline_parallel_size": self.plan.pipeline_parallel,
            "enable_expert_parallel": self.plan.tensor_parallel > 1 and any(shard.experts for shard in self.plan.shards),
            # Ranks on chips are Ray actors in the placement group's bundles, which hold them; on CPUs vLLM's own processes.
            "distributed_executor_backend": "mp" if row.ray_resource == "CPU" else "ray",
            "max_model_len": -1,  # the model's window, or what the KV cache holds
            "kv_cache_memory_bytes": self.kv_cache_bytes,
            "max_num_seqs": limits.max_running,
            "max_num_batched_tokens": max(limits.max_step_tokens, limits.max_running),
            "enable_chunked_prefill": True,
            "enable_prefix_caching": limits.prefix_cache,
            "scheduling_policy": "priority",
            "max_logprobs": MAX_LOGPROBS,
            "logprobs_mode": "raw_logprobs",
            "structured_outputs_config": {"backend": "xgrammar"},
            "generation_config": "vllm",  # what a request does not ask for is not taken from the model's files
            "enforce_eager": self.enforce_eager,
            "disable_log_stats": True,
        }

    def environment(self) -> Mapping[str, str | None]:
        """Variables that vLLM and its processes read; None: must not be set."""
        plan = self.plan
        variables: dict[str, str | None] = dict(_REPORTS_NOTHING)
        variables["VLLM_CPU_KVCACHE_SPACE"] = None  # would win over kv_cache_memory_bytes
        if plan.pipeline_parallel > 1:
            layers = [next(s.layers for s in plan.shards if s.stage == stage) for stage in range(plan.pipeline_parallel)]
            variables["VLLM_PP_LAYER_PARTITION"] = ",".join(map(str, layers))
        if chip(plan.chip).ray_resource == "CPU":
            variables["VLLM_HOST_IP"] = "127.0.0.1"  # its processes meet on this machine only
            variables["VLLM_CPU_OMP_THREADS_BIND"] = "auto" if self.threads is None else "nobind"
            if self.threads is not None:
                variables["OMP_NUM_THREADS"] = str(self.threads)
            if self.interface is not None:
                variables["GLOO_SOCKET_IFNAME"] = self.interface
        return variables


def _uneven(plan: ShardPlan) -> str | None:
    """How the shards of one stage differ, or None."""
    for name in ("query_heads", "kv_heads", "mlp_columns", "experts"):
        for stage in range(plan.pipeline_parallel):
            counts = {getattr(shard, name) for shard in plan.shards if shard.stage == stage}
            if len(counts) > 1:
                return f"{name.replace('_', ' ')} of {' and '.join(map(str, sorted(counts)))}"
    return None


def require_vllm(chip_name: str) -> None:
    """Raise BackendUnavailable, naming the package to install, where vLLM is not."""
    plugin = chip(chip_name).engine_plugin
    if plugin is None:
        raise BackendUnavailable(f"no vLLM is known for chip {chip_name}; use the torch backend")
    if importlib.util.find_spec("vllm") is None:
        raise BackendUnavailable(f"the vllm backend on chip {chip_name} needs the Python package {plugin}, which is not installed")


def prepare_environment(options: VllmOptions) -> None:
    """Set what vLLM reads from the environment; before it is imported."""
    for name, value in options.environment().items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
