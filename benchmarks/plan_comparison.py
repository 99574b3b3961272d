"""Our shard plans beside the estimates of KAITO, a Kubernetes operator for vLLM, on ten published models: arithmetic, no machine.

KAITO's model (pkg/workspace/estimator/nodesestimator/estimator.go at 056b828, 2026-08-21), written down anew: of a GPU's memory
84 % may be filled; weights take 2 % more than their files; 2.3 GiB and 5 % of the weights are overhead; the KV cache is that of one
sequence, divided by a node's GPUs; the answer is whole nodes. Ours is `lionrock plan` for the same engine (the vllm backend).
Where the two differ, our plan is made again with KAITO's assumptions, one at a time, until it is clear which one it was.

    python -m benchmarks.plan_comparison
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from lionrock.planner.chips import GIB, chip
from lionrock.planner.fitting import Workload
from lionrock.planner.memory import USABLE_SHARE, ModelShape
from lionrock.planner.model_config import shape_of_config, weight_dtype_of_config
from lionrock.planner.replica import Chips, Parallelism, PlanError, ReplicaPlan, plan_replica

GPU: Final = chip("nvidia-h100")
NODE_GPUS: Final = 8

UTILISATION: Final = 0.84
WEIGHT_EXPANSION: Final = 1.02
BASE_OVERHEAD_BYTES: Final = 2.3 * GIB
OVERHEAD_OF_WEIGHTS: Final = 0.05

_BLOCK_FP8: Final = {"quant_method": "fp8", "weight_block_size": [128, 128]}


@dataclass(frozen=True, slots=True)
class Published:
    """A model: figures of its config.json, and the size of its files as KAITO's catalogue states it; None: it is not in there."""

    name: str
    config: Mapping[str, Any]
    files_gib: float | None
    shape: ModelShape = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", shape_of_config(self.config))

    @property
    def weight_dtype(self) -> str | None:
        """Type that its files are written in, which vLLM keeps."""
        return weight_dtype_of_config(self.config)

    @property
    def files_bytes(self) -> float:
        """Bytes of its files."""
        return self.files_gib * GIB if self.files_gib is not None else self.shape.weight_bytes("bfloat16", self.weight_dtype)


def _dense(architecture: str, hidden: int, columns: int, heads: int, kv_heads: int, layers: int, vocabulary: int, window: int,
           **more: Any) -> dict[str, Any]:  # fmt: skip
    return {
        "architectures": [architecture],
        "hidden_size": hidden,
        "intermediate_size": columns,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "num_hidden_layers": layers,
        "vocab_size": vocabulary,
        "max_position_embeddings": window,
        **more,
    }


def _latent(architecture: str, hidden: int, columns: int, heads: int, layers: int, vocabulary: int, **more: Any) -> dict[str, Any]:
    dims = {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
    return _dense(architecture, hidden, columns, heads, heads, layers, vocabulary, 163840, **dims, **more)


MODELS: Final = (
    Published("Mistral-7B-v0.3", _dense("MistralForCausalLM", 4096, 14336, 32, 8, 32, 32768, 32768), 13.50),
    Published("Qwen2.5-Coder-7B-Instruct", _dense("Qwen2ForCausalLM", 3584, 18944, 28, 4, 28, 152064, 32768), 14.19),
    Published("Llama-3.1-8B-Instruct", _dense("LlamaForCausalLM", 4096, 14336, 32, 8, 32, 128256, 131072), 14.96),
    Published("DeepSeek-R1-Distill-Qwen-14B", _dense("Qwen2ForCausalLM", 5120, 13824, 40, 8, 48, 152064, 131072), 27.51),
    Published(
        "DeepSeek-V2-Lite",
        _latent("DeepseekV2ForCausalLM", 2048, 10944, 16, 27, 102400, q_lora_rank=None, moe_intermediate_size=1408,
                n_routed_experts=64, n_shared_experts=2, num_experts_per_tok=6, first_k_dense_replace=1),
        None,
    ),
    Published("Qwen2.5-Coder-32B-Instruct", _dense("Qwen2ForCausalLM", 5120, 27648, 40, 8, 64, 152064, 32768), 61.03),
    Published("Qwen3-32B", _dense("Qwen3ForCausalLM", 5120, 25600, 64, 8, 64, 151936, 40960, head_dim=128), None),
    Published("Llama-3.3-70B-Instruct", _dense("LlamaForCausalLM", 8192, 28672, 64, 8, 80, 128256, 131072), 131.42),
    Published("Qwen2.5-72B-Instruct", _dense("Qwen2ForCausalLM", 8192, 29568, 64, 8, 80, 152064, 32768), None),
    Published(
        "DeepSeek-V3-0324 (FP8)",
        _latent("DeepseekV3ForCausalLM", 7168, 18432, 128, 61, 129280, q_lora_rank=1536, moe_intermediate_size=2048,
                n_routed_experts=256, n_shared_experts=1, num_experts_per_tok=8, first_k_dense_replace=3,
                quantization_config=_BLOCK_FP8),
        641.30,
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class KaitoEstimate:
    """GPUs that its formula asks for, and those of the nodes that it takes."""

    least: int
    taken: int


def kaito(model: Published, context: int) -> KaitoEstimate:
    """Estimate as KAITO does, on nodes of NODE_GPUS."""
    assert GPU.memory_bytes is not None
    kv = context * model.shape.kv_bytes_per_token(model.shape.kv_heads, model.shape.layers, "bfloat16") / NODE_GPUS
    for_weights = (GPU.memory_bytes * UTILISATION - BASE_OVERHEAD_BYTES - kv) / (1 + OVERHEAD_OF_WEIGHTS)
    least = int(model.files_bytes * WEIGHT_EXPANSION / for_weights) + 1
    return KaitoEstimate(least, -(-least // NODE_GPUS) * NODE_GPUS)


def ours(model: Published, workload: Workload, usable_share: float = USABLE_SHARE) -> ReplicaPlan:
    """Plan as `lionrock plan --backend vllm` does, with another usable share if asked."""
    assert GPU.memory_bytes is not None
    memory = round(GPU.memory_bytes * usable_share / USABLE_SHARE)
    chips = Chips(chip=GPU, memory_bytes=memory)
    return plan_replica(model.shape, chips, workload=workload, weight_dtype=model.weight_dtype, backend="vllm")


def why(model: Published, workload: Workload, plan: ReplicaPlan, theirs: KaitoEstimate) -> str:
    """Say which assumption makes the difference."""
    reasons = []
    if plan.chips != theirs.least:
        reasons.append(_difference(model, workload, plan, theirs))
    if theirs.taken != theirs.least:
        reasons.append("whole nodes")
    return "; ".join(reasons) or "the same"


def _difference(model: Published, workload: Workload, plan: ReplicaPlan, theirs: KaitoEstimate) -> str:
    if plan.chips < theirs.least:
        if ours(model, workload, UTILISATION).chips >= theirs.least:
            return "it fills 84 % of a chip, we 92 %"
        return "it adds 7 % of the weights, we count what a step needs"
    one = Workload(sequences=1, tokens_per_sequence=workload.tokens_per_sequence)
    if workload.sequences > 1 and ours(model, one).chips < plan.chips:
        return f"it counts the KV cache of one answer, we of {workload.sequences}"
    impossible = [count for count in range(theirs.least, plan.chips) if not _splits(model, count)]
    if len(impossible) == plan.chips - theirs.least:
        return f"vLLM cannot split it over {' or '.join(map(str, impossible))} evenly"
    return "each rank repeats what latent attention shares, and the fullest rank decides"


def _splits(model: Published, count: int) -> bool:
    """Whether that many GPUs can run the model at all, had they memory without end."""
    endless = Chips(chip=GPU, memory_bytes=1 << 50)
    small = Workload(sequences=1, tokens_per_sequence=16)
    for tensor in range(1, min(count, NODE_GPUS) + 1):
        if count % tensor:
            continue
        cut = Parallelism(tensor, count // tensor)
        try:
            plan_replica(model.shape, endless, workload=small, weight_dtype=model.weight_dtype, parallelism=cut, backend="vllm")
        except PlanError:
            continue
        return True
    return False


def table(sequences: int, tokens: int) -> list[str]:
    """Markdown lines for one workload."""
    lines = ["| Model | Ours | Our plan | KAITO asks | and takes | Why they differ |", "|---|---|---|---|---|---|"]
    workload = Workload(sequences=sequences, tokens_per_sequence=tokens)
    for model in MODELS:
        plan, theirs = ours(model, workload), kaito(model, tokens)
        shards = plan.shards
        cut = f"TP {shards.tensor_parallel} × PP {shards.pipeline_parallel}"
        known = "" if model.files_gib is not None else " *"
        reason = why(model, workload, plan, theirs)
        lines.append(f"| {model.name}{known} | {plan.chips} | {cut} | {theirs.least} | {theirs.taken} | {reason} |")
    return lines


def main() -> None:
    for sequences, tokens in ((1, 2048), (16, 8192)):
        print(f"{sequences} × {tokens} tokens, NVIDIA H100 80 GiB, {NODE_GPUS} a node\n")
        print("\n".join(table(sequences, tokens)) + "\n")
    print("* not in its catalogue: the size of its files is counted from its parameters")


if __name__ == "__main__":
    main()
