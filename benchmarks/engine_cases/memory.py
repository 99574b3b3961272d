"""What a token of KV cache takes of the machine's memory, and what ten thousand short requests leave behind."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.engine_cases.bench import Bench
from benchmarks.peers.process import Peer
from benchmarks.report import Row, row
from lionrock.inference.model.weights import open_weights

STREAMS, PROMPT, OUTPUT = 32, 512, 32
BLOCK = 16  # tokens
REQUESTS, WARM_UP = 10_000, 5_000
MOST_GROWTH_MIB = 4.0
_BFLOAT16_BYTES = 2


def measure(bench: Bench) -> list[Row]:
    """Measure both."""
    return _kv_bytes(bench) + _growth(bench)


def _kv_bytes(bench: Bench) -> list[Row]:
    """Fill two caches, each with room for exactly the tokens that come, and divide what they differ by."""
    config = open_weights(bench.gguf).config
    formula = 2 * config.layers * config.kv_heads * config.head_dim * _BFLOAT16_BYTES
    held_mib: dict[int, float] = {}
    for streams in (STREAMS // 2, STREAMS):
        tokens = streams * (PROMPT + OUTPUT)
        name = f"lionrock, room for {tokens} tokens"
        with Peer(bench.lionrock(name, kv_cache_bytes=tokens * formula), bench.logs) as peer:
            loaded_mib = peer.anonymous_mib()  # the cache's pages are not touched yet
            peer.answer(bench.prompts(1, STREAMS, BLOCK), 2)  # the buffers of many rows, alike in both
            peer.answer(bench.prompts(2, streams, PROMPT), OUTPUT)
            held_mib[tokens] = peer.anonymous_mib() - loaded_mib
            stated = float(peer.call("kv_bytes_per_token"))
    (fewer, less_mib), (more, more_mib) = held_mib.items()
    measured = (more_mib - less_mib) * 2**20 / (more - fewer)
    return [
        row(f"KV cache of a token, {how}", [value], "B", "lower", baseline="formula", baseline_values=[float(formula)])
        for how, value in (("as the engine states it", stated), ("as memory is taken", measured))
    ]


def _growth(bench: Bench) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="lionrock-bench-") as directory:
        model = Path(directory)
        _write_tiny(model)
        name = "lionrock, tiny model"
        command = bench.lionrock(name, model=str(model), kv_cache_bytes=4 << 20, prefix_cache=True, max_drafts=8)
        with bench.running([command]) as peers:
            peer = peers[name]
            peer.call("churn", requests=WARM_UP, seed=1)
            before_mib = peer.anonymous_mib()
            took_s = float(peer.call("churn", requests=REQUESTS, seed=2, timeout_s=600))
            after_mib = peer.anonymous_mib()
    case = f"growth over {REQUESTS} short requests ({before_mib:.1f} to {after_mib:.1f} MiB)"
    grown = [max(after_mib - before_mib, 0.0)]
    return [
        row(case, grown, "MiB", "lower", baseline="limit", baseline_values=[MOST_GROWTH_MIB]),
        row("requests a second of a tiny model", [REQUESTS / took_s], "req/s", "higher"),
    ]


def _write_tiny(directory: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        head_dim=32, max_position_embeddings=512, tie_word_embeddings=True,
    )  # fmt: skip
    model: object = LlamaForCausalLM(config).to(torch.bfloat16)  # type: ignore[arg-type]
    model.save_pretrained(directory)  # type: ignore[attr-defined]
