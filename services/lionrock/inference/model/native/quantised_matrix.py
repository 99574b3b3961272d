"""A quantised weight in the kernels' own layout; see `quantised.h` for its bytes and `quantisation.py` for its arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from lionrock.inference.model.native.library import Format, Library
from lionrock.inference.model.native.matrix import NativeMatrix, Part
from lionrock.inference.model.quantisation import INT4_INT16, INT8_INT8, INT8_INT16, QuantisedWeight, Scheme, quantise

FORMATS: Final[Mapping[Scheme, Format]] = {
    INT8_INT8: Format.INT8_INT8,
    INT8_INT16: Format.INT8_INT16,
    INT4_INT16: Format.INT4_INT16,
}
_PANEL, _VECTORS, _LANES = 48, 3, 16
_ROWS_AT_ONCE = 64 * _PANEL  # that are widened and packed at a time


class NativeQuantisedMatrix(NativeMatrix):
    """Panels of integers with their scales, multiplied like any NativeMatrix."""

    __slots__ = ("format",)

    def __init__(self, library: Library, weight: Tensor, slices: Seq[int], scheme: Scheme, dtype: torch.dtype) -> None:
        """Quantise and pack. weight: [outputs, inputs] on the CPU; dtype: of activations, float32 or bfloat16.

        Raises MalformedWeights.
        """
        assert sum(slices) == weight.shape[0], "the slices are not the matrix"
        self.outputs, self.inputs = weight.shape
        self.dtype = dtype
        self.format = FORMATS[scheme]
        self._library = library
        sizes = [library.quantised_bytes(self.format, outputs, self.inputs) for outputs in slices]
        self._panels = torch.empty(sum(sizes), dtype=torch.uint8)
        self.nbytes = self._panels.nbytes
        library.use_large_pages(self._panels)
        parts: list[Part] = []
        row, at = 0, 0
        for outputs, size in zip(slices, sizes, strict=True):
            _fill(self._panels[at : at + size], weight[row : row + outputs], scheme)
            parts.append(Part(row, outputs, self._panels.data_ptr() + at))
            row, at = row + outputs, at + size
        self.parts = tuple(parts)
        padded = any(outputs % _PANEL for outputs in slices[:-1])
        self.whole = self.parts if padded else (Part(0, self.outputs, self._panels.data_ptr()),)


def _fill(panels: Tensor, weight: Tensor, scheme: Scheme) -> None:
    """Quantise and pack one part. panels: flat bytes."""
    panels = panels.view(-(-weight.shape[0] // _PANEL), -1)
    for first in range(0, weight.shape[0], _ROWS_AT_ONCE):
        packed = pack_panels(quantise(weight[first : first + _ROWS_AT_ONCE], scheme))
        panels[first // _PANEL : first // _PANEL + len(packed)] = packed


def pack_panels(weight: QuantisedWeight) -> Tensor:
    """Lay integers and scales out in panels. Returns [panels, bytes] uint8; outputs past the last are zero."""
    outputs, groups = weight.scales.shape
    group, missing = weight.scheme.group, -outputs % _PANEL
    panels = (outputs + missing) // _PANEL
    codes = functional.pad(weight.codes, (0, 0, 0, missing)).view(panels, _VECTORS, _LANES, groups, group)
    if weight.scheme.bits == 4:
        codes = codes[..., : group // 2] | codes[..., group // 2 :] << 4
    # [panel][group][four inputs][vector][lane][input]
    codes = codes.reshape(panels, _VECTORS, _LANES, groups, -1, 4).permute(0, 3, 4, 1, 2, 5).reshape(panels, groups, -1)
    scale_type = torch.float32 if weight.minima is None else torch.float16
    parts = [codes]
    for column in (weight.minima, weight.scales):
        if column is not None:
            scales = functional.pad(column, (0, 0, 0, missing)).view(panels, _PANEL, groups).transpose(1, 2)
            parts.insert(0, scales.to(scale_type).contiguous().view(torch.uint8))
    return torch.cat(parts, dim=-1).view(panels, -1)
