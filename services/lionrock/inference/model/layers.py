"""The pieces of a decoder, holding the slices of weights that one rank has. They do not know that other ranks exist.

A weight is named by the slices it is made of (`q_proj`, `k_proj` and `v_proj` rows lie in one matrix, so that a layer has four
matrix products), so loading and sharding work on slices and never on whole models. Plain classes, no `nn.Module`: there are no
gradients, hooks or state dicts, and a step calls these some three hundred times.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from lionrock.inference.model.config import RopeConfig
from lionrock.inference.model.host_memory import empty
from lionrock.inference.model.kernels import Packed, linear, pack, pack_quantised
from lionrock.inference.model.native.library import Library
from lionrock.inference.model.quantisation import Scheme
from lionrock.inference.model.weights import WeightSource
from lionrock.inference.model.yarn import yarn_frequencies


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows and columns of one tensor of the checkpoint."""

    name: str
    """Without ".weight" or ".bias"."""
    shape: tuple[int, ...]
    """Of the whole tensor."""
    rows: range
    columns: range | None = None
    """None for a vector."""

    @classmethod
    def matrix(cls, name: str, rows: int, columns: int) -> Slice:
        """Name a whole matrix."""
        return cls(name, (rows, columns), range(rows), range(columns))

    def with_rows(self, first: int, count: int) -> Slice:
        """Keep these rows of the whole tensor."""
        assert first + count <= self.shape[0], "rows out of range"
        return replace(self, rows=range(first, first + count))

    def with_columns(self, first: int, count: int) -> Slice:
        """Keep these columns of the whole matrix."""
        assert first + count <= self.shape[1], "columns out of range"
        return replace(self, columns=range(first, first + count))


class Weight:
    """One tensor of a rank, made of slices laid below each other.

    `data` is there after `load`; in the place of a matrix that is multiplied with, `packed` is there after `finish`.
    """

    __slots__ = ("_activations", "_packed", "data", "dtype", "kind", "multiplied", "scheme", "slices")

    def __init__(self, *slices: Slice, kind: str = "weight", multiplied: bool = False, dtype: torch.dtype | None = None) -> None:
        """multiplied: a matrix that `kernels.linear` uses, so `finish` packs it. dtype: its type, where not the model's."""
        self.slices = slices
        self.kind = kind
        self.multiplied = multiplied
        self.dtype = dtype
        self.data: Tensor
        self.scheme: Scheme | None = None
        """Of a matrix that is multiplied with: how `finish` quantises it; None: not at all."""
        self._activations: torch.dtype
        self._packed: Packed | None = None

    @property
    def numel(self) -> int:
        """Elements."""
        return sum(len(part.rows) * (1 if part.columns is None else len(part.columns)) for part in self.slices)

    def load(self, source: WeightSource, dtype: torch.dtype, device: torch.device) -> None:
        """Read the slices into their places, one at a time. On the meta device: check that they can be read.

        Raises what WeightSource.read raises.
        """
        self._activations = dtype
        # What is quantised is not rounded before.
        dtype = self.dtype or dtype if self.scheme is None else torch.float32
        width = self.slices[0].columns
        shape = (sum(len(part.rows) for part in self.slices), *(() if width is None else (len(width),)))
        for part in self.slices:  # before any memory is taken for it
            source.check(f"{part.name}.{self.kind}", part.shape)
        # A copy even where nothing has to be converted: the source's memory is the mapped file.
        self.data = empty(shape, dtype, device)
        if device.type == "meta":
            return
        first = 0
        for part in self.slices:
            stop = first + len(part.rows)
            self.data[first:stop] = source.read(f"{part.name}.{self.kind}", part.shape, part.rows, part.columns, dtype)
            first = stop

    def finish(self, native: Library | None = None) -> None:
        """Bring the data into the layout in which they are used, the kernels' own where there are any. Raises MalformedWeights."""
        if not self.multiplied:
            return
        slices = [len(part.rows) for part in self.slices]
        if self.scheme is None or self.data.is_meta:
            self._packed = pack(self.data, slices, native)
        else:
            self._packed = pack_quantised(self.data, slices, self.scheme, self._activations, native)
        del self.data

    @property
    def packed(self) -> Packed:
        """What `kernels.linear` multiplies with."""
        return self.data if self._packed is None else self._packed


class Projection(Protocol):
    """A linear layer as its users see it: plain, or with a collective behind it."""

    def __call__(self, x: Tensor, /) -> Tensor:
        """Apply. x: [T, in]; returns [T, out]."""
        ...

    def weights(self) -> Iterator[Weight]:
        """List what to load."""
        ...


class Linear:
    """x @ weightᵀ + bias. x: [T, in]; returns [T, out]."""

    __slots__ = ("bias", "weight")

    def __init__(self, *slices: Slice, bias: bool) -> None:
        self.weight = Weight(*slices, multiplied=True)
        self.bias = None
        if bias:
            self.bias = Weight(*(Slice(part.name, part.shape[:1], part.rows) for part in slices), kind="bias")

    def __call__(self, x: Tensor, /) -> Tensor:
        """Apply."""
        return linear(x, self.weight.packed, None if self.bias is None else self.bias.data)

    def weights(self) -> Iterator[Weight]:
        """List what to load."""
        yield self.weight
        if self.bias is not None:
            yield self.bias


class Embedding:
    """Rows of a table by token id. ids: [T] int64; returns [T, hidden]."""

    __slots__ = ("weight",)

    def __init__(self, table: Slice) -> None:
        self.weight = Weight(table)

    def __call__(self, ids: Tensor, /) -> Tensor:
        """Look up."""
        return functional.embedding(ids, self.weight.data)

    def weights(self) -> Iterator[Weight]:
        """List what to load."""
        yield self.weight


class Norm:
    """Root-mean-square norm (Zhang and Sennrich 2019), computed in float32 and scaled in the model's type. x: [T, hidden]."""

    __slots__ = ("epsilon", "weight")

    def __init__(self, name: str, size: int, epsilon: float) -> None:
        self.weight = Weight(Slice(name, (size,), range(size)))
        self.epsilon = epsilon

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise."""
        wide = x.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.epsilon)
        return (wide * scale).to(x.dtype) * self.weight.data

    def weights(self) -> Iterator[Weight]:
        """List what to load."""
        yield self.weight


class Mlp:
    """down(silu(gate(x)) · up(x)). x: [T, hidden]."""

    def __init__(self, name: str, hidden: int, columns: int, *, bias: bool) -> None:
        self.gate_up = Linear(
            Slice.matrix(f"{name}.gate_proj", columns, hidden), Slice.matrix(f"{name}.up_proj", columns, hidden), bias=bias
        )
        self.down: Projection = Linear(Slice.matrix(f"{name}.down_proj", hidden, columns), bias=bias)

    def __call__(self, x: Tensor, /) -> Tensor:
        """Apply."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(functional.silu(gate) * up)

    def weights(self) -> Iterator[Weight]:
        """List what to load."""
        yield from self.gate_up.weights()
        yield from self.down.weights()


class RotaryEmbedding:
    """Rotates queries and keys by position (Su et al. 2021): the first half of a head against the second, or neighbours."""

    def __init__(self, rope: RopeConfig, head_dim: int, context_window: int, dtype: torch.dtype, device: torch.device) -> None:
        """Tabulate cos and sin for every position: [context_window, 1, head_dim] each."""
        where = device if device.type == "meta" else torch.device("cpu")
        angles = torch.outer(
            torch.arange(context_window, dtype=torch.float32, device=where), rope_frequencies(rope, head_dim).to(where)
        )
        factor = 1.0 if rope.yarn is None else rope.yarn.attention_factor
        cos, sin = angles.cos() * factor, angles.sin() * factor
        # The first of a pair receives minus the second, the second plus the first: the sign goes into the table.
        cos, sin = torch.stack((cos, cos), dim=1), torch.stack((-sin, sin), dim=1)
        if rope.interleaved:
            cos, sin = cos.transpose(1, 2), sin.transpose(1, 2)
        self._cos = cos.reshape(-1, 1, head_dim).to(device, dtype)
        self._sin = sin.reshape(-1, 1, head_dim).to(device, dtype)
        self._half = None if rope.interleaved else head_dim // 2

    @property
    def halves(self) -> tuple[Tensor, Tensor] | None:
        """Cos and sin of each pair, [context_window, head_dim / 2] views of the tables; None where pairs are neighbours."""
        if self._half is None:
            return None
        return self._cos[:, 0, : self._half], self._sin[:, 0, self._half :]

    def at(self, positions: Tensor) -> Rotation:
        """Look up the rotation of a step's tokens, once for all layers. positions: [T] int64."""
        return Rotation(self._cos[positions], self._sin[positions], self._half)


@dataclass(frozen=True, slots=True)
class Rotation:
    """The rotation of each token. cos, sin: [T, 1, head_dim]."""

    cos: Tensor
    sin: Tensor
    half: int | None
    """How far apart a pair lies; None: neighbours, beginning at even places."""

    def __call__(self, heads: Tensor) -> Tensor:
        """Rotate. heads: [T, H, head_dim]."""
        if self.half is None:
            swapped = heads.reshape(*heads.shape[:-1], -1, 2).flip(-1).view(heads.shape)
        else:
            swapped = heads.roll(self.half, -1)
        return torch.addcmul(heads * self.cos, swapped, self.sin)


def rope_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """Angle a position for each pair, scaled as the configuration says. Returns [head_dim / 2] float32."""
    frequencies = 1.0 / rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    if rope.divisors is not None:
        frequencies = frequencies / torch.tensor(rope.divisors, dtype=torch.float32)
    if rope.llama3 is not None:
        scaling = rope.llama3
        turns = scaling.original_context * frequencies / (2 * torch.pi)
        smooth = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        smooth = smooth.clamp(0.0, 1.0)
        frequencies = (1 - smooth) * frequencies / scaling.factor + smooth * frequencies
    if rope.yarn is not None:
        frequencies = yarn_frequencies(frequencies, rope.theta, rope.yarn)
    return frequencies / rope.linear_factor
