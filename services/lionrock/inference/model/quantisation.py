"""Weights of linear layers in 8 or 4 bits, made when they are loaded: what the schemes are, and their arithmetic in plain PyTorch.

A group of neighbouring inputs has one scale an output. The activations that meet quantised weights are integers too, quantised a
row and group at a time: 8 bits where the scheme says so, else 16, which lose less than bfloat16 does ("weight-only": the weights'
rounding is the only one that shows). Products of integers are exact, and groups are added in one order: what a row gives does not
depend on the rows beside it. What is here works on any device and defines what the native kernels compute; it is slow, because it
unpacks the weights for every product.

- INT8_INT8 rotates each group of 64 inputs, and the activations that meet it, by a Hadamard matrix: the products stay, and outliers
  spread over their group (QuaRot, Ashkboos et al. 2024, with a rotation a group).
- INT4_INT16 is ggml's Q4_1: groups of 32, minimum and scale in float16. A file of that type loads without any loss.

Chosen by teacher-forced agreement with float32 on SmolLM2-135M, 3319 positions in three languages, everything else in float32
(the agreement of bfloat16: 95.5 % through PyTorch, 97.4 % through the native kernels, which round less often):
- 8-bit activations, a scale a row: 79.5 %, with an offset 84.9 %; a scale a group of 64: 91.4 %, of 32: 93.2 %.
  Rotated in 64s, a scale a row: 94.3 %; a scale a group: 97.1 %. 16 bits: 99.9 %.
- 8-bit weights, a scale an output: 93.8 %; a scale a group of 64: 95.5 %, of 32: 96.0 %. Rotated, a scale a group of 64: 94.9 %.
- Both, rotated, in groups of 64: 94.6 %; of 32: 95.0 %, for a seventh more time; of 64 with a head of 16-bit activations: 95.1 %.
- An output head in 4 bits and nothing else: 78.4 %, so it takes 8.

Norms, biases, the embedding, routers and the unpacking matrix of latent attention stay as they are.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor
from torch.nn import functional

from lionrock.inference.model.errors import MalformedWeights

Quantisation = Literal["int8-w8a8", "int8-weight-only", "int4-weight-only"]
"""By the names that settings and plans use."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """How one linear layer is quantised."""

    bits: int
    """Of a weight: 8, symmetric with a float32 scale a group, or 4, with a float16 scale and minimum."""
    activation_bits: int
    """8 or 16, symmetric with a float32 scale a row and group."""
    group: int
    """Inputs that share a scale."""
    rotated: bool = False
    """Whether weights and activations go through a Hadamard transform a group."""

    @property
    def most(self) -> int:
        """Largest integer of an activation: of 16 bits as two signed bytes, 127 · 256 + 127."""
        return 127 if self.activation_bits == 8 else 32639


INT8_INT8: Final = Scheme(8, 8, 64, rotated=True)
INT8_INT16: Final = Scheme(8, 16, 32)
INT4_INT16: Final = Scheme(4, 16, 32)


@dataclass(frozen=True, slots=True)
class LayerSchemes:
    """What a quantisation does to the layers and to the output head, whose rounding goes straight into the logits."""

    layers: Scheme
    head: Scheme


QUANTISATIONS: Final[Mapping[Quantisation, LayerSchemes]] = {
    "int8-w8a8": LayerSchemes(INT8_INT8, INT8_INT8),
    "int8-weight-only": LayerSchemes(INT8_INT16, INT8_INT16),
    "int4-weight-only": LayerSchemes(INT4_INT16, INT8_INT16),
}


def schemes_of(weight_dtype: str | None) -> LayerSchemes | None:
    """Look up a plan's weight type; None where it names no quantisation made here."""
    return next((schemes for name, schemes in QUANTISATIONS.items() if name == weight_dtype), None)


@dataclass(frozen=True, slots=True)
class QuantisedWeight:
    """Integers with their scales. A weight is scale · (code − 128) of 8 bits, scale · code + minimum of 4."""

    scheme: Scheme
    codes: Tensor
    """[outputs, groups × group] uint8, inputs padded with zeros; of 4 bits one a byte."""
    scales: Tensor
    """[outputs, groups] float32."""
    minima: Tensor | None
    """[outputs, groups] float32, of 4 bits."""

    def values(self) -> Tensor:
        """Return what the integers stand for, rotated where the scheme rotates: [outputs, groups × group] float32."""
        codes = self.codes.view(*self.scales.shape, self.scheme.group).float()
        if self.minima is None:
            values = (codes - 128) * self.scales[..., None]
        else:
            values = codes * self.scales[..., None] + self.minima[..., None]
        return values.view(self.codes.shape)


def quantise(weight: Tensor, scheme: Scheme) -> QuantisedWeight:
    """Round a matrix to the nearest integers. weight: [outputs, inputs].

    Raises MalformedWeights when a number is infinite, not a number, or too large for the scales' type.
    """
    outputs, inputs = weight.shape
    padded = functional.pad(weight.float(), (0, -inputs % scheme.group))
    groups = padded.view(outputs, -1, scheme.group)
    if scheme.rotated:
        groups = groups @ hadamard(scheme.group, weight.device)
    minima: Tensor | None = None
    if scheme.bits == 8:
        scales = groups.abs().amax(-1) / 127
        codes = groups.mul(_inverse(scales)[..., None]).round_().clamp_(-127, 127).add_(128)
    else:
        minima = groups.amin(-1).half().float()
        scales = ((groups.amax(-1) - minima) / 15).half().float()
        codes = groups.sub(minima[..., None]).mul_(_inverse(scales)[..., None]).round_().clamp_(0, 15)
    if not bool(scales.isfinite().all()) or (minima is not None and not bool(minima.isfinite().all())):
        raise MalformedWeights("a weight is infinite, not a number, or too large to be quantised")
    return QuantisedWeight(scheme, codes.to(torch.uint8).view(padded.shape), scales, minima)


def rounded_activations(x: Tensor, scheme: Scheme) -> Tensor:
    """Round activations as a scheme does. x: [T, inputs]; returns [T, groups × group] float32, rotated like the weights."""
    groups = functional.pad(x.float(), (0, -x.shape[-1] % scheme.group)).view(x.shape[0], -1, scheme.group)
    if scheme.rotated:
        groups = groups @ hadamard(scheme.group, x.device)
    highest = groups.abs().amax(-1, keepdim=True)
    inverse = torch.where(highest > 0, scheme.most / highest, 0.0)
    return ((groups * inverse).round() * (highest / scheme.most)).view(x.shape[0], -1)


class UnpackedMatrix:
    """A quantised weight that PyTorch multiplies with, in float32, on any device: its integers are unpacked for every product."""

    __slots__ = ("_codes", "_minima", "_scales", "_scheme", "nbytes", "outputs")

    def __init__(self, weight: Tensor, scheme: Scheme) -> None:
        """Quantise. weight: [outputs, inputs]. Raises MalformedWeights."""
        quantised = quantise(weight, scheme)
        codes = quantised.codes
        if scheme.bits == 4:  # two a byte
            codes = codes[:, 0::2] | codes[:, 1::2] << 4
        self._scheme, self._codes, self._scales, self._minima = scheme, codes, quantised.scales, quantised.minima
        if self._minima is not None:  # these are float16's numbers
            self._scales, self._minima = self._scales.half(), self._minima.half()
        self.outputs = weight.shape[0]
        held = [self._codes, self._scales] + ([] if self._minima is None else [self._minima])
        self.nbytes = sum(tensor.nbytes for tensor in held)

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """X @ weightᵀ + bias. x: [T, inputs]; returns [T, outputs] in the type of x."""
        codes = self._codes
        if self._scheme.bits == 4:
            codes = torch.stack((codes & 15, codes >> 4), dim=-1).flatten(1)
        minima = None if self._minima is None else self._minima.float()
        weight = QuantisedWeight(self._scheme, codes, self._scales.float(), minima).values()
        y: Tensor = functional.linear(rounded_activations(x, self._scheme), weight)
        y = y if bias is None else y + bias.float()
        return y.to(x.dtype)


@functools.cache
def hadamard(size: int, device: torch.device) -> Tensor:
    """Sylvester's matrix of that size, divided by √size: its own inverse. size: a power of two."""
    assert size & (size - 1) == 0, "a power of two"
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    return (matrix / math.sqrt(size)).to(device)


def _inverse(scales: Tensor) -> Tensor:
    return torch.where(scales > 0, 1 / scales, 0.0)
