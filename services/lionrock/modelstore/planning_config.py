"""What planning must know of a model, in the keys of config.json, from the files of the model. No weights are read.

Small enough to be the last words of a pod (Kubernetes keeps 4,096 bytes). Knows which keys planning reads; does not know what they
mean for memory (`lionrock.planner.model_config`). A GGUF file has the same facts under other names. Sources: the GGUF
specification, and Hugging Face `LlamaConfig`, `Qwen2Config`, `Qwen3Config`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from lionrock.modelstore.errors import ModelFileCorrupt, ModelFormatUnsupported
from lionrock.modelstore.facts import CONFIG_MAX_BYTES, read_json
from lionrock.modelstore.gguf_metadata import read_gguf_header
from lionrock.modelstore.source import locate

MAX_BYTES: Final = 4096
"""Of the JSON text: what Kubernetes keeps of a container's termination message."""

_KEYS: Final = (
    "architectures",
    "attention_bias",
    "first_k_dense_replace",
    "head_dim",
    "hidden_size",
    "intermediate_size",
    "kv_lora_rank",
    "max_position_embeddings",
    "mlp_bias",
    "moe_intermediate_size",
    "moe_layer_freq",
    "n_routed_experts",
    "n_shared_experts",
    "num_attention_heads",
    "num_experts_per_tok",
    "num_hidden_layers",
    "num_key_value_heads",
    "q_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "tie_word_embeddings",
    "v_head_dim",
    "vocab_size",
)
_PARTS: Final = {
    "quantization_config": ("quant_method", "weight_block_size"),
    "rope_parameters": ("rope_type", "type", "factor", "original_max_position_embeddings"),
    "rope_scaling": ("rope_type", "type", "factor", "original_max_position_embeddings"),
}
_GGUF_ARCHITECTURES: Final = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}


def planning_config(path: Path) -> dict[str, Any]:
    """Return the facts of the model there: a GGUF file, a store entry, or a directory with one of them or with config.json.

    Raises ModelStoreError.
    """
    if path.is_dir() and (path / "config.json").is_file():
        return _selected(read_json(path / "config.json", CONFIG_MAX_BYTES))
    files = locate("model", path)
    if files.format == "gguf":
        return _of_gguf(files.files[0])
    return _selected(read_json(files.directory / "config.json", CONFIG_MAX_BYTES))


def planning_text(path: Path) -> str:
    """Return the same as one line of JSON of at most MAX_BYTES bytes. Raises ModelStoreError."""
    text = json.dumps(planning_config(path), sort_keys=True, separators=(",", ":"))
    if len(text.encode()) > MAX_BYTES:
        raise ModelFileCorrupt(f"what {path} says of the model's shape takes more than {MAX_BYTES} bytes")
    return text


def _selected(config: Mapping[str, Any]) -> dict[str, Any]:
    inner = config.get("text_config")
    if isinstance(inner, Mapping):  # a multimodal wrapper: the language model's own facts
        config = {**config, **inner}
    found = {key: config[key] for key in _KEYS if config.get(key) is not None}
    for key, parts in _PARTS.items():
        value = config.get(key)
        if isinstance(value, Mapping):
            found[key] = {part: value[part] for part in parts if value.get(part) is not None}
    return found


def _of_gguf(path: Path) -> dict[str, Any]:
    header = read_gguf_header(path)
    metadata, names = header.metadata, {tensor.name for tensor in header.tensors}
    architecture = metadata.get("general.architecture")
    if architecture not in _GGUF_ARCHITECTURES:
        raise ModelFormatUnsupported(f"GGUF architecture {architecture!r} is not one of {', '.join(_GGUF_ARCHITECTURES)}")
    rows = next((tensor.shape[-1] for tensor in header.tensors if tensor.name == "token_embd.weight"), None)
    found = {
        "architectures": [_GGUF_ARCHITECTURES[architecture]],
        "attention_bias": "blk.0.attn_q.bias" in names,
        "head_dim": metadata.get(f"{architecture}.attention.key_length"),
        "hidden_size": metadata.get(f"{architecture}.embedding_length"),
        "intermediate_size": metadata.get(f"{architecture}.feed_forward_length"),
        "max_position_embeddings": metadata.get(f"{architecture}.context_length"),
        "mlp_bias": "blk.0.ffn_up.bias" in names,
        "num_attention_heads": metadata.get(f"{architecture}.attention.head_count"),
        "num_hidden_layers": metadata.get(f"{architecture}.block_count"),
        "num_key_value_heads": metadata.get(f"{architecture}.attention.head_count_kv"),
        "tie_word_embeddings": "output.weight" not in names,
        "vocab_size": rows,
    }
    # Qwen3's heads have 128 columns where its files do not say; Llama's and Qwen2's share the hidden size.
    return {key: value for key, value in found.items() if value is not None}
