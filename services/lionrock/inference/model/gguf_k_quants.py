"""GGUF's k-quants to numbers, with a few tensor operations a chunk of blocks: Q4_K, Q5_K and Q6_K, which most files use.

A block has 256 numbers in sub-blocks with scales of their own. Every function takes chunk: [n, block bytes] uint8 and out: [n, 256]
float32, which it fills and returns. Source: ggml's `block_q4_K`, `block_q5_K`, `block_q6_K` and their `dequantize_row_…`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def q4_k(chunk: Tensor, out: Tensor) -> Tensor:
    """Unpack d, dmin, 12 bytes of scales, and 4 runs of 32 bytes: low halves are one sub-block of 32, high halves the next."""
    runs, values = chunk[:, 16:144].view(-1, 4, 32), out.view(-1, 4, 2, 32)
    values[:, :, 0] = runs & 15
    values[:, :, 1] = runs >> 4
    return _scaled(chunk, out)


def q5_k(chunk: Tensor, out: Tensor) -> Tensor:
    """Unpack Q4_K with 32 bytes before the runs, of which bit j is the fifth bit of sub-block j."""
    fifth, runs, values = chunk[:, 16:48], chunk[:, 48:176].view(-1, 4, 32), out.view(-1, 8, 32)
    for sub_block in range(8):
        low = runs[:, sub_block // 2]
        low = low & 15 if sub_block % 2 == 0 else low >> 4
        values[:, sub_block] = low | (fifth >> sub_block & 1) << 4
    return _scaled(chunk, out)


def q6_k(chunk: Tensor, out: Tensor) -> Tensor:
    """Unpack 128 bytes of low halves, 64 of upper two bits, 16 signed scales (of 16 numbers each), d."""
    values = out.view(-1, 2, 4, 32)
    low, high = chunk[:, :128].view(-1, 2, 64), chunk[:, 128:192].view(-1, 2, 32)
    for quarter in range(4):
        part = low[:, :, 32 * (quarter % 2) : 32 * (quarter % 2) + 32]
        part = part & 15 if quarter < 2 else part >> 4
        values[:, :, quarter] = part | (high >> 2 * quarter & 3) << 4
    scales = chunk[:, 192:208].view(torch.int8).float() * _half(chunk, 208)
    out.view(-1, 16, 16).sub_(32.0).mul_(scales[:, :, None])
    return out


def _scaled(chunk: Tensor, out: Tensor) -> Tensor:
    """Multiply each sub-block of 32 by d · scale and take dmin · minimum off; both are 6 bits of 12 bytes."""
    packed = chunk[:, 4:16].view(-1, 3, 4)
    low, high, mixed = packed.unbind(1)
    scales = torch.cat((low & 63, mixed & 15 | low >> 6 << 4), dim=1).float() * _half(chunk, 0)
    minima = torch.cat((high & 63, mixed >> 4 | high >> 6 << 4), dim=1).float() * _half(chunk, 2)
    out.view(-1, 8, 32).mul_(scales[:, :, None]).sub_(minima[:, :, None])
    return out


def _half(chunk: Tensor, first: int) -> Tensor:
    """Read the float16 at a byte of every block. Returns [n, 1] float32."""
    return chunk[:, first : first + 2].contiguous().view(torch.float16).float()
