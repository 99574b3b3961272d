from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_models
import torch
from checkpoints import save_llama, save_model
from gguf.quants import dequantize
from small_models import engine_over, local_runner, logits_of, run_requests
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

from lionrock.inference.engine.batch import GREEDY, BatchRow, StepBatch
from lionrock.inference.engine.sequence import Request, RequestId, Sampling, SequenceId
from lionrock.inference.model.gguf_file import GgufFile

TOLERANCE = 1e-4


@pytest.fixture(params=["off", "required"], autouse=True)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's and the native kernels, each held to the same reference."""
    if request.param == "required" and small_models.DEVICE != "cpu":
        pytest.skip("native kernels are for CPUs")
    monkeypatch.setattr(small_models, "KERNELS", request.param)


LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "grouped queries": {},
    "one KV head a query head": {"num_key_value_heads": 6},
    "a single KV head": {"num_key_value_heads": 1},
    "tied embeddings": {"tie_word_embeddings": True},
    "a head size of its own": {"head_dim": 20},
    "biases everywhere": {"attention_bias": True, "mlp_bias": True},
    "llama3 rope scaling": {"rope_parameters": {**LLAMA3_ROPE, "rope_theta": 500.0}},
    "linear rope scaling": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
}


def reference_logits(model: Any, token_ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([token_ids])).logits[0]


def random_ids(vocab_size: int, count: int) -> list[int]:
    return torch.randint(0, vocab_size, (count,), generator=torch.Generator().manual_seed(1)).tolist()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_of_small_llama_checkpoints_equal_transformers(tmp_path: Path, name: str) -> None:
    model = save_llama(tmp_path, **ARCHITECTURES[name])
    token_ids = random_ids(331, 70)
    expected = reference_logits(model, token_ids)
    for chunks in (None, [33, 1, 1, 35]):
        assert (logits_of(tmp_path, token_ids, chunks=chunks) - expected).abs().max() < TOLERANCE


def test_logits_of_a_small_qwen2_checkpoint_equal_transformers(tmp_path: Path) -> None:
    model = save_model("qwen2", tmp_path, tie_word_embeddings=True)
    token_ids = random_ids(331, 40)
    assert (logits_of(tmp_path, token_ids) - reference_logits(model, token_ids)).abs().max() < TOLERANCE


def test_a_checkpoint_in_many_files_equals_one_in_a_single_file(tmp_path: Path) -> None:
    save_llama(tmp_path / "one")
    save_llama(tmp_path / "many", shard_size="40KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    token_ids = random_ids(331, 30)
    assert torch.equal(logits_of(tmp_path / "one", token_ids), logits_of(tmp_path / "many", token_ids))


@pytest.fixture(scope="module")
def transformers_smollm2(smollm2: Path) -> Any:
    """The real model in transformers: dequantised by the gguf package, rows put in order by transformers' own converter.

    `from_pretrained(gguf_file=…)` gives the same tensors, but takes half a minute to parse the tokenizer that it does not need.
    """
    file = GgufFile(smollm2)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval()
    order = LlamaTensorProcessor(config=config.to_dict())
    state = {}
    for name, gguf_name in gguf_names(config.num_hidden_layers).items():
        tensor = file.tensors[gguf_name]
        rows = 1 if len(tensor.shape) == 1 else tensor.shape[0]
        raw = np.fromfile(smollm2, np.uint8, rows * tensor.row_bytes, offset=tensor.offset).reshape(rows, tensor.row_bytes)
        values = dequantize(raw, tensor.kind).reshape(tensor.shape)
        state[name] = torch.from_numpy(np.array(order.process(values, gguf_name).weights))
    model.load_state_dict({**state, "lm_head.weight": state["model.embed_tokens.weight"]})
    return model


def gguf_names(layers: int) -> dict[str, str]:
    """Names of a Llama checkpoint's tensors in GGUF."""
    parts = {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    names = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    for layer in range(layers):
        names |= {f"model.layers.{layer}.{ours}.weight": f"blk.{layer}.{theirs}.weight" for ours, theirs in parts.items()}
    return names


# "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
CHAT = [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198]


def test_logits_of_the_real_model_equal_transformers(smollm2: Path, transformers_smollm2: Any) -> None:
    expected = reference_logits(transformers_smollm2, CHAT)
    for chunks in (None, [10, 1, 5]):
        assert (logits_of(smollm2, CHAT, chunks=chunks) - expected).abs().max() < TOLERANCE


def test_on_random_tokens_the_real_model_is_as_near_to_double_precision_as_transformers(
    smollm2: Path, transformers_smollm2: Any
) -> None:
    """Random tokens provoke logits above 30, where two float32 implementations of one model differ by more than 1e-4."""
    token_ids = random_ids(49152, 64)
    theirs, ours = reference_logits(transformers_smollm2, token_ids), logits_of(smollm2, token_ids, chunks=[40, 24])
    exact = reference_logits(transformers_smollm2.double(), token_ids)
    transformers_smollm2.float()
    assert (ours - exact).abs().max() < 1.5 * (theirs - exact).abs().max()


def test_bfloat16_agrees_with_float32_on_nearly_every_most_likely_token(smollm2: Path) -> None:
    """Teacher-forced on the float32 model's own answer, where a language model's margins are wide."""
    request = Request(RequestId("exact"), tuple(CHAT), Sampling(max_tokens=40, ignore_eos=True))
    answer = [*CHAT, *run_requests(engine_over(local_runner(smollm2)), [request])["exact"]]
    runner = local_runner(smollm2, dtype="bfloat16")
    agreed = 0
    for end in range(len(CHAT), len(answer)):
        start = 0 if end == len(CHAT) else end - 1
        row = BatchRow(SequenceId(0), start, answer[start:end], range(-(-end // 16)), GREEDY)
        agreed += runner.execute(StepBatch((row,))).token_ids[0] == answer[end]
    assert agreed / (len(answer) - len(CHAT)) >= 0.95
