"""The verdict on whole texts.

Knows: how the findings of several parts become one action, one score, one message. Each part goes through the same `Inspector`
that judges streams, in windows, so that whole text and stream agree by construction. Does not know: transport.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from lionrock.guardrails.languages import Language, count_languages, main_language, ranked
from lionrock.guardrails.policy import Direction, Policy, Source
from lionrock.guardrails.program import Action
from lionrock.guardrails.stream import WINDOW, Finding, Inspector

MAX_TEXT: Final = 1_000_000
MAX_FINDINGS: Final = 1000
INJECTION: Final = "INJECTION"


class TextTooLong(ValueError):
    """The texts of a request have more than MAX_TEXT code points together."""


class Abandoned(Exception):
    """The caller went away or its deadline passed; nothing was decided."""


@dataclass(frozen=True, slots=True)
class Part:
    """One text and who wrote it."""

    text: str
    source: Source


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgement on all parts. `findings` are (part, finding) in order, at most MAX_FINDINGS; the masks cover all of them.

    `masked_texts` is None when nothing is masked or the texts must not be used. `safe_message` is None unless the action is BLOCK.
    """

    action: Action
    findings: tuple[tuple[int, Finding], ...]
    truncated: bool
    masked_texts: tuple[str, ...] | None
    safe_message: str | None
    injection_score: float
    languages: tuple[Language, ...]


def inspect(
    policy: Policy, direction: Direction, parts: Sequence[Part], *, abandoned: Callable[[], bool] = lambda: False
) -> Verdict:
    """Judge `parts`. `abandoned` is asked between windows. Raises TextTooLong, DetectionFailed, Abandoned."""
    if sum(len(part.text) for part in parts) > MAX_TEXT:
        raise TextTooLong
    action = Action.ALLOW
    kept: list[tuple[int, Finding]] = []
    masked_texts: list[str] = []
    masked = truncated = False
    innocence = 1.0
    first_blocked: int | None = None
    for number, part in enumerate(parts):
        released: list[str] = []
        inspector = Inspector(policy.program(direction, part.source), stop_at_block=False)
        # One probability a rule, so that a phrase said often does not add up to certainty.
        suspicion: dict[str, float] = {}
        for at in range(0, len(part.text) + WINDOW, WINDOW):
            if abandoned():
                raise Abandoned
            step = inspector.push(part.text[at : at + WINDOW]) if at < len(part.text) else inspector.finish()
            released.append(step.released)
            for finding in step.findings:
                action = max(action, finding.action)
                masked = masked or finding.action is Action.MASK
                if finding.action is Action.BLOCK and first_blocked is None:
                    first_blocked = number
                if finding.type == INJECTION:
                    suspicion[finding.rule] = max(suspicion.get(finding.rule, 0.0), finding.confidence)
                if len(kept) < MAX_FINDINGS:
                    kept.append((number, finding))
                else:
                    truncated = True
        masked_texts.append("".join(released))
        guiltless = 1.0
        for confidence in suspicion.values():
            guiltless *= 1 - confidence
        innocence = min(innocence, guiltless)
    safe_message = None
    if first_blocked is not None:
        safe_message = policy.safe_messages[main_language(parts[first_blocked].text)]
    return Verdict(
        action,
        tuple(kept),
        truncated,
        tuple(masked_texts) if masked and action is not Action.BLOCK else None,
        safe_message,
        1 - innocence,
        tuple(ranked(sum((count_languages(part.text) for part in parts), Counter()))),
    )
