"""Which matrix product a linear layer uses: a weight is packed once, after loading, for the device and type that it lies on.

On CPUs the native kernels have a layout of their own. Without them, with bfloat16 instructions, oneDNN's blocked layout takes about
0.6 of the plain layout's time with one to sixteen rows and no more with up to 512 (one thread, AVX512-BF16). Everything else uses
PyTorch's product on the plain layout. Quantised weights have one form for any number of rows: see `quantisation.py`.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import torch
from torch import Tensor
from torch.nn import functional

from lionrock.inference.model.native.library import Library
from lionrock.inference.model.native.matrix import NativeMatrix, packable
from lionrock.inference.model.native.quantised_matrix import NativeQuantisedMatrix
from lionrock.inference.model.quantisation import Scheme, UnpackedMatrix

Packed = Tensor | NativeMatrix | UnpackedMatrix
"""A weight as `linear` multiplies with it."""


def pack(weight: Tensor, slices: Seq[int], native: Library | None = None) -> Packed:
    """Return the weight in the layout that `linear` multiplies fastest. weight: [out, in]; slices: outputs of each, in order."""
    if native is not None and packable(weight):
        return NativeMatrix(native, weight, slices)
    if weight.device.type == "cpu" and weight.dtype is torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
        return packed
    return weight


def pack_quantised(
    weight: Tensor, slices: Seq[int], scheme: Scheme, dtype: torch.dtype, native: Library | None = None
) -> NativeMatrix | UnpackedMatrix:
    """Return the weight quantised. weight, slices: see `pack`; dtype: of activations. Raises MalformedWeights."""
    if native is not None:
        return NativeQuantisedMatrix(native, weight, slices, scheme, dtype)
    return UnpackedMatrix(weight, scheme)


def linear(x: Tensor, weight: Packed, bias: Tensor | None) -> Tensor:
    """X @ weightᵀ + bias, for a weight that `pack` returned. x: [T, in]; returns [T, out]."""
    if isinstance(weight, (NativeMatrix, UnpackedMatrix)):
        return weight(x, bias)
    if weight.is_mkldnn:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return product
    return functional.linear(x, weight, bias)
