"""What every plan must be: each part of the model held where it is needed, nothing twice that need not be."""

from __future__ import annotations

from lionrock.planner.memory import ModelShape
from lionrock.planner.plan import ShardPlan


def assert_covers(plan: ShardPlan, shape: ModelShape) -> None:
    """Heads, columns, experts, vocabulary rows and layers, each exactly once; each query head where its KV head is."""
    mixture = shape.experts
    for stage in range(plan.pipeline_parallel):
        shards = [shard for shard in plan.shards if shard.stage == stage]
        parts = [
            ("first_query_head", "query_heads", shape.query_heads),
            ("first_mlp_column", "mlp_columns", shape.mlp_columns),
            ("first_vocab_row", "vocab_rows", shape.vocabulary),
        ]
        if mixture is not None:
            parts.append(("first_expert", "experts", mixture.routed))
            if mixture.shared_columns:
                parts.append(("first_shared_column", "shared_columns", mixture.shared_columns))
        for first, count, total in parts:
            end = 0
            for shard in shards:
                assert getattr(shard, first) == end
                assert getattr(shard, count) >= 1
                end += getattr(shard, count)
            assert end == total
        for shard in shards:
            for head in range(shard.first_query_head, shard.first_query_head + shard.query_heads):
                assert shard.first_kv_head <= head // shape.group < shard.first_kv_head + shard.kv_heads
    layers = [shard for shard in plan.shards if shard.tensor_rank == 0]
    assert [shard.first_layer for shard in layers] == [sum(s.layers for s in layers[:i]) for i in range(len(layers))]
    assert sum(shard.layers for shard in layers) == shape.layers
