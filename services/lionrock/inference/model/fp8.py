"""Weights in 8-bit floating point with one scale a block, as DeepSeek-V3's checkpoints hold them, back to plain numbers.

A matrix `X.weight` of type float8_e4m3 has beside it `X.weight_scale_inv`, float32 [⌈rows / block⌉, ⌈columns / block⌉], by which
its blocks are multiplied (the name tells of the quantiser's view). Blocks at the lower and right border may be smaller. Slices may
begin and end inside blocks. Source: `weight_dequant` in DeepSeek-V3's `inference/kernel.py`; `quantization_config` of config.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lionrock.inference.model.errors import MalformedWeights, UnsupportedModel

SCALE_SUFFIX = "_scale_inv"
"""Follows the name of the weight that the scales belong to."""

_MAX_BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class BlockScaling:
    """Size of the blocks that share a scale."""

    rows: int
    columns: int

    def scales_shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Shape of the scales of a matrix. Raises MalformedWeights when it is none."""
        if len(shape) != 2:
            raise MalformedWeights("only matrices have scales a block")
        return -(-shape[0] // self.rows), -(-shape[1] // self.columns)

    def scales_of(self, rows: range, columns: range) -> tuple[slice, slice]:
        """Which scales a slice of the matrix needs."""
        return (
            slice(rows.start // self.rows, -(-rows.stop // self.rows)),
            slice(columns.start // self.columns, -(-columns.stop // self.columns)),
        )

    def dequantise(self, values: Tensor, scales: Tensor, rows: range, columns: range, dtype: torch.dtype) -> Tensor:
        """Multiply a slice by its scales, in float32. values: [rows, columns] float8; scales: as `scales_of` says."""
        result = torch.empty(values.shape, dtype=dtype)
        first_row, first_column = rows.start // self.rows, columns.start // self.columns
        across = torch.arange(columns.start, columns.stop) // self.columns - first_column
        # A row of blocks at a time: its scales are one vector, and what is wider than the result stays small.
        for index, row_scales in enumerate(scales.float()):
            top = max(rows.start, (first_row + index) * self.rows) - rows.start
            bottom = min(rows.stop, (first_row + index + 1) * self.rows) - rows.start
            result[top:bottom] = values[top:bottom].float() * row_scales[across]
        return result


def block_scaling_of(config: Mapping[str, Any]) -> BlockScaling | None:
    """Read `quantization_config` of config.json; None when the weights are plain.

    Raises UnsupportedModel for every other quantisation, MalformedWeights.
    """
    stated = config.get("quantization_config")
    if stated is None:
        return None
    if not isinstance(stated, Mapping):
        raise MalformedWeights("config.json: quantization_config is no object")
    method, layout = stated.get("quant_method"), stated.get("fmt", "e4m3")
    if method != "fp8" or layout != "e4m3":
        raise UnsupportedModel(f"quantised safetensors are read as fp8 in e4m3, not as {method!r} in {layout!r}")
    block = stated.get("weight_block_size")
    if block is None:
        raise UnsupportedModel("fp8 weights without weight_block_size are not offered")
    if not isinstance(block, list) or len(block) != 2 or not all(type(side) is int and 1 <= side <= _MAX_BLOCK for side in block):
        raise MalformedWeights("config.json: weight_block_size is no pair of sizes")
    return BlockScaling(*block)
