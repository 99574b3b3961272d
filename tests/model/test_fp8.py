"""FP8 checkpoints with block scales: slices at any border, and logits, against a dequantisation by hand."""

import json
from pathlib import Path

import pytest
import torch
from checkpoints import save_model
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from small_models import logits_of

from lionrock.inference.model.errors import MalformedWeights, MissingTensor, UnsupportedModel
from lionrock.inference.model.fp8 import BlockScaling
from lionrock.inference.model.weights import open_weights

BLOCK = 16  # small, so that small matrices have whole and broken blocks
_QUANTISED = ("_proj.weight", "_proj_with_mqa.weight")


def quantise(matrix: torch.Tensor, block: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Float8 numbers, their scales, and what both say, element by element."""
    high, wide = -(-matrix.shape[0] // block), -(-matrix.shape[1] // block)
    scales = torch.empty(high, wide)
    values = torch.empty(matrix.shape, dtype=torch.float8_e4m3fn)
    exact = torch.empty_like(matrix)
    for i in range(high):
        for j in range(wide):
            part = (slice(i * block, (i + 1) * block), slice(j * block, (j + 1) * block))
            scales[i, j] = matrix[part].abs().max() / 448
            values[part] = (matrix[part] / scales[i, j]).to(torch.float8_e4m3fn)
            exact[part] = values[part].float() * scales[i, j]
    return values, scales, exact


def to_fp8(directory: Path, block: int = BLOCK) -> dict[str, torch.Tensor]:
    """Rewrite a checkpoint with quantised matrices, as DeepSeek-V3's; return what they dequantise to."""
    path, config = directory / "model.safetensors", directory / "config.json"
    tensors = load_file(path)
    exact: dict[str, torch.Tensor] = {}
    for name in list(tensors):
        if name.endswith(_QUANTISED):
            tensors[name], tensors[name + "_scale_inv"], exact[name] = quantise(tensors[name].float(), block)
    save_file(tensors, path)
    stated = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [block, block]}
    config.write_text(json.dumps({**json.loads(config.read_text()), "quantization_config": stated}))
    return exact


@pytest.mark.parametrize("architecture", ["deepseek_v3", "qwen3"])
def test_logits_of_an_fp8_checkpoint_equal_those_of_its_dequantised_weights(tmp_path: Path, architecture: str) -> None:
    model = save_model(architecture, tmp_path)
    exact = to_fp8(tmp_path)
    save_model(architecture, tmp_path / "plain")
    plain = load_file(tmp_path / "plain" / "model.safetensors")
    save_file({**plain, **exact}, tmp_path / "plain" / "model.safetensors")
    token_ids = torch.randint(0, 331, (40,), generator=torch.Generator().manual_seed(1)).tolist()
    dequantised = type(model).from_pretrained(tmp_path / "plain", experts_implementation="eager").eval()
    with torch.inference_mode():
        expected = dequantised(torch.tensor([token_ids])).logits[0]
    found = logits_of(tmp_path, token_ids, chunks=[25, 1, 14])
    assert (found - expected).abs().max() < 1e-4
    with torch.inference_mode():
        assert (found - model(torch.tensor([token_ids])).logits[0]).abs().max() > 1e-3  # it was quantised indeed


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 70), st.integers(1, 70), st.integers(1, 40), st.integers(1, 40))
def test_any_slice_has_the_scales_of_its_blocks(data: st.DataObject, rows: int, columns: int, high: int, wide: int) -> None:
    scaling = BlockScaling(high, wide)
    generator = torch.Generator().manual_seed(rows * columns)
    values = torch.randn(rows, columns, generator=generator).to(torch.float8_e4m3fn)
    scales = torch.rand(scaling.scales_shape((rows, columns)), generator=generator) + 0.5
    expected = values.float() * scales.repeat_interleave(high, 0)[:rows].repeat_interleave(wide, 1)[:, :columns]
    top, left = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    down = range(top, data.draw(st.integers(top + 1, rows)))
    across = range(left, data.draw(st.integers(left + 1, columns)))
    part = values[down.start : down.stop, across.start : across.stop]
    found = scaling.dequantise(part, scales[scaling.scales_of(down, across)], down, across, torch.float32)
    assert torch.equal(found, expected[down.start : down.stop, across.start : across.stop])


def test_slices_of_a_file_are_dequantised_with_their_own_scales(tmp_path: Path) -> None:
    save_model("deepseek_v3", tmp_path)
    exact = to_fp8(tmp_path)
    source = open_weights(tmp_path)
    name = "model.layers.0.mlp.gate_proj.weight"
    shape = (112, 48)
    for rows, columns in ((range(112), range(48)), (range(15, 33), range(3, 17)), (range(111, 112), range(47, 48))):
        found = source.read(name, shape, rows, columns, torch.float32)
        assert torch.equal(found, exact[name][rows.start : rows.stop, columns.start : columns.stop])
        assert source.read(name, shape, rows, columns, torch.bfloat16).dtype is torch.bfloat16


def test_a_damaged_fp8_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    save_model("deepseek_v3", tmp_path)
    to_fp8(tmp_path)
    path, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    sound, tensors, name = config.read_text(), load_file(path), "model.layers.0.mlp.gate_proj.weight"

    def read() -> None:
        open_weights(tmp_path).read(name, (112, 48), range(112), range(48), torch.float32)

    config.write_text(sound.replace(f"[{BLOCK}, {BLOCK}]", "[128, 128]"))
    with pytest.raises(MalformedWeights):
        read()
    stated = json.loads(sound)
    del stated["quantization_config"]
    config.write_text(json.dumps(stated))
    with pytest.raises(UnsupportedModel):
        read()
    config.write_text(sound)
    del tensors[name + "_scale_inv"]
    save_file(tensors, path)
    with pytest.raises(MissingTensor):
        read()
