"""What a request may change about a row's logits before a token is chosen: bias, penalties, mask, in this order.

The definitions are those of `lionrock.common.v1.SamplingParams`. Bias is added; repetition divides positive and multiplies negative
logits of every token in prompt or answer (Keskar et al. 2019); frequency subtracts its value for each occurrence in the answer,
presence once for each token of the answer; a token that the mask leaves out gets −∞. All rows of a step are changed together, but
no row's result depends on another's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lionrock.inference.engine.batch import LogitAdjustment

ADJUSTING_OPTIONS = frozenset({"repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias"})
"""Fields of `Sampling` that `adjust` honours."""


def adjust(logits: Tensor, adjusted: Seq[tuple[int, LogitAdjustment]]) -> None:
    """Apply (row index, adjustment) pairs in place. logits: [R, V] float32; indices are distinct."""
    if not adjusted:
        return
    _add_bias(logits, adjusted)
    _penalise_repetition(logits, adjusted)
    _penalise_presence_and_frequency(logits, adjusted)
    _mask(logits, adjusted)


def _add_bias(logits: Tensor, adjusted: Seq[tuple[int, LogitAdjustment]]) -> None:
    entries = [(row, token_id, bias) for row, item in adjusted for token_id, bias in item.logit_bias]
    if entries:
        rows, tokens, biases = zip(*entries, strict=True)
        where = (torch.tensor(rows, device=logits.device), torch.tensor(tokens, device=logits.device))
        logits[where] = logits[where] + torch.tensor(biases, dtype=torch.float32, device=logits.device)


def _penalise_repetition(logits: Tensor, adjusted: Seq[tuple[int, LogitAdjustment]]) -> None:
    places = [
        _Places.of(row, item.tokens, item.repetition_penalty, 0.0) for row, item in adjusted if item.repetition_penalty != 1.0
    ]
    if places:
        where, penalty, _, _ = _joined(places, logits.device)
        seen = logits[where]
        logits[where] = torch.where(seen > 0, seen / penalty, seen * penalty)


def _penalise_presence_and_frequency(logits: Tensor, adjusted: Seq[tuple[int, LogitAdjustment]]) -> None:
    places = [
        _Places.of(row, item.tokens[item.prompt_tokens :], item.presence_penalty, item.frequency_penalty)
        for row, item in adjusted
        if item.presence_penalty != 0.0 or item.frequency_penalty != 0.0
    ]
    if places:
        where, presence, frequency, counts = _joined(places, logits.device)
        logits[where] = logits[where] - frequency * counts - presence


@dataclass(frozen=True, slots=True)
class _Places:
    """One row's distinct tokens, how often each occurs, and two numbers that hold for all of them."""

    row: int
    tokens: np.ndarray
    counts: np.ndarray
    first: float
    second: float

    @classmethod
    def of(cls, row: int, tokens: Seq[int], first: float, second: float) -> _Places:
        distinct, counts = np.unique(np.asarray(tokens, dtype=np.int64), return_counts=True)
        return cls(row, distinct, counts, first, second)


def _joined(places: Seq[_Places], device: torch.device) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor, Tensor]:
    """((rows, tokens), first, second, counts) of all places, each [n]."""
    sizes = [len(place.tokens) for place in places]
    rows = np.repeat(np.asarray([place.row for place in places], dtype=np.int64), sizes)
    tokens = np.concatenate([place.tokens for place in places])
    columns = (
        np.repeat(np.asarray([place.first for place in places], dtype=np.float32), sizes),
        np.repeat(np.asarray([place.second for place in places], dtype=np.float32), sizes),
        np.concatenate([place.counts for place in places]).astype(np.float32),
    )
    first, second, counts = (torch.from_numpy(column).to(device) for column in columns)
    return (torch.from_numpy(rows).to(device), torch.from_numpy(tokens).to(device)), first, second, counts


def _mask(logits: Tensor, adjusted: Seq[tuple[int, LogitAdjustment]]) -> None:
    masked = [(row, item.allowed) for row, item in adjusted if item.allowed]
    if not masked:
        return
    vocab_size = logits.shape[-1]
    packed = np.zeros((len(masked), -(-vocab_size // 8)), dtype=np.uint8)
    for index, (_, allowed) in enumerate(masked):
        known = np.frombuffer(allowed, dtype=np.uint8)[: packed.shape[1]]
        packed[index, : len(known)] = known
    bits = np.unpackbits(~packed, axis=1, count=vocab_size, bitorder="little")
    forbidden = torch.from_numpy(bits).view(torch.bool).to(logits.device)
    for index, (row, _) in enumerate(masked):  # row by row: no copy of the logits
        logits[row].masked_fill_(forbidden[index], -math.inf)
