"""Drafts without a draft model: what followed the last tokens the last time they occurred ("prompt look-up"), where that pays.

A step that checks k drafts of a row computes k more tokens and yields up to k more; what it samples is what it would have sampled
one by one, since a draw depends on (seed, position) alone. So only speed is at stake, and this policy measures it: per number of
decoding rows it compares tokens a second of steps with and without drafts and offers them where they are faster; per sequence it
offers more after drafts that held and fewer after drafts that did not.

Knows token ids and seconds; no blocks, no torch, no clock of its own. Source: Saxena 2023 (prompt look-up decoding), Leviathan
et al. 2023 (speculative decoding).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from lionrock.inference.engine.sequence import Sequence, SequenceId

NGRAM = 3
"""Tokens that must have occurred before, in this order, for a draft to be offered."""

_FIRST_OFFER = 4
_PAUSE_TOKENS = 16  # after an offer of which nothing held
_TRIAL_STEPS = 8  # steps with drafts before they are judged: one that fails says little
_REST_STEPS = 256  # steps without drafts, once they were slower, before they are tried again
_REFRESH_STEPS = 64  # now and then a step without, lest the comparison rest on old figures
_MARGIN = 1.02
_SMOOTHING = 0.2


@dataclass(slots=True)
class _History:
    """What one sequence has said and how its drafts fared."""

    follows: dict[tuple[int, ...], int] = field(default_factory=dict)
    """n-gram → index of the token after its last occurrence."""
    indexed: int = 0
    """Tokens that have entered `follows`."""
    offer: int = _FIRST_OFFER
    resume_at: int = 0
    """Length of the sequence from which drafts are offered again."""


@dataclass(slots=True)
class _Pace:
    """Tokens a row and seconds of a kind of step, as moving averages."""

    tokens: float = 0.0
    seconds: float = 0.0
    steps: int = 0

    def note(self, tokens: float, seconds: float) -> None:
        self.steps += 1
        share = _SMOOTHING if self.seconds else 1.0
        self.tokens += share * (tokens - self.tokens)
        self.seconds += share * (seconds - self.seconds)

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


@dataclass(slots=True)
class _Mode:
    """The two kinds of step for one class of row counts."""

    plain: _Pace = field(default_factory=_Pace)
    drafted: _Pace = field(default_factory=_Pace)
    resting: int = 0
    """Steps for which no drafts are offered."""
    offers: int = 0


class PromptLookup:
    """Offers drafts for decoding sequences. At most `max_drafts` a row; 0 offers none."""

    def __init__(self, max_drafts: int) -> None:
        if max_drafts < 0:
            raise ValueError("the number of drafts is not negative")
        self._max_drafts = max_drafts
        self._histories: dict[SequenceId, _History] = {}
        self._modes: dict[int, _Mode] = {}

    def propose(self, sequences: Iterable[Sequence], rows: int) -> Mapping[SequenceId, tuple[int, ...]]:
        """Return drafts by sequence, none of them empty. sequences: decoding ones that may have drafts; rows: all that decode."""
        if self._max_drafts == 0 or not self._worth_trying(rows):
            return {}
        drafts = {sequence.sequence_id: self._draft(sequence) for sequence in sequences}
        return {sequence_id: draft for sequence_id, draft in drafts.items() if draft}

    def note_step(self, rows: int, tokens: int, seconds: float, *, drafted: bool) -> None:
        """Say what a step of decoding rows alone took. tokens: that it appended to all of them."""
        if self._max_drafts == 0 or seconds <= 0:
            return
        mode = self._modes.setdefault(rows.bit_length(), _Mode())
        (mode.drafted if drafted else mode.plain).note(tokens / rows, seconds)

    def note_draft(self, sequence: Sequence, offered: int, held: int) -> None:
        """Say how many of a sequence's drafts held."""
        history = self._histories.get(sequence.sequence_id)
        if history is None:
            return
        if held == offered:
            history.offer = min(self._max_drafts, 2 * history.offer)
        elif held == 0:
            history.offer = max(1, history.offer // 2)
            history.resume_at = len(sequence.tokens) + _PAUSE_TOKENS
        else:
            history.offer = held + 1

    def forget(self, sequence_id: SequenceId) -> None:
        """Drop what is known of a sequence that has ended."""
        self._histories.pop(sequence_id, None)

    def _worth_trying(self, rows: int) -> bool:
        """Whether steps with drafts are as fast as others at this number of rows, or it is time to find out again."""
        mode = self._modes.setdefault(rows.bit_length(), _Mode())
        if not mode.plain.steps:
            return False
        if mode.resting:
            mode.resting -= 1
            return False
        if mode.drafted.steps >= _TRIAL_STEPS and mode.drafted.rate <= _MARGIN * mode.plain.rate:
            mode.drafted.steps, mode.resting = 0, _REST_STEPS
            return False
        mode.offers += 1
        return mode.offers % _REFRESH_STEPS != 0

    def _draft(self, sequence: Sequence) -> tuple[int, ...]:
        tokens = sequence.tokens
        room = sequence.max_total_tokens - len(tokens) - 1  # the last token needs no draft
        history = self._histories.setdefault(sequence.sequence_id, _History())
        for end in range(max(NGRAM, history.indexed + 1), len(tokens)):
            history.follows[tuple(tokens[end - NGRAM : end])] = end
        history.indexed = len(tokens) - 1
        if len(tokens) < history.resume_at or len(tokens) < NGRAM:
            return ()
        found = history.follows.get(tuple(tokens[-NGRAM:]))
        if found is None:
            return ()
        count = min(history.offer, self._max_drafts, room)
        # What followed may run into the end of what is known: then it repeats itself from there.
        period = len(tokens) - found
        return tuple(tokens[found + index % period] for index in range(max(0, count)))
