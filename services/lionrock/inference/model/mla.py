"""Multi-head latent attention over a paged cache of compressed keys and values, one vector a token for all heads.

A token's cache entry is [latent ‖ rotated key]: `kv_lora_rank` numbers from which each head's key and value are linear maps, and a
rotated key part that all heads share. Two ways to attend, equal but for rounding:
- absorbed: queries are carried into the latent space, where all heads read the entries as one shared key and value. What grows with
  the context is read once for all heads: right for decoding.
- expanded: keys and values of each head are unpacked from the entries, then attended to as usual. Fewer products where many queries
  share the unpacking: right for prefill.
Source: DeepSeek-V2 (2405.04434) §2.1 and appendix B. Norms inside have the epsilon of the released code, not `rms_norm_eps`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from lionrock.inference.model.attention import Chunk, Decoding, StepLayout, write
from lionrock.inference.model.config import MlaConfig, ModelConfig
from lionrock.inference.model.layers import Linear, Norm, Projection, Rotation, Slice, Weight

_NORM_EPSILON = 1e-6
_MAX_EXPANDED = 1 << 26  # numbers that are unpacked at a time; heads beyond wait their turn


class LatentAttention:
    """Self-attention of one layer over the query heads of this rank; compression is whole on every rank."""

    def __init__(self, config: ModelConfig, name: str) -> None:
        assert config.mla is not None, "the model has no latent attention"
        mla, hidden, heads = config.mla, config.hidden_size, config.query_heads
        self.mla, self.query_heads = mla, heads
        self.scale = mla.qk_head_dim**-0.5 * (config.rope.yarn.score_factor if config.rope.yarn is not None else 1.0)
        compressions = [Slice.matrix(f"{name}.kv_a_proj_with_mqa", mla.cached_dim, hidden)]
        self.query_norm: Norm | None = None
        if mla.q_lora_rank is None:
            self.queries = Linear(Slice.matrix(f"{name}.q_proj", heads * mla.qk_head_dim, hidden), bias=False)
        else:
            compressions.insert(0, Slice.matrix(f"{name}.q_a_proj", mla.q_lora_rank, hidden))
            self.query_norm = Norm(f"{name}.q_a_layernorm", mla.q_lora_rank, _NORM_EPSILON)
            self.queries = Linear(Slice.matrix(f"{name}.q_b_proj", heads * mla.qk_head_dim, mla.q_lora_rank), bias=False)
        self.compress = Linear(*compressions, bias=config.qkv_bias)
        self.latent_norm = Norm(f"{name}.kv_a_layernorm", mla.kv_lora_rank, _NORM_EPSILON)
        # Used from both sides, so it stays in plain layout: [heads × (qk_nope_head_dim + v_head_dim), kv_lora_rank].
        self.unpack = Weight(Slice.matrix(f"{name}.kv_b_proj", heads * (mla.qk_nope_head_dim + mla.v_head_dim), mla.kv_lora_rank))
        self.output: Projection = Linear(
            Slice.matrix(f"{name}.o_proj", hidden, heads * mla.v_head_dim), bias=config.attention_output_bias
        )

    def __call__(self, x: Tensor, rotation: Rotation, cache: tuple[Tensor, ...], layout: StepLayout) -> Tensor:
        """Attend. x: [T, hidden]; cache: this layer's entries, to which those of x are written first."""
        mla, (entries,) = self.mla, cache
        compressed = self.compress(x)
        latent, key = compressed[:, -mla.cached_dim : -mla.qk_rope_head_dim], compressed[:, -mla.qk_rope_head_dim :]
        write(entries, torch.cat((self.latent_norm(latent)[:, None], rotation(key[:, None])), dim=-1), layout)
        source = x if self.query_norm is None else self.query_norm(compressed[:, : -mla.cached_dim])
        queries = self.queries(source).view(x.shape[0], -1, mla.qk_head_dim)
        plain, rotated = queries[..., : mla.qk_nope_head_dim], rotation(queries[..., mla.qk_nope_head_dim :])
        return self.output(self._attend(plain, rotated, entries, layout).flatten(1))

    def weights(self) -> Iterator[Weight]:
        """List what to load."""
        yield from self.compress.weights()
        if self.query_norm is not None:
            yield from self.query_norm.weights()
        yield from self.queries.weights()
        yield from self.latent_norm.weights()
        yield self.unpack
        yield from self.output.weights()

    def _attend(self, plain: Tensor, rotated: Tensor, entries: Tensor, layout: StepLayout) -> Tensor:
        """Attend over one layer's cache. plain, rotated: [T, H, …]; entries: [1, slots, cached]. Returns [T, H, v_head_dim]."""
        out = plain.new_empty(*plain.shape[:2], self.mla.v_head_dim)
        if (decoding := layout.decoding) is not None:
            part = slice(0, decoding.rows)
            out[part] = self._values(self._decode(self._absorb(plain[part], rotated[part]), entries, decoding))
        for chunk in layout.chunks:
            part = chunk.tokens
            if absorbing_is_cheaper(self.mla, part.stop - part.start, chunk.span.length):
                out[part] = self.attend_absorbed(plain[part], rotated[part], entries, chunk)
            else:
                out[part] = self.attend_expanded(plain[part], rotated[part], entries, chunk)
        return out

    def attend_absorbed(self, plain: Tensor, rotated: Tensor, entries: Tensor, chunk: Chunk) -> Tensor:
        """Attend in the latent space. plain, rotated: the chunk's own, [n, H, …]. Returns [n, H, v_head_dim]."""
        queries = self._absorb(plain, rotated)[None]  # [1, H, n, cached]
        shared = chunk.span.of(entries)[None].expand(-1, queries.shape[1], -1, -1)
        # Entries serve as values too, as wide as keys for the fused kernel's sake; the rotated part of the result is dropped.
        attended = functional.scaled_dot_product_attention(
            queries, shared, shared, attn_mask=chunk.mask, is_causal=chunk.mask is None, scale=self.scale
        )
        return self._values(attended[0, ..., : self.mla.kv_lora_rank])

    def attend_expanded(self, plain: Tensor, rotated: Tensor, entries: Tensor, chunk: Chunk) -> Tensor:
        """Attend to each head's own keys and values; see `attend_absorbed`."""
        mla, heads = self.mla, plain.shape[1]
        rank, nope, width = mla.kv_lora_rank, mla.qk_nope_head_dim, mla.qk_nope_head_dim + mla.v_head_dim
        found = chunk.span.of(entries)[0]  # [length, cached]
        unpack = self.unpack.data.view(heads, width, rank)
        queries = torch.cat((plain, rotated), dim=-1).transpose(0, 1)
        padding = max(0, mla.qk_head_dim - mla.v_head_dim)  # values as wide as keys for the fused kernel's sake
        step = max(1, _MAX_EXPANDED // (found.shape[0] * (width + 2 * mla.qk_head_dim)))
        out = plain.new_empty(plain.shape[0], heads, mla.v_head_dim)
        for first in range(0, heads, step):
            part = slice(first, first + step)
            unpacked = functional.linear(found[:, :rank], unpack[part].flatten(0, 1)).view(found.shape[0], -1, width)
            shared = found[:, None, rank:].expand(-1, unpacked.shape[1], -1)
            keys = torch.cat((unpacked[..., :nope], shared), dim=-1).transpose(0, 1)
            values = functional.pad(unpacked[..., nope:], (0, padding)).transpose(0, 1)
            attended = functional.scaled_dot_product_attention(
                queries[None, part], keys[None], values[None], attn_mask=chunk.mask, is_causal=chunk.mask is None, scale=self.scale
            )
            out[:, part] = attended[0, ..., : mla.v_head_dim].transpose(0, 1)
        return out

    def _decode(self, queries: Tensor, entries: Tensor, decoding: Decoding) -> Tensor:
        """Attend for rows of one token, all in one call. queries: [H, B, cached].

        Returns [H, B, kv_lora_rank].
        """
        mask = None
        if decoding.single is not None:
            shared = decoding.single.of(entries)[None]
        else:
            assert decoding.slots is not None
            assert decoding.mask is not None
            shared = entries.index_select(1, decoding.slots).view(decoding.rows, 1, -1, entries.shape[-1])
            mask = decoding.mask[:, None].to(entries.dtype)
        # Heads are the rows of one query matrix a sequence, [B, 1, H, cached]: entries are read once for all of them.
        rows = queries.transpose(0, 1)[:, None]
        attended = functional.scaled_dot_product_attention(rows, shared, shared, attn_mask=mask, scale=self.scale)
        return attended[:, 0, :, : self.mla.kv_lora_rank].transpose(0, 1)

    def _absorb(self, plain: Tensor, rotated: Tensor) -> Tensor:
        """Carry queries into the space of cache entries. plain, rotated: [n, H, …]; returns [H, n, cached]."""
        heads, nope = plain.shape[1], self.mla.qk_nope_head_dim
        keys = self.unpack.data.view(heads, -1, self.mla.kv_lora_rank)[:, :nope]
        return torch.cat((torch.bmm(plain.transpose(0, 1), keys), rotated.transpose(0, 1)), dim=-1)

    def _values(self, attended: Tensor) -> Tensor:
        """Turn what was read in the latent space into each head's values. attended: [H, n, rank]; returns [n, H, v_head_dim]."""
        values = self.unpack.data.view(attended.shape[0], -1, self.mla.kv_lora_rank)[:, self.mla.qk_nope_head_dim :]
        # This way round the matrix is read along its rows: in bfloat16 four times as fast for the few queries of decoding.
        return torch.bmm(values, attended.transpose(1, 2)).permute(2, 0, 1)


def absorbing_is_cheaper(mla: MlaConfig, tokens: int, length: int) -> bool:
    """Compare multiplications a head of the two ways, for that many queries against a context of that length."""
    unpacking = mla.kv_lora_rank * (mla.qk_nope_head_dim + mla.v_head_dim)
    absorbed = tokens * unpacking + tokens * length * 2 * mla.cached_dim
    padded = max(mla.qk_head_dim, mla.v_head_dim)
    return absorbed < length * unpacking + tokens * length * (mla.qk_head_dim + padded)
