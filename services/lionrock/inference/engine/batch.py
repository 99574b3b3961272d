"""One step of work as the scheduler states it and every rank executes it, with its compact encoding.

A batch is stateless: block tables travel whole, so that a rank needs no memory of earlier steps. The encoding is a header
followed by one flat array a column (little-endian, as every chip's host here is), so that encoding costs a few microseconds
a sequence. It travels between processes of one release only; it is no wire contract.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from lionrock.inference.engine.sequence import SequenceId, TokenLogprob

_MAGIC = 0x32425453  # "STB2"
_HEADER = struct.Struct("<IIIIII")  # magic, rows, tokens, blocks, released, copies
_ROW = struct.Struct("<qiiiiBfffiQi")  # id, start, tokens, drafts, blocks, flags, temperature, top_p, min_p, top_k, seed, logprobs
_SAMPLE, _TOP_K, _LOGPROBS, _ADJUSTED = 1, 2, 4, 8
_ADJUSTMENT = struct.Struct("<IfffIII")  # prompt tokens, three penalties, counts of tokens, biases and mask bytes
_RESULT_HEADER = struct.Struct("<III")  # magic, rows, logprob entries
_RESULT_MAGIC = 0x31525453  # "STR1"


class MalformedBatch(ValueError):
    """Bytes that `encode` did not write."""


@dataclass(frozen=True, slots=True)
class SamplingRow:
    """What the sampler needs of `Sampling` for one row."""

    temperature: float
    top_p: float
    top_k: int | None
    min_p: float
    seed: int
    """0 where the temperature is 0."""
    logprobs: int | None


GREEDY = SamplingRow(temperature=0.0, top_p=1.0, top_k=None, min_p=0.0, seed=0, logprobs=None)


@dataclass(frozen=True, slots=True)
class LogitAdjustment:
    """What changes a row's logits before anything is chosen from them, in this order: bias, penalties, then the mask.

    It travels with every step of the rows that need it, so that a rank needs no memory of a sequence's tokens.
    """

    tokens: Seq[int] = ()
    """Prompt and answer so far, when a penalty is set; otherwise empty."""
    prompt_tokens: int = 0
    """How many of `tokens` are prompt: presence and frequency count the answer alone."""
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token id, addend)."""
    allowed: bytes = b""
    """Bit t of little-endian 32-bit words: token t may be chosen. Empty: all may."""


@dataclass(frozen=True, slots=True)
class BatchRow:
    """One sequence's part of a step."""

    sequence_id: SequenceId
    start: int
    """Position of the first token to run; positions before it are in the cache."""
    token_ids: Seq[int]
    """Tokens at start, start + 1, …; one while decoding."""
    block_table: Seq[int]
    """Blocks of positions 0 … start + len(token_ids) − 1, in order; never more than those positions need."""
    sampling: SamplingRow | None
    """None: the chunk ends before the last known token, nothing is sampled."""
    drafts: int = 0
    """How many ids at the end of `token_ids` are guesses: the row samples at each of its last 1 + drafts positions."""
    adjustment: LogitAdjustment | None = None
    """Only where something is sampled, and only without drafts."""

    @property
    def end(self) -> int:
        """Position after the last token to run: that of the last token to be sampled."""
        return self.start + len(self.token_ids)

    @property
    def samples(self) -> int:
        """Tokens that this row samples, at positions end − drafts … end."""
        return 0 if self.sampling is None else 1 + self.drafts


@dataclass(frozen=True, slots=True)
class StepBatch:
    """Rows of one step. Not empty."""

    rows: tuple[BatchRow, ...]
    released: tuple[SequenceId, ...] = ()
    """Sequences that left since the batch before, for whatever reason."""
    copies: tuple[tuple[int, int], ...] = ()
    """(block, copy): copy whole KV blocks before the step writes anything (copy-on-write)."""

    def encode(self) -> bytes:
        """Bytes that `decode` turns back into an equal batch (floats rounded to binary32)."""
        tokens, blocks = array("I"), array("I")
        out = bytearray(_HEADER.size)
        adjustments: list[bytes] = []
        for row in self.rows:
            flags, top_k, logprobs, s = 0, 0, 0, GREEDY
            if row.sampling is not None:
                flags, s = _SAMPLE, row.sampling
                if s.top_k is not None:
                    flags, top_k = flags | _TOP_K, s.top_k
                if s.logprobs is not None:
                    flags, logprobs = flags | _LOGPROBS, s.logprobs
            if row.adjustment is not None:
                flags |= _ADJUSTED
                adjustments.append(_encode_adjustment(row.adjustment))
            out += _ROW.pack(
                row.sequence_id, row.start, len(row.token_ids), row.drafts, len(row.block_table), flags, s.temperature, s.top_p,
                s.min_p, top_k, s.seed, logprobs,
            )  # fmt: skip
            tokens.extend(row.token_ids)
            blocks.extend(row.block_table)
        _HEADER.pack_into(out, 0, _MAGIC, len(self.rows), len(tokens), len(blocks), len(self.released), len(self.copies))
        copies = array("I", [block for pair in self.copies for block in pair])
        columns = (tokens.tobytes(), blocks.tobytes(), array("q", self.released).tobytes(), copies.tobytes())
        return b"".join((out, *columns, *adjustments))

    @classmethod
    def decode(cls, data: bytes) -> StepBatch:
        """Inverse of `encode`. Raises MalformedBatch."""
        try:
            magic, rows, n_tokens, n_blocks, n_released, n_copies = _HEADER.unpack_from(data)
        except struct.error as error:
            raise MalformedBatch("shorter than its header") from error
        tokens_at = _HEADER.size + rows * _ROW.size
        blocks_at = tokens_at + 4 * n_tokens
        released_at = blocks_at + 4 * n_blocks
        copies_at = released_at + 8 * n_released
        at = copies_at + 8 * n_copies
        if magic != _MAGIC or at > len(data):
            raise MalformedBatch("wrong magic number or length")
        tokens, blocks, released, copies = array("I"), array("I"), array("q"), array("I")
        view = memoryview(data)
        tokens.frombytes(view[tokens_at:blocks_at])
        blocks.frombytes(view[blocks_at:released_at])
        released.frombytes(view[released_at:copies_at])
        copies.frombytes(view[copies_at:at])
        decoded: list[BatchRow] = []
        token, block = 0, 0
        for fields in _ROW.iter_unpack(view[_HEADER.size : tokens_at]):
            sequence_id, start, token_count, drafts, block_count, flags, temperature, top_p, min_p, top_k, seed, logprobs = fields
            if token_count < 0 or block_count < 0 or token + token_count > n_tokens or block + block_count > n_blocks:
                raise MalformedBatch("a row reaches past its column")
            if not 0 <= drafts <= max(0, token_count - 1):
                raise MalformedBatch("a row has more drafts than tokens")
            sampling = None
            if flags & _SAMPLE:
                sampling = SamplingRow(
                    temperature, top_p, top_k if flags & _TOP_K else None, min_p, seed, logprobs if flags & _LOGPROBS else None
                )
            adjustment = None
            if flags & _ADJUSTED:
                adjustment, at = _decode_adjustment(data, at)
            row_tokens = tuple(tokens[token : token + token_count])
            row_blocks = tuple(blocks[block : block + block_count])
            decoded.append(BatchRow(SequenceId(sequence_id), start, row_tokens, row_blocks, sampling, drafts, adjustment))
            token, block = token + token_count, block + block_count
        if at != len(data):
            raise MalformedBatch("longer than it says")
        pairs = tuple(zip(copies[::2], copies[1::2], strict=True))
        return cls(tuple(decoded), tuple(SequenceId(i) for i in released), pairs)


def _encode_adjustment(a: LogitAdjustment) -> bytes:
    counts = (len(a.tokens), len(a.logit_bias), len(a.allowed))
    head = _ADJUSTMENT.pack(a.prompt_tokens, a.repetition_penalty, a.presence_penalty, a.frequency_penalty, *counts)
    biases = b"".join(struct.pack("<If", token_id, bias) for token_id, bias in a.logit_bias)
    return b"".join((head, array("I", a.tokens).tobytes(), biases, a.allowed))


def _decode_adjustment(data: bytes, at: int) -> tuple[LogitAdjustment, int]:
    try:
        prompt_tokens, repetition, presence, frequency, n_tokens, n_biases, n_allowed = _ADJUSTMENT.unpack_from(data, at)
    except struct.error as error:
        raise MalformedBatch("an adjustment is cut off") from error
    tokens_at = at + _ADJUSTMENT.size
    biases_at = tokens_at + 4 * n_tokens
    allowed_at = biases_at + 8 * n_biases
    end = allowed_at + n_allowed
    if end > len(data):
        raise MalformedBatch("an adjustment is cut off")
    tokens = array("I", data[tokens_at:biases_at])
    biases = tuple(struct.iter_unpack("<If", data[biases_at:allowed_at]))
    allowed = data[allowed_at:end]
    return LogitAdjustment(tuple(tokens), prompt_tokens, repetition, presence, frequency, biases, allowed), end


@dataclass(frozen=True, slots=True)
class StepResult:
    """What the sampling rank chose: `samples` entries for each row of the batch, in row order, within a row by position."""

    token_ids: tuple[int, ...]
    logprobs: dict[int, TokenLogprob] = field(default_factory=dict)
    """By index into `token_ids`, for the rows that asked."""

    def encode(self) -> bytes:
        """Bytes that `decode` turns back into an equal result (floats rounded to binary32)."""
        out = [_RESULT_HEADER.pack(_RESULT_MAGIC, len(self.token_ids), len(self.logprobs)), array("I", self.token_ids).tobytes()]
        for index, entry in self.logprobs.items():
            out.append(struct.pack("<IfI", index, entry.logprob, len(entry.top)))
            out.extend(struct.pack("<If", token_id, logprob) for token_id, logprob in entry.top)
        return b"".join(out)

    @classmethod
    def decode(cls, data: bytes) -> StepResult:
        """Inverse of `encode`. Raises MalformedBatch."""
        try:
            magic, rows, entries = _RESULT_HEADER.unpack_from(data)
            at = _RESULT_HEADER.size + 4 * rows
            if magic != _RESULT_MAGIC or at > len(data):
                raise MalformedBatch("wrong magic number or length")
            token_ids = array("I", data[_RESULT_HEADER.size : at])
            logprobs: dict[int, TokenLogprob] = {}
            for _ in range(entries):
                index, logprob, count = struct.unpack_from("<IfI", data, at)
                at += 12
                if at + 8 * count > len(data):
                    raise MalformedBatch("log-probabilities reach past the end")
                top = tuple(struct.iter_unpack("<If", data[at : at + 8 * count]))
                at += 8 * count
                logprobs[index] = TokenLogprob(logprob, top)
        except struct.error as error:
            raise MalformedBatch("shorter than it says") from error
        if at != len(data):
            raise MalformedBatch("longer than it says")
        return cls(tuple(token_ids), logprobs)
