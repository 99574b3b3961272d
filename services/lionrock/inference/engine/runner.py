"""The border between policy and arithmetic: what the engine asks of whatever runs the model.

Implementations: `lionrock.inference.model.worker.LocalRunner` (one rank in this process) and the shard group of
`lionrock.inference.sharding` (one actor a rank).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from lionrock.inference.engine.batch import StepBatch, StepResult


@dataclass(frozen=True, slots=True)
class RunnerSpec:
    """What the engine must know of a model and its cache. The same on every rank."""

    vocab_size: int
    context_window: int
    """Prompt and answer together, in tokens."""
    eos_token_ids: frozenset[int]
    kv_block_size: int
    """Tokens a KV block holds."""
    kv_blocks: int
    """Blocks of the cache: the smallest count over the ranks."""
    kv_bytes_per_token: int
    """Summed over all ranks."""
    sampling_options: frozenset[str]
    """Fields of `Sampling` that the runner's sampler honours beyond temperature, seed and the stop conditions."""


class ModelRunner(Protocol):
    """Runs one step of a model over a paged KV cache. Called from one thread at a time."""

    @property
    def spec(self) -> RunnerSpec:
        """Constant during the life of the runner."""
        ...

    def execute(self, batch: StepBatch) -> StepResult:
        """Run the batch on every rank and return one sampled token for each row that asks for one, in row order.

        Blocks until the step is done. Raises ShardGroupLost when a rank died or did not answer in time; the runner is then useless.
        """
        ...

    def close(self) -> None:
        """Release the device memory and the ranks. May be called twice."""
        ...
