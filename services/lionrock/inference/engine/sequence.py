"""Requests as callers state them, outputs as they come back, and the state of a sequence in between.

Knows no scheduling policy, no torch, no wire format. The fields of `Sampling` are those of `lionrock.common.v1.SamplingParams`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, NewType

from lionrock.inference.engine.block_manager import BlockHash
from lionrock.inference.engine.errors import EngineError

RequestId = NewType("RequestId", str)
SequenceId = NewType("SequenceId", int)
"""Number of a sequence in its engine, never reused; what step batches and shard timings are keyed by."""


class FinishReason(enum.Enum):
    """Why a sequence left the engine."""

    STOP = "stop"
    """The model's end-of-sequence token or a stop token came, or a stop string is complete."""
    LENGTH = "length"
    """`max_tokens` or the context window was reached."""
    EXPIRED = "expired"
    """The deadline passed."""
    ABORTED = "aborted"
    """The caller went away."""
    REFUSED = "refused"
    """The request's constraint turned out not to be usable; the output's `error` says why."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen and when generation stops. Defaults mean "not asked for"."""

    temperature: float = 0.0
    """Divides the logits; 0 is greedy (lowest id on a tie)."""
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    seed: int | None = None
    """0 … 2^64−1; required when the temperature is above 0. The draw at a position depends on (seed, position) alone."""
    max_tokens: int | None = None
    """Tokens of the answer at most, resumed ones counted; None: what the context window and the engine's limit allow."""
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    """None: not reported; n: the chosen token's and those of the n most likely."""
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class Constraint:
    """A language that the answer must belong to, token by token. As `lionrock.common.v1.OutputConstraint`."""

    kind: Literal["json_schema", "regex", "ebnf", "choice"]
    source: str
    """The schema as JSON text, the expression, the grammar whose start symbol is `root`, or a JSON array of the choices."""


@dataclass(frozen=True, slots=True)
class Request:
    """One sequence to generate."""

    request_id: RequestId
    token_ids: tuple[int, ...]
    """Prompt, followed by the answer's tokens that the caller already has when it resumes."""
    sampling: Sampling = Sampling()
    resumed_tokens: int = 0
    """How many ids at the end of `token_ids` belong to the answer."""
    priority: int = 0
    """Larger goes first; within one priority, the tenant that was served least, and within a tenant, first come first served."""
    deadline_s: float | None = None
    """`time.monotonic()` after which the sequence leaves at the next step."""
    cache_salt: bytes = b""
    """Prefix-cache salt of the tenant; KV blocks are shared within one salt only."""
    tenant: str = ""
    """Whose turn it takes: tenants share an engine by weight (fair_share.py)."""
    weight: int = 1
    trace: str | None = None
    """W3C traceparent; carried, never read."""
    constraint: Constraint | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural logarithms of probabilities at one position, before temperature and truncation."""

    logprob: float
    top: tuple[tuple[int, float], ...]
    """(token id, logarithm), best first."""


@dataclass(frozen=True, slots=True)
class Timings:
    """What one request took. Seconds from admission; counts in tokens."""

    queue_s: float
    first_token_s: float | None
    total_s: float
    prompt_tokens: int
    cached_prompt_tokens: int
    completion_tokens: int
    """Tokens of the answer, resumed ones counted."""
    preemptions: int
    resumptions: int = 0
    """How often it was computed anew because a rank was lost."""


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What a step (or several, once coalesced) produced for one request."""

    request_id: RequestId
    sequence_id: SequenceId
    token_ids: tuple[int, ...]
    """New tokens; the end-of-sequence token and stop tokens are not among them. May be empty on the last output."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """One entry a token when asked for, otherwise empty."""
    finish: FinishReason | None = None
    timings: Timings | None = None
    """Set with `finish`."""
    stop: str | None = None
    """The stop string that ended the answer: its text ends before the first occurrence of this one. The token that completed it
    is among the answer's tokens, and may bring text after it."""
    error: EngineError | None = None
    """Set with REFUSED."""


@dataclass(slots=True, eq=False)
class Sequence:
    """A request on its way: the engine's and scheduler's mutable record. Compared by identity."""

    sequence_id: SequenceId
    request: Request
    tokens: list[int]
    """Prompt and answer."""
    prompt_tokens: int
    max_total_tokens: int
    """Length of `tokens` at which the sequence ends."""
    stop_token_ids: frozenset[int]
    arrived_s: float
    computed_tokens: int = 0
    """Tokens whose keys and values are in the cache: a prefix of `tokens`."""
    charged_tokens: int = 0
    """Tokens at the start of `tokens` that were charged to the tenant, or cost nothing: what is computed anew is not charged."""
    block_table: list[int] = field(default_factory=list)
    block_hashes: list[BlockHash] = field(default_factory=list)
    """Names of the first full blocks of `tokens`, as far as anybody asked. They stay right while tokens are only appended."""
    published_blocks: int = 0
    """Blocks at the start of `block_table` that are shared, or were offered to the prefix cache."""
    preemptions: int = 0
    resumptions: int = 0
    failed_at: tuple[int, int] | None = None
    """Position up to which it was computed by the step in which the runner was last lost, and the length of `tokens` then."""
    failed_steps: int = 0
    """Losses in a row in that step."""
    cached_prompt_tokens: int = 0
    scheduled_s: float | None = None
    first_token_s: float | None = None

    @property
    def pending_tokens(self) -> int:
        """Known tokens that are not yet computed: 1 while decoding, more during prefill and recompute."""
        return len(self.tokens) - self.computed_tokens

    def note_failed_step(self, end: int) -> int:
        """Count a loss of the runner in a step of this sequence up to `end`; returns how many came in a row just there."""
        at = (end, len(self.tokens))
        self.failed_steps = self.failed_steps + 1 if at == self.failed_at else 1
        self.failed_at = at
        return self.failed_steps

    def timings(self, now_s: float) -> Timings:
        """Return what the request took until `now_s` (monotonic)."""
        return Timings(
            queue_s=(now_s if self.scheduled_s is None else self.scheduled_s) - self.arrived_s,
            first_token_s=None if self.first_token_s is None else self.first_token_s - self.arrived_s,
            total_s=now_s - self.arrived_s,
            prompt_tokens=self.prompt_tokens,
            cached_prompt_tokens=self.cached_prompt_tokens,
            completion_tokens=len(self.tokens) - self.prompt_tokens,
            preemptions=self.preemptions,
            resumptions=self.resumptions,
        )
