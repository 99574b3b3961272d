"""Checkpoints that have every shape and no data: safetensors headers over sparse files, which take no space on disk.

Laid out as publishers lay them out: `config.json`, an index, one file a layer. Tensors are named by the architecture's own rules,
written down here a second time, so that what the engine asks for is held against something.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_ITEM_BYTES = {"BF16": 2, "F32": 4, "F8_E4M3": 1}

Tensors = dict[str, tuple[str, tuple[int, ...]]]
"""Type and shape by name."""

R1_DISTILL_LLAMA_70B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "eos_token_id": 128001,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 64,
    "num_hidden_layers": 80,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
DEEPSEEK_V3: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "eos_token_id": 1,
    "first_k_dense_replace": 3,
    "hidden_act": "silu",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]},
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "v_head_dim": 128,
    "vocab_size": 129280,
}


def llama_tensors(config: Mapping[str, Any]) -> dict[str, Tensors]:
    """Tensors of a Llama checkpoint by file."""
    hidden, columns, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    queries, keys = (config[key] * config["head_dim"] for key in ("num_attention_heads", "num_key_value_heads"))
    files: dict[str, Tensors] = {
        "embedding": {"model.embed_tokens.weight": ("BF16", (vocabulary, hidden))},
        "head": {"model.norm.weight": ("BF16", (hidden,)), "lm_head.weight": ("BF16", (vocabulary, hidden))},
    }
    for layer in range(config["num_hidden_layers"]):
        shapes: dict[str, tuple[int, ...]] = {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, queries),
            "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (columns, hidden),
            "mlp.up_proj": (columns, hidden),
            "mlp.down_proj": (hidden, columns),
        }
        files[f"layer-{layer:03}"] = {f"model.layers.{layer}.{name}.weight": ("BF16", shape) for name, shape in shapes.items()}
    return files


def deepseek_tensors(config: Mapping[str, Any]) -> dict[str, Tensors]:
    """Tensors of a DeepSeek-V3 checkpoint by file: matrices of layers in float8 with scales, the rest in bfloat16."""
    hidden, heads, vocabulary = config["hidden_size"], config["num_attention_heads"], config["vocab_size"]
    plain, rotary, values = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    query_rank, kv_rank = config["q_lora_rank"], config["kv_lora_rank"]
    files: dict[str, Tensors] = {
        "embedding": {"model.embed_tokens.weight": ("BF16", (vocabulary, hidden))},
        "head": {"model.norm.weight": ("BF16", (hidden,)), "lm_head.weight": ("BF16", (vocabulary, hidden))},
    }
    for layer in range(config["num_hidden_layers"]):
        shapes: dict[str, tuple[int, ...]] = {
            "input_layernorm": (hidden,),
            "self_attn.q_a_proj": (query_rank, hidden),
            "self_attn.q_a_layernorm": (query_rank,),
            "self_attn.q_b_proj": (heads * (plain + rotary), query_rank),
            "self_attn.kv_a_proj_with_mqa": (kv_rank + rotary, hidden),
            "self_attn.kv_a_layernorm": (kv_rank,),
            "self_attn.kv_b_proj": (heads * (plain + values), kv_rank),
            "self_attn.o_proj": (hidden, heads * values),
            "post_attention_layernorm": (hidden,),
        }
        mlps = {"mlp": config["intermediate_size"]}
        tensors: Tensors = {}
        if layer >= config["first_k_dense_replace"]:
            columns, experts = config["moe_intermediate_size"], config["n_routed_experts"]
            mlps = {"mlp.shared_experts": columns * config["n_shared_experts"]}
            mlps |= {f"mlp.experts.{expert}": columns for expert in range(experts)}
            tensors[f"model.layers.{layer}.mlp.gate.weight"] = ("BF16", (experts, hidden))
            tensors[f"model.layers.{layer}.mlp.gate.e_score_correction_bias"] = ("F32", (experts,))
        for name, columns in mlps.items():
            shapes |= {f"{name}.gate_proj": (columns, hidden), f"{name}.up_proj": (columns, hidden)}
            shapes[f"{name}.down_proj"] = (hidden, columns)
        for name, shape in shapes.items():
            full = f"model.layers.{layer}.{name}.weight"
            tensors[full] = ("BF16" if len(shape) == 1 else "F8_E4M3", shape)
            if len(shape) == 2:
                tensors[f"{full}_scale_inv"] = ("F32", (-(-shape[0] // 128), -(-shape[1] // 128)))
        files[f"layer-{layer:03}"] = tensors
    return files


def write_shapes(directory: Path, config: Mapping[str, Any], files: Mapping[str, Tensors]) -> dict[str, tuple[int, ...]]:
    """Write the checkpoint. Returns every tensor's shape."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    weight_map: dict[str, str] = {}
    for file, tensors in files.items():
        name = f"{file}.safetensors"
        _write_header(directory / name, tensors)
        weight_map |= dict.fromkeys(tensors, name)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return {name: shape for tensors in files.values() for name, (_, shape) in tensors.items()}


def _write_header(path: Path, tensors: Tensors) -> None:
    header, end = {}, 0
    for name, (kind, shape) in tensors.items():
        size = _ITEM_BYTES[kind]
        for side in shape:
            size *= side
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    encoded = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        file.truncate(8 + len(encoded) + end)


def plans_of(most_ranks: int) -> Iterator[tuple[int, int]]:
    """Every (tensor parallel, pipeline parallel) of up to so many ranks."""
    for ranks in range(1, most_ranks + 1):
        for tensor_parallel in range(1, ranks + 1):
            if ranks % tensor_parallel == 0:
                yield tensor_parallel, ranks // tensor_parallel
