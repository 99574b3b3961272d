"""What a pod says of a model's shape is what planning reads, from either kind of file, and fits its last words."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lionrock.modelstore.errors import ModelFileCorrupt, ModelFileMissing
from lionrock.modelstore.facts import main
from lionrock.modelstore.planning_config import MAX_BYTES, planning_config, planning_text
from lionrock.planner.model_config import shape_of_config, weight_dtype_of_config
from models import smollm2_path

DEEPSEEK = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "first_k_dense_replace": 3,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e4m3"},
    "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32},
    "v_head_dim": 128,
    "vocab_size": 129280,
}


def test_planning_reads_the_same_shape_from_the_selection_as_from_the_whole_config(tmp_path: Path) -> None:
    whole = DEEPSEEK | {"auto_map": {"AutoConfig": "x" * 5000}, "bos_token_id": 0, "id2label": {str(n): "y" for n in range(9999)}}
    (tmp_path / "config.json").write_text(json.dumps(whole))
    selected = planning_config(tmp_path)
    assert shape_of_config(selected) == shape_of_config(whole)
    assert weight_dtype_of_config(selected) == "fp8"
    assert len(planning_text(tmp_path)) < MAX_BYTES


def test_facts_of_a_gguf_file_plan_like_its_config() -> None:
    shape = shape_of_config(planning_config(smollm2_path()))
    assert (shape.layers, shape.hidden, shape.query_heads, shape.kv_heads, shape.tied_embeddings) == (30, 576, 9, 3, True)


def test_a_wrapped_language_model_states_its_own_shape(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 1, "text_config": DEEPSEEK}))
    assert planning_config(tmp_path)["hidden_size"] == 7168


def test_the_pods_last_words_are_the_facts(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(DEEPSEEK))
    message = tmp_path / "termination-log"
    message.touch()
    command = [sys.executable, "-m", "lionrock.modelstore.facts", str(tmp_path), f"--message-file={message}"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(message.read_text()) == json.loads(run.stdout) == planning_config(tmp_path)


def test_a_model_that_cannot_be_read_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = tmp_path / "termination-log"
    message.touch()
    assert main([str(tmp_path / "nothing"), f"--message-file={message}"]) == 1
    assert "neither a file nor a directory" in message.read_text()
    assert capsys.readouterr().out == ""


def test_a_shape_that_would_be_cut_short_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(DEEPSEEK | {"architectures": ["x" * MAX_BYTES]}))
    with pytest.raises(ModelFileCorrupt, match="4096 bytes"):
        planning_text(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ModelFileMissing):
        planning_text(tmp_path)
