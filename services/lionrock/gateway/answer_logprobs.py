"""Log-probabilities of an answer's tokens, told only where the token's text has been released as the model wrote it.

Knows where tokens lie in the text, and what the guardrails have decided on. Does not know engines or wires of clients.

A token is told when the guardrails have released all of its text and no finding covers or touches it: where text was masked,
neither the token nor what else could have stood there is told. An alternative is told when the guardrails find nothing in it, read
after the text before it; one whose bytes are no text alone cannot be read, and is not told. So what a policy keeps from an answer
cannot be read off its probabilities either. Bounded: tokens wait here no longer than their text waits for the guardrails.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from lionrock.gateway.v1 import gateway_pb2 as gw
from lionrock.guardrails.v1 import guardrails_pb2 as guard
from lionrock.inference.v1 import inference_pb2 as inf

Spell = Callable[[Collection[int]], Awaitable[Sequence[bytes]]]
"""Returns the bytes of token ids."""
Inspect = Callable[[Sequence[str]], Awaitable[guard.InspectResponse]]
"""Judges texts that the model could have written, MAX_TEXTS at most."""

MAX_TEXTS: Final = 1024
_BEFORE: Final = 64  # code points before an alternative that it is read after


@dataclass(slots=True)
class _Token:
    """A token, and where its text lies, in code points of the answer as the model wrote it.

    `end` is None while its last character is cut.
    """

    token: bytes
    text: str
    start: int
    end: int | None
    logprob: float
    top: list[tuple[bytes, float]]


@dataclass(slots=True)
class Decided:
    """What the guardrails have decided of an answer. Positions are code points of the answer as the model wrote it.

    `upto`: all before it was released or masked. `complete`: whether `findings` are all that were found there.
    """

    upto: int = 0
    complete: bool = True
    findings: list[tuple[int, int]] = field(default_factory=list)


class AnswerLogprobs:
    """The log-probabilities of one answer."""

    def __init__(self, spell: Spell, inspect: Inspect) -> None:
        self._spell = spell
        self._inspect = inspect
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._waiting: deque[_Token] = deque()
        self._before = ""
        self._chars = 0
        self.withheld = 0
        """Tokens that are not told."""

    def withhold(self, tokens: int) -> None:
        """Tell nothing of these tokens."""
        self.withheld += tokens

    async def push(self, token_ids: Sequence[int], entries: Sequence[inf.TokenLogprobs]) -> None:
        """Take what the engine said of tokens. Raises TokenizationUnavailable and what it passes on."""
        ids = {*token_ids, *(other.token_id for entry in entries for other in entry.top)}
        spelling = dict(zip(ids, await self._spell(ids), strict=True))
        for token_id, entry in zip(token_ids, entries, strict=True):
            token = spelling[token_id]
            start, text = self._chars, self._decoder.decode(token)
            self._chars += len(text)
            if text:
                self._end_characters(text, start)
            top = [(spelling[other.token_id], other.logprob) for other in entry.top]
            cut = bool(self._decoder.getstate()[0])
            self._waiting.append(_Token(token, text, start, None if cut else self._chars, entry.logprob, top))

    def end(self) -> None:
        """Say that no token follows: a character that is cut stays so."""
        self._chars += len(self._decoder.decode(b"", final=True))
        for token in self._waiting:
            token.end = self._chars if token.end is None else token.end

    async def told(self, decided: Decided) -> list[gw.TokenLogprob]:
        """Return what can be told of tokens by now, each once. Raises GuardrailsUnavailable and what it passes on."""
        ready: list[_Token] = []
        while self._waiting and (end := self._waiting[0].end) is not None and end <= decided.upto:
            ready.append(self._waiting.popleft())
        shown: list[tuple[_Token, str]] = []
        for token in ready:
            if not decided.complete or _touched(token, decided.findings):
                self.withheld += 1
                self._before = ""
            else:
                shown.append((token, self._before))
                self._before = (self._before + token.text)[-_BEFORE:]
        next_start = self._waiting[0].start if self._waiting else self._chars
        decided.findings[:] = [finding for finding in decided.findings if finding[1] >= next_start]
        return await self._with_alternatives(shown)

    def _end_characters(self, text: str, start: int) -> None:
        """End the tokens whose character was cut: the first one that came since is theirs."""
        for token in reversed(self._waiting):
            if token.end is not None:
                return
            token.end = start + min(1, len(text))

    async def _with_alternatives(self, shown: Sequence[tuple[_Token, str]]) -> list[gw.TokenLogprob]:
        told = [gw.TokenLogprob(token=token.token, logprob=token.logprob) for token, _ in shown]
        read: list[tuple[int, bytes, float, str, int]] = []
        for number, (token, before) in enumerate(shown):
            for spelled, logprob in token.top:
                text = _text(spelled)
                if text:
                    read.append((number, spelled, logprob, before + text, len(before)))
        for first in range(0, len(read), MAX_TEXTS):
            some = read[first : first + MAX_TEXTS]
            judged = await self._inspect([text for _, _, _, text, _ in some])
            if judged.findings_truncated or (judged.action not in _KNOWN and not judged.findings):
                continue
            found = {finding.part for finding in judged.findings if finding.end > some[finding.part][4]}
            for part, (number, spelled, logprob, _, _) in enumerate(some):
                if part not in found:
                    told[number].top.add(token=spelled, logprob=logprob)
        return told


_KNOWN: Final = frozenset({guard.ACTION_ALLOW, guard.ACTION_MASK})


def _text(spelled: bytes) -> str | None:
    try:
        return spelled.decode()
    except UnicodeDecodeError:
        return None


def _touched(token: _Token, findings: Iterable[tuple[int, int]]) -> bool:
    assert token.end is not None
    return any(start <= token.end and token.start <= end for start, end in findings)
