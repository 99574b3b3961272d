"""Token ids in, text that may be shown out: decode, cut at stop strings, guard.

Knows the order of the three and how to end them; does not know where ids come from or where text goes. Nothing leaves `push` or
`end` that the guardrails have not released. Both inner streams are opened when this is made, so that they are ready before the
first token.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from lionrock.gateway.answer_logprobs import Decided
from lionrock.gateway.paired_stream import PairedStream
from lionrock.gateway.stop_strings import StopStringCutter
from lionrock.gateway.verdict import Verdict
from lionrock.gateway.vocabulary import AnswerDecoder
from lionrock.guardrails.v1 import guardrails_pb2 as guard

Guarding = PairedStream[guard.InspectStreamRequest, guard.InspectStreamResponse]

# A rule of ACTION_REVIEW wants a person to decide: where nobody can, the answer ends there.
_ENDING = frozenset({guard.ACTION_REVIEW, guard.ACTION_BLOCK})
_TOO_MANY_FINDINGS = "other"
_NEEDS_REVIEW = "This answer needs a reviewer's decision. / 此回答需由審核人員決定。 / 此回答需由审核人员决定。"
_CHUNK = 65_536  # code points a message to the guardrails


class AnswerText:
    """One answer on its way from ids to text."""

    def __init__(
        self, decoder: AnswerDecoder, guarding: Guarding, stops: Sequence[str], verdict: Verdict, *, reviewable: bool = False
    ) -> None:
        """Take `stops`, the stop strings; `verdict` collects what the guardrails say.

        `reviewable`: whether a person can decide on the whole answer; it goes on then where a rule asks for one.
        """
        self._reviewable = reviewable
        self._decoder = decoder
        self._guarding = guarding
        self._cutter = StopStringCutter(stops)
        self._verdict = verdict
        self._blocked: guard.Blocked | None = None
        self._given = 0
        self.decided = Decided()
        """How far the guardrails are."""
        self.may_need_review = False
        """Known once `opened` has returned: whether the policy has a rule that wants a person to decide on answers."""
        self.needs_review = False
        """Set once such a rule has spoken, of an answer that is reviewable."""

    @property
    def stopped(self) -> bool:
        """A stop string came: no further id can add text."""
        return self._cutter.stopped

    @property
    def blocked(self) -> guard.Blocked | None:
        """Set once the guardrails ended the answer."""
        return self._blocked

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._guarding.close()

    async def push(self, token_ids: Sequence[int]) -> str:
        """Return the text that these ids make certain and the guardrails release; may be empty.

        Raises TokenizationUnavailable or GuardrailsUnavailable, and what the two pass on (peer_errors.py).
        """
        return await self._guard(self._cutter.push(await self._decoder.push(token_ids)))

    async def end(self) -> str:
        """Release what is still held back. Raises like push. After a block nothing is left."""
        rest = ""
        if not self._cutter.stopped:
            rest = self._cutter.push(self._decoder.end()) + self._cutter.end()
        released = await self._guard(rest)
        if self._blocked is not None:
            return released
        return released + self._accept(await self._guarding.exchange(guard.InspectStreamRequest(end=guard.StreamEnd())))

    async def opened(self) -> None:
        """Wait until both streams are open. Raises like push."""
        opened = await self._guarding.opened()
        self._verdict.policy, self.may_need_review = opened.policy, opened.may_need_review

    async def _guard(self, text: str) -> str:
        released = []
        for start in range(0, len(text), _CHUNK):
            if self._blocked is not None:
                break
            chunk = guard.StreamChunk(text=text[start : start + _CHUNK])
            self._given += len(chunk.text)
            released.append(self._accept(await self._guarding.exchange(guard.InspectStreamRequest(chunk=chunk))))
        return "".join(released)

    def _accept(self, response: guard.InspectStreamResponse) -> str:
        self._verdict.add(response.findings)
        if response.HasField("blocked"):
            self._blocked = response.blocked
        elif (rule := self._undecided(response)) is not None:
            self._blocked = guard.Blocked(rule=rule, safe_message=_NEEDS_REVIEW)
            return ""
        if self._blocked is not None:
            self._verdict.block(self._blocked.rule)
        else:
            self._decide(response)
        return response.released

    def _decide(self, response: guard.InspectStreamResponse) -> None:
        """Take note of what was decided. What a block ends is decided no further."""
        self.decided.upto = self._given - response.held_back
        self.decided.complete = self.decided.complete and not response.findings_truncated
        self.decided.findings += [(finding.start, finding.end) for finding in response.findings]

    def _undecided(self, response: guard.InspectStreamResponse) -> str | None:
        """Return the rule that ends the answer because nobody can decide on it, and take note of what a reviewer can decide."""
        ending = [finding for finding in response.findings if finding.action in _ENDING]
        wanted = [finding.rule for finding in ending if finding.action == guard.ACTION_REVIEW]
        if response.findings_truncated and self.may_need_review:
            wanted.append(_TOO_MANY_FINDINGS)  # among those that were left out may be one
        if wanted and self._reviewable and all(finding.action == guard.ACTION_REVIEW for finding in ending):
            self.needs_review = True
            return None
        return next(iter([finding.rule for finding in ending] + wanted), None)
