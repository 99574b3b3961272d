import contextlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import save_llama
from gguf import GGMLQuantizationType, GGUFWriter, RopeScalingType
from gguf.quants import dequantize, quantize
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_models import logits_of
from transformers import Qwen3Config, Qwen3ForCausalLM

from lionrock.inference.model.config import ModelConfig
from lionrock.inference.model.config_json import from_config_json
from lionrock.inference.model.errors import MalformedWeights, MissingTensor, ModelError, TruncatedWeights, UnsupportedModel
from lionrock.inference.model.gguf_file import GgufFile
from lionrock.inference.model.transformer import Transformer, load_weights
from lionrock.inference.model.weights import open_weights

LAYERS, HIDDEN, COLUMNS, VOCAB, HEADS, KV_HEADS, HEAD_DIM = 2, 64, 96, 160, 4, 2, 16
GGUF_PARTS = {
    "attn_norm": (HIDDEN,),
    "attn_q": (HEADS * HEAD_DIM, HIDDEN),
    "attn_k": (KV_HEADS * HEAD_DIM, HIDDEN),
    "attn_v": (KV_HEADS * HEAD_DIM, HIDDEN),
    "attn_output": (HIDDEN, HEADS * HEAD_DIM),
    "ffn_norm": (HIDDEN,),
    "ffn_gate": (COLUMNS, HIDDEN),
    "ffn_up": (COLUMNS, HIDDEN),
    "ffn_down": (HIDDEN, COLUMNS),
}


METADATA: dict[str, Any] = {
    "block_count": LAYERS,
    "context_length": 64,
    "embedding_length": HIDDEN,
    "feed_forward_length": COLUMNS,
    "head_count": HEADS,
    "head_count_kv": KV_HEADS,
    "layer_norm_rms_eps": 1e-5,
    "rope_freq_base": 10000.0,
    "token_list": [f"token-{n}" for n in range(VOCAB)],
    "eos_token_id": 2,
}


def write_gguf(
    path: Path, kind: GGMLQuantizationType = GGMLQuantizationType.Q4_1, architecture: str = "llama", **metadata: Any
) -> Path:
    """Write a small random Llama. metadata: other values, by the names of GGUFWriter's methods."""
    generator = np.random.default_rng(0)
    writer = GGUFWriter(path, architecture)
    for name, value in {**METADATA, **metadata}.items():
        getattr(writer, f"add_{name}")(value)

    def add(name: str, shape: tuple[int, ...]) -> None:
        values = (generator.standard_normal(shape) * 0.1).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)

    parts = {**GGUF_PARTS, "attn_q_norm": (HEAD_DIM,), "attn_k_norm": (HEAD_DIM,)} if architecture == "qwen3" else GGUF_PARTS
    add("token_embd.weight", (VOCAB, HIDDEN))
    for layer in range(LAYERS):
        for part, shape in parts.items():
            add(f"blk.{layer}.{part}.weight", shape)
    add("output_norm.weight", (HIDDEN,))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def load(path: Path) -> None:
    """Open and read everything."""
    source = open_weights(path)
    load_weights(Transformer(source.config), source, torch.float32, torch.device("cpu"), lambda *_: None)


KINDS = [GGMLQuantizationType[name] for name in ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_any_slice_of_any_type_equals_the_gguf_packages_dequantisation(tmp_path: Path, kind: GGMLQuantizationType) -> None:
    values = np.random.default_rng(1).standard_normal((40, 256)).astype(np.float32)
    raw = quantize(values, kind)
    writer = GGUFWriter(tmp_path / "t.gguf", "llama")
    writer.add_tensor("t", raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    expected = torch.from_numpy(dequantize(raw, kind))
    file = GgufFile(tmp_path / "t.gguf")
    for rows, columns in (
        (range(40), range(256)),
        (range(7, 9), range(64, 128)),
        (range(39, 40), range(5, 250)),
        (range(1), range(1)),
    ):
        found = file.read("t", rows, columns, torch.float32)
        assert torch.equal(found, expected[rows.start : rows.stop, columns.start : columns.stop])


def test_a_written_model_loads_and_answers(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "small.gguf")
    assert open_weights(path).config == ModelConfig(
        architecture="llama",
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        layers=LAYERS,
        query_heads=HEADS,
        kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        mlp_columns=COLUMNS,
        context_window=64,
        norm_epsilon=open_weights(path).config.norm_epsilon,
        rope=open_weights(path).config.rope,
        tied_embeddings=True,
        eos_token_ids=frozenset({2}),
    )
    assert logits_of(path, [1, 2, 3]).isfinite().all()


def test_query_rows_come_back_in_the_order_of_the_checkpoint(tmp_path: Path) -> None:
    """llama.cpp's converter turns a head's two halves into pairs; the reader turns them back."""
    path = write_gguf(tmp_path / "small.gguf", kind=GGMLQuantizationType.F32)
    stored = GgufFile(path).read("blk.0.attn_q.weight", None, None, torch.float32)
    name, shape = "model.layers.0.self_attn.q_proj.weight", (HEADS * HEAD_DIM, HIDDEN)
    checkpoint = open_weights(path).read(name, shape, range(shape[0]), range(HIDDEN), torch.float32)
    converted = checkpoint.view(HEADS, 2, HEAD_DIM // 2, HIDDEN).transpose(1, 2).reshape(shape)
    assert torch.equal(converted, stored)
    second_head = open_weights(path).read(name, shape, range(HEAD_DIM, 2 * HEAD_DIM), range(HIDDEN), torch.float32)
    assert torch.equal(second_head, checkpoint[HEAD_DIM : 2 * HEAD_DIM])


def test_a_qwen3_file_equals_transformers_with_its_tensors(tmp_path: Path) -> None:
    """Norms of heads are read under llama.cpp's names, and rows of queries and keys stay as they lie."""
    path = write_gguf(tmp_path / "small.gguf", kind=GGMLQuantizationType.F32, architecture="qwen3")
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=COLUMNS,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )
    model, source = Qwen3ForCausalLM(config).eval(), open_weights(path)
    state = {
        name: source.read(name, tuple(tensor.shape), range(tensor.shape[0]), columns_of(tensor), torch.float32)
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    model.load_state_dict({**state, "lm_head.weight": state["model.embed_tokens.weight"]})
    stored = GgufFile(path).read("blk.1.attn_k.weight", None, None, torch.float32)
    assert torch.equal(state["model.layers.1.self_attn.k_proj.weight"], stored)
    with torch.inference_mode():
        expected = model(torch.tensor([[5, 9, 80, 3]])).logits[0]
    assert (logits_of(path, [5, 9, 80, 3]) - expected).abs().max() < 1e-4


def columns_of(tensor: torch.Tensor) -> range | None:
    return None if tensor.dim() == 1 else range(tensor.shape[1])


def test_progress_ends_with_everything_read(tmp_path: Path) -> None:
    source = open_weights(write_gguf(tmp_path / "small.gguf"))
    seen: list[tuple[int, int]] = []
    load_weights(Transformer(source.config), source, torch.float32, torch.device("cpu"), lambda *progress: seen.append(progress))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]


def test_every_truncation_of_a_gguf_file_is_named(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "whole.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in [*range(0, 3000, 37), *range(3000, len(whole) - 1, 4001), len(whole) - 1]:
        cut.write_bytes(whole[:length])
        with pytest.raises(TruncatedWeights):
            load(cut)


@pytest.fixture(scope="module")
def small_gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "whole.gguf").read_bytes()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_gguf_header_gives_a_named_error_or_a_model(
    tmp_path: Path, small_gguf: bytes, damage: list[tuple[int, int]]
) -> None:
    data = bytearray(small_gguf)
    for at, value in damage:
        data[at] = value
    path = tmp_path / "damaged.gguf"
    path.write_bytes(data)
    with contextlib.suppress(ModelError):
        load(path)


@pytest.mark.parametrize(
    ("metadata", "error"),
    [
        ({"block_count": 3}, MissingTensor),
        ({"feed_forward_length": 128}, MalformedWeights),
        ({"head_count_kv": 4}, MalformedWeights),
        ({"head_count": 0}, MalformedWeights),
        ({"head_count": 3}, MalformedWeights),
        ({"block_count": 1 << 31}, MalformedWeights),
        ({"expert_count": 8}, UnsupportedModel),
        ({"architecture": "mystery"}, UnsupportedModel),
        ({"rope_scaling_type": RopeScalingType.YARN}, UnsupportedModel),
        ({"rope_dimension_count": 8}, UnsupportedModel),
    ],
    ids=str,
)
def test_a_mislabelled_gguf_file_is_refused_by_name(tmp_path: Path, metadata: dict[str, Any], error: type[ModelError]) -> None:
    path = write_gguf(tmp_path / "wrong.gguf", **metadata)
    with pytest.raises(error):
        load(path)


def damage_safetensors(path: Path, header: Callable[[dict[str, object]], None]) -> None:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    content = json.loads(data[8 : 8 + length])
    header(content)
    encoded = json.dumps(content).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data[8 + length :])


def test_every_truncation_of_a_safetensors_file_is_named(tmp_path: Path) -> None:
    save_llama(tmp_path)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    for length in [*range(0, 3000, 211), len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(TruncatedWeights):
            load(tmp_path)


def test_a_mislabelled_safetensors_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    save_llama(tmp_path)
    path, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    whole, settings_ = path.read_bytes(), json.loads(config.read_text())

    damage_safetensors(path, lambda header: header.pop("model.norm.weight"))
    with pytest.raises(MalformedWeights):
        load(tmp_path)

    damage_safetensors(
        path, lambda header: header.update({"model.layers.0.mlp.up_proj.wait": header.pop("model.layers.0.mlp.up_proj.weight")})
    )
    with pytest.raises(MalformedWeights):
        load(tmp_path)

    path.write_bytes(whole)
    for key, value, error in (
        ("intermediate_size", 113, MalformedWeights),
        ("num_hidden_layers", 4, MissingTensor),
        ("num_key_value_heads", 2, MalformedWeights),
        ("num_attention_heads", "six", MalformedWeights),
        ("hidden_size", -48, MalformedWeights),
        ("model_type", "mystery", UnsupportedModel),
        ("hidden_act", "gelu", UnsupportedModel),
        ("quantization_config", {"quant_method": "fp8"}, UnsupportedModel),
        ("quantization_config", {"quant_method": "awq", "weight_block_size": [128, 128]}, UnsupportedModel),
        ("quantization_config", {"quant_method": "fp8", "fmt": "e5m2", "weight_block_size": [128, 128]}, UnsupportedModel),
        ("quantization_config", {"quant_method": "fp8", "weight_block_size": [128]}, MalformedWeights),
        ("quantization_config", {"quant_method": "fp8", "weight_block_size": [0, 128]}, MalformedWeights),
        ("quantization_config", "fp8", MalformedWeights),
        ("rope_parameters", {"rope_type": "longrope", "factor": 4.0}, UnsupportedModel),
        ("rope_parameters", {"rope_type": "yarn", "factor": 4.0, "beta_fast": 1.0, "beta_slow": 2.0}, MalformedWeights),
        ("rope_parameters", {"rope_type": "default", "partial_rotary_factor": 0.5}, UnsupportedModel),
        ("rope_parameters", 7, MalformedWeights),
    ):
        config.write_text(json.dumps({**settings_, key: value}))
        with pytest.raises(error):
            load(tmp_path)


@pytest.mark.parametrize(
    "index",
    [
        {"weight_map": {"model.norm.weight": "../elsewhere.safetensors"}},
        {"weight_map": {"model.norm.weight": "absent.safetensors"}},
        {"weight_map": {"model.norm.weight": 7}},
        {"weight_map": {"model.nothing.weight": "model.safetensors"}},
        {"weight_map": {}},
        {},
    ],
)
def test_a_lying_index_is_refused_by_name(tmp_path: Path, index: dict[str, object]) -> None:
    save_llama(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(MalformedWeights):
        load(tmp_path)


_KEYS = [
    *("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("intermediate_size", "max_position_embeddings", "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters"),
    *("eos_token_id", "layer_types", "hidden_act"),
]
_ROPE = st.dictionaries(st.sampled_from(["rope_type", "factor", "rope_theta"]), st.floats() | st.text(max_size=8), max_size=3)
_NUMBERS = st.booleans() | st.integers(-(2**70), 2**70) | st.floats()
_JSON = st.none() | _NUMBERS | st.text(max_size=5) | st.lists(st.integers() | _ROPE, max_size=2) | _ROPE


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(_KEYS), _JSON))
def test_any_config_json_gives_a_configuration_or_a_named_error(changes: dict[str, object]) -> None:
    sound = {
        "model_type": "llama",
        "vocab_size": 100,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
    }
    with contextlib.suppress(ModelError):
        from_config_json({**sound, **changes})
