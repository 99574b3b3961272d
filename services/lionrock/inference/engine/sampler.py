"""From logits to tokens. The draw at a position is a pure function of (seed, position, logits): no state, no batch, no order.

A uniform number comes from the counter-based generator Philox4x32-10 (Salmon et al. 2011) with the seed as key and the position
as counter; the token is where it falls in the cumulated probabilities, in the order of token ids. So a sequence draws the same
tokens in any batch, after a preemption and after a resume elsewhere, as far as its logits are the same.

Order of what changes a row before the draw: its LogitAdjustment (logit_adjustment.py), temperature, top_k, top_p (over what top_k
left), min_p. Ties go to the lowest id, everywhere.

Log-probabilities are the model's own, from the logits before adjustment, temperature and truncation: what the model thought of
the token that was chosen, as vLLM ("raw_logprobs") and OpenAI report them. So a token that a mask forced may have a low one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from lionrock.inference.engine.batch import LogitAdjustment, SamplingRow, StepResult
from lionrock.inference.engine.logit_adjustment import ADJUSTING_OPTIONS, adjust
from lionrock.inference.engine.sequence import TokenLogprob

SAMPLING_OPTIONS = frozenset({"top_p", "top_k", "min_p", "logprobs"}) | ADJUSTING_OPTIONS
"""Fields of `Sampling` that `sample` honours beyond temperature and seed."""

_NUCLEUS_GUESS = 512  # most nuclei are smaller; a larger one costs a full sort
_VANISHING = 1e-30  # temperatures up to this are taken as their limit, greedy, before they underflow
_WITHOUT_FLOAT64 = frozenset({"npu", "mps"})
_MASK = 0xFFFFFFFF


def philox(seed: int, position: int) -> tuple[int, int, int, int]:
    """Return four 32-bit words of Philox4x32-10 for a 64-bit key and a counter below 2^128."""
    key0, key1 = seed & _MASK, seed >> 32 & _MASK
    c0, c1, c2, c3 = (position >> shift & _MASK for shift in (0, 32, 64, 96))
    for _ in range(10):
        product0, product1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = product1 >> 32 ^ c1 ^ key0, product1 & _MASK, product0 >> 32 ^ c3 ^ key1, product0 & _MASK
        key0, key1 = key0 + 0x9E3779B9 & _MASK, key1 + 0xBB67AE85 & _MASK
    return c0, c1, c2, c3


def uniform(seed: int, position: int) -> float:
    """Return the number in [0, 1) that decides a position, with 53 random bits."""
    high, low, _, _ = philox(seed, position)
    return ((high << 32 | low) >> 11) * 2.0**-53


def needs_whole_logits(row: SamplingRow, adjustment: LogitAdjustment | None) -> bool:
    """Say whether the row needs more of the logits than where their maximum is."""
    return row.temperature > 0 or row.logprobs is not None or adjustment is not None


def sample(
    logits: Tensor, positions: Seq[int], rows: Seq[SamplingRow], adjustments: Seq[LogitAdjustment | None] | None = None
) -> StepResult:
    """Choose one token a row.

    logits: [R, V] float32, changed in place where a row has an adjustment; positions: of the token to be chosen; adjustments: one
    a row, None where there is none at all.
    """
    adjusted = [] if adjustments is None else [(index, item) for index, item in enumerate(adjustments) if item is not None]
    unadjusted = {index: logits[index].clone() for index, _ in adjusted if rows[index].logprobs is not None}
    adjust(logits, adjusted)
    chosen: list[int] = torch.argmax(logits, dim=-1).tolist()
    drawn = [index for index, row in enumerate(rows) if row.temperature > _VANISHING]
    if drawn:
        select = logits if len(drawn) == len(rows) else logits[drawn]
        tokens = _draw(select, [positions[index] for index in drawn], [rows[index] for index in drawn])
        for index, token_id in zip(drawn, tokens, strict=True):
            chosen[index] = token_id
    logprobs = {
        index: _logprob(unadjusted.get(index, logits[index]), chosen[index], row.logprobs)
        for index, row in enumerate(rows)
        if row.logprobs is not None
    }
    return StepResult(tuple(chosen), logprobs)


def _draw(logits: Tensor, positions: Seq[int], rows: Seq[SamplingRow]) -> list[int]:
    """Draw one token a row; every row has a temperature. logits: [n, V]."""
    device = logits.device
    temperature = torch.tensor([row.temperature for row in rows], dtype=torch.float32, device=device)
    scaled = (logits - logits.amax(dim=-1, keepdim=True)) / temperature[:, None]
    vocab_size = logits.shape[-1]
    for index, row in enumerate(rows):
        if row.top_k is not None and row.top_k < vocab_size:
            _keep_top_k(scaled[index], row.top_k)
        if row.top_p < 1.0:
            _keep_nucleus(scaled[index], row.top_p)
        if row.min_p > 0.0:
            scaled[index].masked_fill_(scaled[index] < math.log(row.min_p), -math.inf)
    wide = torch.float32 if device.type in _WITHOUT_FLOAT64 else torch.float64
    cumulated = scaled.exp_().cumsum(dim=-1, dtype=wide)
    draws = torch.tensor(
        [uniform(row.seed, position) for row, position in zip(rows, positions, strict=True)], dtype=wide, device=device
    )
    total = cumulated[:, -1:].contiguous()
    # The first token whose cumulated probability exceeds the draw; rounding must not reach past the last possible one.
    last = torch.searchsorted(cumulated, total)
    tokens = torch.searchsorted(cumulated, draws[:, None] * total, right=True)
    chosen: list[int] = torch.minimum(tokens, last)[:, 0].tolist()
    return chosen


def _keep_top_k(scaled: Tensor, k: int) -> None:
    """Set all but the k largest to −∞, in place. scaled: [V]."""
    _keep_largest(scaled, torch.topk(scaled, k, sorted=True).values, k)


def _keep_nucleus(scaled: Tensor, top_p: float) -> None:
    """Set all but the smallest set that reaches top_p to −∞, in place. scaled: [V], maximum 0."""
    mass = scaled.exp().sum()
    largest = torch.topk(scaled, min(_NUCLEUS_GUESS, scaled.shape[0]), sorted=True).values
    reached = largest.exp().cumsum(0) >= top_p * mass
    if not bool(reached[-1]):
        largest = torch.sort(scaled, descending=True).values
        reached = largest.exp().cumsum(0) >= top_p * mass
    count = int(reached.to(torch.int8).argmax()) + 1 if bool(reached[-1]) else scaled.shape[0]
    _keep_largest(scaled, largest, count)


def _keep_largest(scaled: Tensor, largest: Tensor, count: int) -> None:
    """Keep the `count` largest, of equals those with the lowest ids. largest: the values in descending order, at least `count`."""
    if count >= scaled.shape[0]:
        return
    threshold = largest[count - 1]
    equal = scaled == threshold
    spare = count - (largest[:count] > threshold).sum()
    keep = (scaled > threshold) | (equal & (equal.cumsum(0) <= spare))
    scaled.masked_fill_(~keep, -math.inf)


def _logprob(logits: Tensor, token_id: int, count: int) -> TokenLogprob:
    """Log-probabilities that unadjusted logits mean. logits: [V]."""
    logprobs = logits.float().log_softmax(dim=-1)
    chosen = float(logprobs[token_id])
    if count == 0:
        return TokenLogprob(chosen, ())
    # Some more than asked for, so that equals at the end can be put in the order of their ids.
    values, ids = torch.topk(logprobs, min(count + 8, logprobs.shape[0]), sorted=True)
    ranked = sorted(zip(ids.tolist(), values.tolist(), strict=True), key=lambda pair: (-pair[1], pair[0]))
    return TokenLogprob(chosen, tuple(ranked[:count]))
