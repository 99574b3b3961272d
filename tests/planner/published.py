"""Sizes of published checkpoints, as their `config.json` states them, and how many parameters their publishers count.

The counts are those of the checkpoints' own index (`metadata.total_size` over two bytes a parameter) where that is in bfloat16.
"""

from __future__ import annotations

from typing import Any

from lionrock.planner.model_config import shape_of_config

_SMOLLM2: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 576,
    "intermediate_size": 1536,
    "max_position_embeddings": 8192,
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
    "vocab_size": 49152,
}
R1_DISTILL_LLAMA_70B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_attention_heads": 64,
    "num_hidden_layers": 80,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
    "vocab_size": 128256,
}
_QWEN25_32B: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 5120,
    "intermediate_size": 27648,
    "max_position_embeddings": 131072,
    "num_attention_heads": 40,
    "num_hidden_layers": 64,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
    "vocab_size": 152064,
}
_QWEN3_32B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "hidden_size": 5120,
    "intermediate_size": 25600,
    "max_position_embeddings": 40960,
    "num_attention_heads": 64,
    "num_hidden_layers": 64,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
    "vocab_size": 151936,
}
_DEEPSEEK_V2_LITE: dict[str, Any] = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "attention_bias": False,
    "first_k_dense_replace": 1,
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "moe_intermediate_size": 1408,
    "moe_layer_freq": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_attention_heads": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 27,
    "num_key_value_heads": 16,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "tie_word_embeddings": False,
    "v_head_dim": 128,
    "vocab_size": 102400,
}
_DEEPSEEK_V2: dict[str, Any] = _DEEPSEEK_V2_LITE | {
    "hidden_size": 5120,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
    "n_routed_experts": 160,
    "num_attention_heads": 128,
    "num_hidden_layers": 60,
    "num_key_value_heads": 128,
    "q_lora_rank": 1536,
}
DEEPSEEK_V3: dict[str, Any] = _DEEPSEEK_V2 | {
    "architectures": ["DeepseekV3ForCausalLM"],
    "first_k_dense_replace": 3,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]},
    "vocab_size": 129280,
}

COUNTS: dict[str, tuple[dict[str, Any], int]] = {
    "SmolLM2-135M": (_SMOLLM2, 134_515_008),
    "R1-Distill-Llama-70B": (R1_DISTILL_LLAMA_70B, 70_553_706_496),
    "Qwen2.5-32B": (_QWEN25_32B, 32_763_876_352),
    "Qwen3-32B": (_QWEN3_32B, 32_762_123_264),
    "DeepSeek-V2-Lite": (_DEEPSEEK_V2_LITE, 15_706_484_224),
    "DeepSeek-V2": (_DEEPSEEK_V2, 235_741_434_880),
    "DeepSeek-V3": (DEEPSEEK_V3, 671_026_419_200),
}
"""V3 without the layer for multi-token prediction, and with one correction bias an expert."""

SMOLLM2 = shape_of_config(_SMOLLM2)
LLAMA_70B = shape_of_config(R1_DISTILL_LLAMA_70B)
V2_LITE = shape_of_config(_DEEPSEEK_V2_LITE)
V3 = shape_of_config(DEEPSEEK_V3)
