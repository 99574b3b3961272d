"""One rank at work: its weights, its KV cache, a step at a time. And `LocalRunner`, one such rank in this process.

A worker knows the plan, its rank and its groups; not where the batch comes from, nor policy. Every rank executes the same batch;
the sampling rank (tensor rank 0 of the last stage) returns the tokens. Not safe for threads, except `finished_timings`.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from lionrock.inference.engine.batch import StepBatch, StepResult
from lionrock.inference.engine.runner import RunnerSpec
from lionrock.inference.engine.sampler import SAMPLING_OPTIONS, needs_whole_logits, sample
from lionrock.inference.engine.sequence import SequenceId
from lionrock.inference.model.attention import KVCache
from lionrock.inference.model.collectives import RankGroups
from lionrock.inference.model.config import ModelConfig
from lionrock.inference.model.forward import Forward, make_forward, native_library
from lionrock.inference.model.layers import RotaryEmbedding
from lionrock.inference.model.native.build import NativeKernels
from lionrock.inference.model.quantisation import schemes_of
from lionrock.inference.model.tensor_parallel import apply_tensor_parallel, sample_over_ranks
from lionrock.inference.model.transformer import Transformer, load_weights
from lionrock.inference.model.weights import open_weights
from lionrock.planner.plan import Shard, ShardPlan

KV_BLOCK_SIZE = 16
"""Tokens a KV block holds."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""By the plan's names."""

_KEPT_TIMINGS = 4096  # of sequences whose timings nobody has asked for yet


@dataclass(slots=True)
class ShardTimings:
    """What one sequence saw of one rank. A step's time counts whole for each sequence in it: these are latencies, not shares."""

    started_unix_s: float
    ended_unix_s: float
    prefill_s: float = 0.0
    decode_s: float = 0.0
    collective_s: float = 0.0
    """Of both, inside collectives (waiting for other ranks included)."""
    prefill_steps: int = 0
    decode_steps: int = 0


class ShardWorker:
    """One rank of a plan. Call `load`, then `allocate_kv_cache`, then `execute` for every step."""

    def __init__(
        self,
        source: Path,
        plan: ShardPlan,
        rank: int,
        device: str = "cpu",
        groups: RankGroups | None = None,
        *,
        native_kernels: NativeKernels = "auto",
        native_directory: Path | None = None,
    ) -> None:
        """source: a GGUF file, or a directory with config.json and safetensors files. groups: of this rank; None when alone.

        native_directory: where compiled kernels are; None: in the user's cache.
        Reads headers only. Raises what `open_weights` raises, and KernelsUnavailable when native kernels are required in vain.
        """
        self.plan = plan
        self.shard: Shard = plan.shards[rank]
        self._source = open_weights(source)
        self.config: ModelConfig = self._source.config
        self._device = torch.device(device)
        self._dtype = DTYPES[plan.dtype]
        self._groups = groups or RankGroups()
        assert (self._groups.tensor is None) == (plan.tensor_parallel == 1), "the groups do not fit the plan"
        assert (self._groups.pipeline is None) == (plan.pipeline_parallel == 1), "the groups do not fit the plan"
        self._model = Transformer(self.config, first_layer=self.shard.first_layer, layers=self.shard.layers)
        if self._groups.tensor is not None:
            apply_tensor_parallel(self._model, self.shard, self._groups.tensor)
        if (schemes := schemes_of(plan.weight_dtype)) is not None:
            self._model.quantise(schemes)
        self._native = native_library(native_kernels, self._dtype, self._device, KV_BLOCK_SIZE, native_directory)
        self._cache: KVCache | None = None
        self._forward: Forward | None = None
        self._timings: dict[SequenceId, ShardTimings] = {}
        self._finished: OrderedDict[SequenceId, ShardTimings] = OrderedDict()

    # ---- preparation -----------------------------------------------------------------------------------------------------

    def load(self, progress: Callable[[int, int], None] | None = None) -> int:
        """Read this rank's weights. progress: (elements read, elements in all). Returns bytes of weights held.

        Raises MissingTensor, MalformedWeights, UnsupportedModel.
        """
        config = self.config
        self._rope = RotaryEmbedding(config.rope, config.rotary_dim, config.context_window, self._dtype, self._device)
        return load_weights(self._model, self._source, self._dtype, self._device, progress or (lambda *_: None), self._native)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes that one token takes in this rank's cache."""
        return self.config.kv_bytes_per_token(self.shard.kv_heads, self.shard.layers, self._dtype.itemsize)

    def kv_blocks_within(self, kv_cache_bytes: int) -> int:
        """Blocks of cache that this rank can hold in that many bytes; the group uses the smallest count of its ranks."""
        return kv_cache_bytes // (self.kv_bytes_per_token * KV_BLOCK_SIZE)

    def allocate_kv_cache(self, blocks: int) -> None:
        """Allocate the cache, unless there is one of that size. blocks: the same on every rank."""
        if self._cache is not None and self._cache.blocks == blocks:
            return
        self._cache = self._forward = None  # before there is another
        self._cache = KVCache(
            layers=self.shard.layers, blocks=blocks, block_size=KV_BLOCK_SIZE,
            shapes=self.config.cache_shapes(self.shard.kv_heads), dtype=self._dtype, device=self._device,
        )  # fmt: skip
        self._forward = make_forward(self._model, self._rope, self._cache, self._dtype, self._device, self._native)

    @property
    def kernels(self) -> str:
        """Whose kernels run the steps: "torch" or "native"."""
        return "torch" if self._native is None else "native"

    def rejoin(self, groups: RankGroups) -> None:
        """Go on with new peers after a loss; the weights stay. What the KV cache holds is of no more use."""
        self._groups.take_over(groups)

    def spec(self) -> RunnerSpec:
        """Say what the engine must know; the same on every rank once the cache is allocated."""
        assert self._cache is not None, "the KV cache is not allocated"
        shards = self.plan.shards
        item = self._dtype.itemsize
        return RunnerSpec(
            vocab_size=self.config.vocab_size,
            context_window=self.config.context_window,
            eos_token_ids=self.config.eos_token_ids,
            kv_block_size=KV_BLOCK_SIZE,
            kv_blocks=self._cache.blocks,
            kv_bytes_per_token=sum(self.config.kv_bytes_per_token(s.kv_heads, s.layers, item) for s in shards),
            sampling_options=SAMPLING_OPTIONS,
        )

    # ---- steps -----------------------------------------------------------------------------------------------------------

    def execute(self, encoded: bytes) -> bytes | None:
        """Run an encoded StepBatch. Returns the encoded StepResult on the sampling rank, None on the others.

        Raises MalformedBatch, ShardGroupLost.
        """
        result = self.run(StepBatch.decode(encoded))
        return None if result is None else result.encode()

    @torch.inference_mode()
    def run(self, batch: StepBatch) -> StepResult | None:
        """Run a batch; see `execute`."""
        forward = self._forward
        assert self._cache is not None, "the KV cache is not allocated"
        assert forward is not None
        begin_s, collective_s = time.perf_counter(), self._groups.clock.seconds
        tokens = forward.begin(batch.rows)
        self._cache.copy_blocks(batch.copies)
        link = self._groups.pipeline
        received = None
        if link is not None and link.stage > 0:
            received = link.receive((tokens, self.config.hidden_size), self._dtype, self._device)
        hidden = forward.hidden(received)
        result: StepResult | None = None
        if link is not None and link.stage < link.stages - 1:
            link.send(hidden)
        elif any(row.samples for row in batch.rows):
            result = self._sample(forward, batch)
        elif self._groups.tensor is None or self._groups.tensor.rank == 0:
            result = StepResult(())
        self._note(batch, time.perf_counter() - begin_s, self._groups.clock.seconds - collective_s)
        return result

    def finished_timings(self, sequence_id: SequenceId) -> ShardTimings | None:
        """Take what a sequence saw of this rank (it should have ended); None when it never ran here or was asked for before."""
        return self._timings.pop(sequence_id, None) or self._finished.pop(sequence_id, None)

    def _sample(self, forward: Forward, batch: StepBatch) -> StepResult | None:
        rows = [row.sampling for row in batch.rows if row.sampling is not None for _ in range(row.samples)]
        positions = [row.end - row.drafts + n for row in batch.rows for n in range(row.samples)]
        adjustments = [row.adjustment for row in batch.rows for _ in range(row.samples)]
        group = self._groups.tensor
        if group is None and not any(map(needs_whole_logits, rows, adjustments)):
            return StepResult(tuple(forward.greedy()))
        logits = forward.logits()
        if group is None:
            return sample(logits, positions, rows, adjustments)
        stage = self.shard.stage
        vocab_rows = [shard.vocab_rows for shard in self.plan.shards if shard.stage == stage]
        return sample_over_ranks(logits, self.shard.first_vocab_row, vocab_rows, positions, rows, adjustments, group)

    def _note(self, batch: StepBatch, step_s: float, collective_s: float) -> None:
        now_s = time.time()
        for row in batch.rows:
            timings = self._timings.get(row.sequence_id)
            if timings is None:
                timings = self._timings[row.sequence_id] = ShardTimings(now_s - step_s, now_s)
            timings.ended_unix_s = now_s
            timings.collective_s += collective_s
            if len(row.token_ids) > 1:
                timings.prefill_s += step_s
                timings.prefill_steps += 1
            else:
                timings.decode_s += step_s
                timings.decode_steps += 1
        for sequence_id in batch.released:
            if (ended := self._timings.pop(sequence_id, None)) is not None:
                self._finished[sequence_id] = ended
        while len(self._finished) > _KEPT_TIMINGS:
            self._finished.popitem(last=False)


class LocalRunner:
    """A ModelRunner of one rank in this process."""

    def __init__(self, worker: ShardWorker) -> None:
        """Take over a worker that is loaded and has its cache."""
        assert worker.plan.ranks == 1, "a local runner has one rank"
        self.worker = worker
        self._spec = worker.spec()

    @property
    def spec(self) -> RunnerSpec:
        """See ModelRunner."""
        return self._spec

    def execute(self, batch: StepBatch) -> StepResult:
        """See ModelRunner."""
        result = self.worker.run(batch)
        assert result is not None
        return result

    def close(self) -> None:
        """See ModelRunner. Memory goes with the last reference."""
