"""Which matrix product a linear layer uses: a weight is packed once, after loading, for the device and type that it lies on.

On CPUs with bfloat16 instructions, oneDNN's own blocked layout takes about 0.6 of the plain layout's time with one to sixteen rows
and no more with up to 512 (one thread, AVX512-BF16). Everything else uses PyTorch's product on the plain layout.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def pack(weight: Tensor) -> Tensor:
    """Return the weight in the layout that `linear` multiplies fastest. weight: [out, in]."""
    if weight.device.type == "cpu" and weight.dtype is torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
        return packed
    return weight


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """X @ weightᵀ + bias, for a weight that `pack` returned. x: [T, in]; returns [T, out]."""
    if weight.is_mkldnn:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return product
    return functional.linear(x, weight, bias)
