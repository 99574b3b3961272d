"""Attention through the native kernels over a paged cache, row by row as a step has them, and what it should give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lionrock.inference.model.native.library import Kind, Library, Operation, Program, Step


@dataclass(frozen=True, slots=True)
class Shape:
    """Heads of one layer."""

    kv_heads: int
    group: int
    head_dim: int
    dtype: torch.dtype

    @property
    def query_heads(self) -> int:
        return self.kv_heads * self.group

    @property
    def width(self) -> int:
        """Elements of a token: queries, keys, values."""
        return (self.query_heads + 2 * self.kv_heads) * self.head_dim


@dataclass(slots=True)
class Paged:
    """One layer's cache. Blocks that nobody wrote hold NaN, as another sequence might have left them."""

    library: Library
    shape: Shape
    blocks: int
    positions: int = 4096
    keys: Tensor = field(init=False)
    values: Tensor = field(init=False)

    def __post_init__(self) -> None:
        shape = (self.shape.kv_heads, self.blocks * 16, self.shape.head_dim)
        self.keys = torch.full(shape, torch.nan, dtype=self.shape.dtype)
        self.values = torch.full(shape, torch.nan, dtype=self.shape.dtype)
        half = self.shape.head_dim // 2
        self.cos, self.sin = torch.ones(self.positions, half), torch.zeros(self.positions, half)

    cos: Tensor = field(init=False)
    sin: Tensor = field(init=False)

    def run(self, rows: Sequence[tuple[int, Tensor, Sequence[int]]]) -> list[Tensor]:
        """Run rows of (start, heads [tokens, width], block table) in one step. Returns [tokens, query heads × head_dim] a row."""
        shape = self.shape
        heads = torch.cat([row[1] for row in rows]).clone()
        out = torch.full((len(heads), shape.query_heads * shape.head_dim), torch.nan, dtype=shape.dtype)
        cos, sin = self.cos.to(shape.dtype), self.sin.to(shape.dtype)
        common = {
            "bfloat16": shape.dtype is torch.bfloat16, "head_dim": shape.head_dim, "query_heads": shape.query_heads,
            "kv_heads": shape.kv_heads, "keys": self.keys.data_ptr(), "values": self.values.data_ptr(),
            "input": heads.data_ptr(), "input_stride": shape.width,
        }  # fmt: skip
        program = Program(
            [
                Operation(
                    kind=Kind.ROTATE, cos=cos.data_ptr(), sin=sin.data_ptr(), table_stride=cos.shape[1], positions=self.positions,
                    rotary=shape.head_dim, **common,
                ),
                Operation(
                    kind=Kind.ATTEND, output=out.data_ptr(), output_stride=out.stride(0), scale=shape.head_dim**-0.5, **common
                ),
            ]
        )  # fmt: skip
        offsets, tables = [], []
        for _, _, table in rows:
            offsets.append(len(tables))
            tables.extend(table)
        lengths = [len(row[1]) for row in rows]
        step = Step([0] * len(heads), [row[0] for row in rows], lengths, offsets, tables, [], self.blocks)
        self.library.run(step, program)
        return list(out.split(lengths))


def attended(heads: Tensor, shape: Shape) -> Tensor:
    """Causal attention of a whole sequence in double precision. heads: [tokens, width]."""
    tokens = len(heads)
    wide = heads.double().view(tokens, -1, shape.head_dim)
    queries, keys, values = wide.split([shape.query_heads, shape.kv_heads, shape.kv_heads], dim=1)
    keys, values = keys.repeat_interleave(shape.group, 1), values.repeat_interleave(shape.group, 1)
    scores = torch.einsum("qhd,khd->hqk", queries, keys) * shape.head_dim**-0.5
    scores.masked_fill_(torch.ones(tokens, tokens, dtype=torch.bool).triu_(1), float("-inf"))
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), values).flatten(1)
