"""A weight in the kernels' own layout: panels of 48 outputs that a product reads from front to back."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from lionrock.inference.model.native.library import Format, Kind, Library, Operation, Program, Step, Store

_DTYPES = (torch.bfloat16, torch.float32)


@dataclass(frozen=True, slots=True)
class Part:
    """Outputs that lie in panels of their own."""

    first: int
    """Of the matrix's outputs."""
    outputs: int
    address: int
    """Of its first panel."""


class NativeMatrix:
    """A packed matrix. Its parts are its slices, so that each can be multiplied alone; neighbours without padding are one part."""

    format = Format.PLAIN
    """Of the weights."""

    __slots__ = ("_library", "_panels", "dtype", "inputs", "nbytes", "outputs", "parts", "whole")

    def __init__(self, library: Library, weight: Tensor, slices: Seq[int]) -> None:
        """Pack. weight: [outputs, inputs], which `packable` allows; slices: outputs of each, in order."""
        assert packable(weight), "this weight cannot be packed"
        assert sum(slices) == weight.shape[0], "the slices are not the matrix"
        self.outputs, self.inputs = weight.shape
        self.dtype = weight.dtype
        sizes = [library.packed_elements(outputs, self.inputs) for outputs in slices]
        self._library = library
        self._panels = torch.empty(sum(sizes), dtype=weight.dtype)
        self.nbytes = self._panels.nbytes
        parts: list[Part] = []
        row, at = 0, 0
        for outputs, size in zip(slices, sizes, strict=True):
            library.pack(weight[row : row + outputs], self._panels[at : at + size])
            parts.append(Part(row, outputs, self._panels.data_ptr() + at * weight.itemsize))
            row, at = row + outputs, at + size
        self.parts = tuple(parts)
        padded = any(size != outputs * self.inputs for outputs, size in zip(slices[:-1], sizes[:-1], strict=True))
        self.whole = self.parts if padded else (Part(0, self.outputs, self._panels.data_ptr()),)
        """What a product of the whole matrix goes through."""

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """X @ weightᵀ + bias. x: [T, inputs]; returns [T, outputs]."""
        x = x if x.stride(1) == 1 else x.contiguous()
        y = x.new_empty((x.shape[0], self.outputs))
        operations = self.product(x.data_ptr(), x.stride(0), y.data_ptr(), y.stride(0), bias)
        self._library.run(Step(range(x.shape[0]), (), (), (), (), (), 0), Program(operations))
        return y

    def product(
        self,
        x: int,
        x_stride: int,
        y: int,
        y_stride: int,
        bias: Tensor | None,
        *,
        store: Store = Store.PLAIN,
        sampled: bool = False,
    ) -> list[Operation]:
        """Operations for y = x @ weightᵀ + bias between buffers at these addresses, strides in elements."""
        item = 4 if store is Store.FLOAT else self.dtype.itemsize
        return [
            Operation(
                kind=Kind.LINEAR, bfloat16=self.dtype is torch.bfloat16, store=store, sampled=sampled, format=self.format,
                input=x, input_stride=x_stride, inputs=self.inputs,
                output=y + part.first * item, output_stride=y_stride, outputs=part.outputs,
                weight=part.address, bias=None if bias is None else bias.data_ptr() + part.first * self.dtype.itemsize,
            )
            for part in self.whole
        ]  # fmt: skip


def packable(weight: Tensor) -> bool:
    """Whether the kernels can multiply with a weight: on the CPU, of their types, and without half a pair."""
    return weight.device.type == "cpu" and weight.dtype in _DTYPES and weight.dim() == 2 and weight.shape[1] % 2 == 0
