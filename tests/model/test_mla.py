"""Latent attention: the absorbed and the expanded way against one naive reference, over paged caches."""

from pathlib import Path

import pytest
import torch
from checkpoints import DEEPSEEK_YARN, LATENT, save_model
from small_models import engine_over, local_runner, mixed_requests, run_requests

from lionrock.inference.engine.batch import BatchRow
from lionrock.inference.engine.sequence import SequenceId
from lionrock.inference.model.attention import KVCache, StepLayout, lay_out
from lionrock.inference.model.config import MlaConfig, ModelConfig
from lionrock.inference.model.layers import RotaryEmbedding, Rotation
from lionrock.inference.model.mla import LatentAttention, absorbing_is_cheaper
from lionrock.inference.model.weights import open_weights
from lionrock.inference.model.worker import KV_BLOCK_SIZE

CPU = torch.device("cpu")
BLOCKS = 24


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("v3")
    save_model("deepseek_v3", directory, rope_parameters=DEEPSEEK_YARN)
    return directory


class Paged:
    """One layer's attention with a cache, and what was put into it."""

    def __init__(self, checkpoint: Path) -> None:
        source = open_weights(checkpoint)
        self.config: ModelConfig = source.config
        self.attention = LatentAttention(self.config, "model.layers.0.self_attn")
        for weight in self.attention.weights():
            weight.load(source, torch.float32, CPU)
            weight.finish()
        self.rope = RotaryEmbedding(self.config.rope, self.config.rotary_dim, 256, torch.float32, CPU)
        self.cache = KVCache(
            layers=1,
            blocks=BLOCKS,
            block_size=KV_BLOCK_SIZE,
            shapes=self.config.cache_shapes(1),
            dtype=torch.float32,
            device=CPU,
        )

    def run(self, x: torch.Tensor, rows: list[BatchRow]) -> torch.Tensor:
        layout = lay_out(rows, KV_BLOCK_SIZE, CPU)
        return self.attention(x, self._rotation(layout), self.cache.layers[0], layout)

    def naive(self, x: torch.Tensor) -> torch.Tensor:
        """Causal attention over a whole sequence, one head and one query at a time, with no cache."""
        a, mla = self.attention, self.config.mla
        assert mla is not None
        assert a.query_norm is not None
        positions = torch.arange(len(x))
        rotation = self.rope.at(positions)
        compressed = a.compress(x)
        queries = a.queries(a.query_norm(compressed[:, : -mla.cached_dim])).view(len(x), -1, mla.qk_head_dim)
        latent = a.latent_norm(compressed[:, -mla.cached_dim : -mla.qk_rope_head_dim])
        shared = rotation(compressed[:, None, -mla.qk_rope_head_dim :])[:, 0]
        rotated = rotation(queries[..., mla.qk_nope_head_dim :])
        unpacked = (latent @ a.unpack.data.T).view(len(x), -1, mla.qk_nope_head_dim + mla.v_head_dim)
        heads = []
        for head in range(a.query_heads):
            keys, values = unpacked[:, head].split([mla.qk_nope_head_dim, mla.v_head_dim], dim=-1)
            rows = []
            for t in range(len(x)):
                scores = keys[: t + 1] @ queries[t, head, : mla.qk_nope_head_dim] + shared[: t + 1] @ rotated[t, head]
                rows.append((scores * a.scale).softmax(0) @ values[: t + 1])
            heads.append(torch.stack(rows))
        return a.output(torch.stack(heads, dim=1).flatten(1))

    def _rotation(self, layout: StepLayout) -> Rotation:
        return self.rope.at(layout.positions)


def row(sequence: int, start: int, end: int, table: list[int]) -> BatchRow:
    return BatchRow(SequenceId(sequence), start, [0] * (end - start), table[: -(-end // KV_BLOCK_SIZE)], None)


@pytest.mark.parametrize("cheaper", [True, False], ids=["absorbed", "expanded"])
def test_prefill_chunks_and_decoding_equal_the_naive_reference(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, cheaper: bool
) -> None:
    monkeypatch.setattr("lionrock.inference.model.mla.absorbing_is_cheaper", lambda *_: cheaper)
    monkeypatch.setattr("lionrock.inference.model.mla._MAX_EXPANDED", 5000)  # heads take turns
    paged = Paged(checkpoint)
    generator = torch.Generator().manual_seed(3)
    long, short = (torch.randn(n, paged.config.hidden_size, generator=generator) for n in (60, 30))
    scattered, consecutive = [9, 2, 17, 4], [11, 12]
    first = paged.run(torch.cat((long[:40], short[:7])), [row(0, 0, 40, scattered), row(1, 0, 7, consecutive)])
    second = paged.run(
        torch.cat((short[7:8], long[40:50])), [row(0, 40, 50, scattered), row(1, 7, 8, consecutive)]
    )  # the decoding row lies first
    third = paged.run(torch.stack((long[50], short[8])), [row(0, 50, 51, scattered), row(1, 8, 9, consecutive)])
    alone = paged.run(long[51:52], [row(0, 51, 52, scattered)])
    of_long, of_short = paged.naive(long), paged.naive(short)
    assert torch.allclose(first, torch.cat((of_long[:40], of_short[:7])), atol=1e-5)
    assert torch.allclose(second, torch.cat((of_short[7:8], of_long[40:50])), atol=1e-5)
    assert torch.allclose(third, torch.stack((of_long[50], of_short[8])), atol=1e-5)
    assert torch.allclose(alone, of_long[51:52], atol=1e-5)


def test_absorbing_pays_for_few_queries_and_expanding_for_many() -> None:
    published = MlaConfig(q_lora_rank=1536, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128)
    assert absorbing_is_cheaper(published, 8, 4096)
    assert not absorbing_is_cheaper(published, 2048, 4096)
    assert not absorbing_is_cheaper(published, 512, 512)


def test_the_cache_takes_the_latent_and_the_rotated_part_only(checkpoint: Path) -> None:
    runner = local_runner(checkpoint, kv_blocks=8)
    per_token = (LATENT["kv_lora_rank"] + LATENT["qk_rope_head_dim"]) * LATENT["num_hidden_layers"] * 4
    assert runner.spec.kv_bytes_per_token == per_token
    held = [tensor for layer in runner.worker._cache.layers for tensor in layer]  # type: ignore[union-attr]
    assert sum(tensor.numel() * tensor.element_size() for tensor in held) == per_token * 8 * KV_BLOCK_SIZE


def test_copied_blocks_hold_the_same_entries(checkpoint: Path) -> None:
    paged = Paged(checkpoint)
    x = torch.randn(20, paged.config.hidden_size, generator=torch.Generator().manual_seed(4))
    paged.run(x[:19], [row(0, 0, 19, [3, 5])])
    paged.cache.copy_blocks([(3, 7), (5, 8)])
    original = paged.run(x[19:], [row(0, 19, 20, [3, 5])])
    assert torch.equal(paged.run(x[19:], [row(1, 19, 20, [7, 8])]), original)


def test_an_engine_over_latent_attention_answers_alike_alone_in_batches_in_chunks_and_preempted(checkpoint: Path) -> None:
    requests = mixed_requests(331)
    runner = local_runner(checkpoint)
    alone: dict[str, tuple[int, ...]] = {}
    for request in requests:
        alone |= run_requests(engine_over(runner), [request])
    assert run_requests(engine_over(runner), requests) == alone
    assert run_requests(engine_over(runner, max_running=6, max_step_tokens=11), requests) == alone
    assert run_requests(engine_over(local_runner(checkpoint, kv_blocks=7), max_running=6), requests) == alone
