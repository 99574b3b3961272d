"""A loaded model as a list of operations: what one rank does in a step, in as few calls as its collectives and other layers allow.

Works on `Transformer` as it stands, after weights were loaded and cut for tensor parallelism. What the kernels know (attention over
plain keys and values, gated MLP, norms, packed weights) becomes operations; anything else (latent attention, experts, quantised
weights, a collective) becomes a call into PyTorch between two stretches of operations, on the same buffers.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from lionrock.inference.engine.batch import BatchRow
from lionrock.inference.model.attention import KVCache, StepLayout, lay_out, order_rows
from lionrock.inference.model.layers import Embedding, Linear, Mlp, Norm, Projection, RotaryEmbedding, Rotation, Weight
from lionrock.inference.model.native.library import KV_BLOCK_TOKENS, MOST_HEAD_DIM, Kind, Library, Operation, Program, Step, Store
from lionrock.inference.model.native.matrix import NativeMatrix, packable
from lionrock.inference.model.tensor_parallel import AllReduced
from lionrock.inference.model.transformer import Attention, Layer, Transformer

_LEAST_CAPACITY = 64  # tokens that buffers are first made for
_CACHE_LINE = 64


class NativeForward:
    """A `Forward` (see `lionrock.inference.model.forward`) through the kernels."""

    kernels = "native"

    def __init__(self, model: Transformer, rope: RotaryEmbedding, cache: KVCache, library: Library, dtype: torch.dtype) -> None:
        """Take a loaded model and its cache; `supports` has said that the type and the block size fit."""
        assert cache.block_size == KV_BLOCK_TOKENS
        self._model, self._rope, self._cache, self._library, self._dtype = model, rope, cache, library, dtype
        self._capacity = 0
        self._stretches: list[Program | Callable[[], None]] = []
        self._choose: Program | None = None

    # ---- a step ----------------------------------------------------------------------------------------------------------

    def begin(self, rows: Seq[BatchRow]) -> int:
        """See Forward."""
        order = order_rows(rows)
        token_ids: list[int] = []
        tables: list[int] = []
        starts, lengths, offsets = [], [], []
        ends = [0] * len(rows)
        for index in order:
            row = rows[index]
            starts.append(row.start)
            lengths.append(len(row.token_ids))
            offsets.append(len(tables))
            token_ids.extend(row.token_ids)
            tables.extend(row.block_table)
            ends[index] = len(token_ids)
        sampled = [end - row.samples + n for end, row in zip(ends, rows, strict=True) for n in range(row.samples)]
        self._rows = rows
        self._layout: StepLayout | None = None
        self._step = Step(token_ids, starts, lengths, offsets, tables, sampled, self._cache.blocks)
        if self._step.tokens > self._capacity:
            self._prepare(max(self._step.tokens, 2 * self._capacity, _LEAST_CAPACITY))
        return self._step.tokens

    def hidden(self, received: Tensor | None) -> Tensor:
        """See Forward."""
        if received is not None:
            self._x[: self._step.tokens] = received
        for stretch in self._stretches:
            if isinstance(stretch, Program):
                self._library.run(self._step, stretch)
            else:
                stretch()
        return self._x[: self._step.tokens]

    def logits(self) -> Tensor:
        """See Forward."""
        samples = self._step.samples
        if samples > len(self._logits):
            self._prepare_head(max(samples, 2 * len(self._logits)))
        for program in self._head:
            self._library.run(self._step, program)
        assert self._model.head is not None
        if isinstance(self._model.head.weight.packed, NativeMatrix):
            return self._logits[:samples]
        return self._model.head(self._normed[:samples]).float()

    def greedy(self) -> list[int]:
        """See Forward."""
        logits = self.logits()
        if self._choose is None:
            return [int(token_id) for token_id in logits.argmax(dim=-1).tolist()]
        self._library.run(self._step, self._choose)
        return [int(token_id) for token_id in self._chosen[: len(logits)].tolist()]

    # ---- programs --------------------------------------------------------------------------------------------------------

    def _prepare(self, tokens: int) -> None:
        """Make buffers for that many tokens and write the programs between them."""
        model = self._model
        self._capacity = tokens
        hidden = model.config.hidden_size
        attentions = [layer.attention for layer in model.layers if isinstance(layer.attention, Attention)]
        mlps = [layer.mlp for layer in model.layers if isinstance(layer.mlp, Mlp)]
        self._x, self._h = self._buffer(hidden), self._buffer(hidden)
        self._partial = torch.empty((tokens, hidden), dtype=self._dtype)  # collectives want it in one piece
        self._heads = self._buffer(max((a.head_dim * (a.query_heads + 2 * a.kv_heads) for a in attentions), default=0))
        self._attended = self._buffer(max((a.head_dim * a.query_heads for a in attentions), default=0))
        widths = [sum(len(part.rows) for part in mlp.gate_up.weight.slices) for mlp in mlps]
        self._halves, self._gated = self._buffer(max(widths, default=0)), self._buffer(max(widths, default=0) // 2)
        self._stretches, self._open = [], []
        self._pending: Tensor | None = None  # to be added to x before anybody reads it
        if isinstance(model.embedding, Embedding):
            table = model.embedding.weight.data
            rows, width = table.shape
            self._open.append(self._operation(Kind.EMBED, output=self._x, weight=table, inputs=width, outputs=rows))
        elif model.embedding is not None:
            embedding = model.embedding
            self._call(lambda: _copy(embedding(self._token_ids()), self._now(self._x)))
        for layer, cached in zip(model.layers, self._cache.layers, strict=True):
            self._attention_half(layer, cached)
            self._mlp_half(layer)
        if self._pending is not None:
            self._open.append(self._operation(Kind.ADD, input=self._pending, output=self._x, inputs=hidden))
        self._close()
        if model.head is not None:
            self._prepare_head(1)

    def _prepare_head(self, samples: int) -> None:
        model = self._model
        assert model.head is not None
        assert model.norm is not None
        weight = model.head.weight.packed
        self._normed = torch.empty((samples, model.config.hidden_size), dtype=self._dtype)
        rows = weight.outputs if isinstance(weight, NativeMatrix) else 0
        self._logits = torch.empty((samples, rows), dtype=torch.float32)
        self._norm(model.norm, self._normed, sampled=True)
        if isinstance(weight, NativeMatrix):
            bias = None if model.head.bias is None else model.head.bias.data
            at = (self._normed.data_ptr(), self._normed.stride(0), self._logits.data_ptr(), self._logits.stride(0))
            self._open += weight.product(*at, bias, store=Store.FLOAT, sampled=True)
        self._head = (Program(self._open),)
        self._open = []
        self._chosen = torch.empty(samples, dtype=torch.int64)
        self._choose = None
        if rows:
            fields = {"input": self._logits.data_ptr(), "input_stride": rows, "output": self._chosen.data_ptr(), "inputs": rows}
            self._choose = Program([Operation(kind=Kind.LARGEST, **fields)])

    def _attention_half(self, layer: Layer, cached: tuple[Tensor, ...]) -> None:
        self._norm(layer.attention_norm, self._h)
        attention = layer.attention
        if not isinstance(attention, Attention) or self._rope.halves is None or not attends(attention):
            self._call(lambda: self._add(layer.attention(self._now(self._h), self._rotation(), cached, self._laid_out())))
            return
        dim = attention.head_dim
        shape: dict[str, Tensor | int] = {"head_dim": dim, "query_heads": attention.query_heads, "kv_heads": attention.kv_heads}
        shape["keys"], shape["values"] = cached
        cos, sin = self._rope.halves
        norms = (attention.query_norm, attention.key_norm)
        self._project(attention.qkv, self._h, self._heads)
        self._open.append(
            self._operation(
                Kind.ROTATE, input=self._heads, cos=cos, sin=sin, table_stride=cos.stride(0), positions=cos.shape[0],
                rotary=2 * cos.shape[1], weight=_weight_of(norms[0]), weight2=_weight_of(norms[1]),
                epsilon=0.0 if norms[0] is None else norms[0].epsilon, **shape,
            )
        )  # fmt: skip
        self._open.append(self._operation(Kind.ATTEND, input=self._heads, output=self._attended, scale=dim**-0.5, **shape))
        self._project_and_add(attention.output, self._attended, dim * attention.query_heads)

    def _mlp_half(self, layer: Layer) -> None:
        self._norm(layer.mlp_norm, self._h)
        mlp = layer.mlp
        if not isinstance(mlp, Mlp):
            self._call(lambda: self._add(layer.mlp(self._now(self._h))))
            return
        gate_up = mlp.gate_up
        weight, bias = gate_up.weight.packed, _address_of(gate_up.bias)
        columns = sum(len(part.rows) for part in gate_up.weight.slices) // 2
        if isinstance(weight, NativeMatrix):
            gate, up = weight.parts
            self._open.append(
                self._operation(
                    Kind.GATED_LINEAR, input=self._h, output=self._gated, inputs=weight.inputs, outputs=columns,
                    weight=gate.address, weight2=up.address, format=weight.format,
                    bias=bias, bias2=None if bias is None else bias + columns * weight.dtype.itemsize,
                )
            )  # fmt: skip
        else:
            self._project(gate_up, self._h, self._halves)
            self._open.append(self._operation(Kind.GATE, input=self._halves, output=self._gated, inputs=columns))
        self._project_and_add(mlp.down, self._gated, columns)

    def _norm(self, norm: Norm, output: Tensor, *, sampled: bool = False) -> None:
        """Norm of x, after what is pending was added to it."""
        self._open.append(
            self._operation(
                Kind.NORM, input=self._x, addend=self._pending, output=output, weight=norm.weight.data,
                inputs=norm.weight.data.numel(), epsilon=norm.epsilon, sampled=sampled,
            )
        )  # fmt: skip
        self._pending = None

    def _project(self, linear: Linear, x: Tensor, y: Tensor) -> None:
        weight = linear.weight.packed
        if isinstance(weight, NativeMatrix):
            bias = None if linear.bias is None else linear.bias.data
            self._open += weight.product(x.data_ptr(), x.stride(0), y.data_ptr(), y.stride(0), bias)
        else:
            self._call(lambda: _copy(linear(self._now(x)), self._now(y)))

    def _project_and_add(self, projection: Projection, x: Tensor, width: int) -> None:
        """X += projection(x), where the sum over ranks, if any, is left to the next norm."""
        reduced = isinstance(projection, AllReduced)
        linear = projection.part if isinstance(projection, AllReduced) else projection
        if not isinstance(linear, Linear) or not isinstance(linear.weight.packed, NativeMatrix):
            self._call(lambda: self._add(projection(self._now(x)[:, :width])))
            return
        y = self._partial if reduced else self._x
        bias = None if linear.bias is None else linear.bias.data
        store = Store.PLAIN if reduced else Store.ADD
        self._open += linear.weight.packed.product(x.data_ptr(), x.stride(0), y.data_ptr(), y.stride(0), bias, store=store)
        if isinstance(projection, AllReduced):
            group = projection.group
            self._call(lambda: _ignore(group.all_reduce(self._partial[: self._step.tokens])))
            self._pending = self._partial

    # ---- small parts -----------------------------------------------------------------------------------------------------

    def _buffer(self, width: int) -> Tensor:
        """Allocate rows that begin an odd number of cache lines apart, so that the rows of a tile do not drive each other out."""
        lines = -(-width * self._dtype.itemsize // _CACHE_LINE) | 1
        return torch.empty((self._capacity, lines * _CACHE_LINE // self._dtype.itemsize), dtype=self._dtype)[:, :width]

    def _operation(self, kind: Kind, **fields: Tensor | int | float | None) -> Operation:
        operation = Operation(kind=kind, bfloat16=self._dtype is torch.bfloat16)
        for name, value in fields.items():
            setattr(operation, name, value.data_ptr() if isinstance(value, Tensor) else value)
            if name in ("input", "output", "addend") and isinstance(value, Tensor):
                setattr(operation, f"{name}_stride", value.stride(0))
        return operation

    def _call(self, function: Callable[[], None]) -> None:
        self._close()
        self._stretches.append(function)

    def _close(self) -> None:
        if self._open:
            self._stretches.append(Program(self._open))
            self._open = []

    def _now(self, buffer: Tensor) -> Tensor:
        return buffer[: self._step.tokens]

    def _add(self, y: Tensor) -> None:
        self._now(self._x).add_(y)

    def _token_ids(self) -> Tensor:
        return torch.tensor([token_id for index in order_rows(self._rows) for token_id in self._rows[index].token_ids])

    def _laid_out(self) -> StepLayout:
        """PyTorch's account of the step, for layers that the kernels do not know."""
        if self._layout is None:
            self._layout = lay_out(self._rows, self._cache.block_size, torch.device("cpu"))
            self._turned = self._rope.at(self._layout.positions)
        return self._layout

    def _rotation(self) -> Rotation:
        self._laid_out()
        return self._turned


def supports(dtype: torch.dtype, device: torch.device, block_size: int) -> bool:
    """Whether the kernels can serve a model of this type, on this device, with such KV blocks."""
    return packable(torch.empty((2, 2), dtype=dtype, device=device)) and block_size == KV_BLOCK_TOKENS


def attends(attention: Attention) -> bool:
    """Whether the kernels know heads of this size."""
    return attention.head_dim <= MOST_HEAD_DIM and attention.head_dim % 2 == 0


def _weight_of(norm: Norm | None) -> Tensor | None:
    return None if norm is None else norm.weight.data


def _address_of(bias: Weight | None) -> int | None:
    return None if bias is None else bias.data.data_ptr()


def _copy(source: Tensor, into: Tensor) -> None:
    into.copy_(source)


def _ignore(_: Tensor) -> None:
    """Take a result that was written in place."""
