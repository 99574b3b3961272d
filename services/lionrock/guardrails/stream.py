"""Inspection of a text while it is written.

The rule, exactly. Let v be the normalised view of everything received, n its length. Position s of v is *live* when v[s:n] is a
prefix (v[s:n] itself included) of some match of some rule. Let `safe` be the first live position, n if there is none. Then
every match that begins before `safe` ends before n with its neighbours known, whatever follows, and no further match will begin
there. So exactly these are final:

- all matches that begin before `safe`; they are reported in order of (start, severity falling, end falling, rule, confidence
  falling);
- all original text before the character at `safe`; it is released, with what a masked finding covers replaced by its
  placeholder. Where masked spans overlap, the first keeps its place and the others replace only what is left of theirs.

The rest, at most `Program.hold_limit` characters of view, is held back. A finding that lies inside one of at least its severity
is not reported. A block releases what precedes its span, and nothing after. At the end of the text nothing is live. `safe`
never falls, matches of one expression resume where the last ended, and the order above is total; hence released text and
findings are the same for every way of cutting the text, and the inspection of a whole text is the same code fed in windows.

Knows: offsets of the original text. Does not know: transport, policies' files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from lionrock.guardrails.detectors import CONTEXT_LENGTH
from lionrock.guardrails.normalise import Normaliser
from lionrock.guardrails.program import Action, Match, Program, Window

# Characters taken in at a time: bounds the buffer, and a step's duration.
WINDOW: Final = 4096
# Start of the text and finding that the language of a safe message is judged by.
SAMPLE: Final = 512
# What stays before `safe`: the neighbour of the next match and the context of its check.
_KEEP: Final = CONTEXT_LENGTH + 1


@dataclass(frozen=True, slots=True)
class Finding:
    """One match of one rule in code points of the original text, end exclusive. Carries no text."""

    rule: str
    type: str
    start: int
    end: int
    action: Action
    confidence: float


@dataclass(frozen=True, slots=True)
class Block:
    """The finding that ends a stream, and a sample of the text up to its end to judge the language by."""

    finding: Finding
    sample: str


@dataclass(frozen=True, slots=True)
class Step:
    """What became certain. `held_back` counts code points of the original."""

    released: str
    findings: tuple[Finding, ...]
    blocked: Block | None
    held_back: int


class Inspector:
    """Inspects one text that arrives in pieces. Not for several threads."""

    __slots__ = (
        "_base",
        "_cover",
        "_cursor",
        "_finished",
        "_head",
        "_normaliser",
        "_program",
        "_raw",
        "_raw_at",
        "_raw_base",
        "_resume",
        "_safe",
        "_stop",
        "_view",
    )

    def __init__(self, program: Program, *, stop_at_block: bool = True) -> None:
        """Begin a text. Without `stop_at_block` the text after a block is inspected too; nobody may be shown it."""
        self._program = program
        self._stop = stop_at_block
        self._normaliser = Normaliser()
        # The view from position _base on, the offset of each of its characters, the original from offset _raw_base on.
        # A line break before the text gives its first character a neighbour.
        self._view, self._raw_at, self._base = "\n", [0], 0
        self._raw, self._raw_base = "", 0
        self._safe = 1
        self._cursor = 0
        self._resume = [1] * program.extractors
        self._cover: list[Finding] = []
        self._head = ""
        self._finished = False

    def push(self, text: str) -> Step:
        """Take in more text. Raises DetectionFailed."""
        assert not self._finished, "text after the end or after a block"
        if len(text) <= WINDOW:
            return self._take(text, last=False)
        steps: list[Step] = []
        for at in range(0, len(text), WINDOW):
            steps.append(self._take(text[at : at + WINDOW], last=False))
            if steps[-1].blocked is not None:
                break
        return _joined(steps)

    def finish(self) -> Step:
        """Decide everything that is held back. Raises DetectionFailed."""
        assert not self._finished, "text after the end or after a block"
        return self._take("", last=True)

    def _take(self, text: str, *, last: bool) -> Step:
        view, raw_at = self._normaliser.push(text)
        self._view += view
        self._raw_at += raw_at
        self._raw += text
        if len(self._head) < SAMPLE:
            self._head += text[: SAMPLE - len(self._head)]
        window = Window(self._view)
        low = self._safe - self._base
        high = len(window.view) if last else self._program.live_from(window, low)
        self._safe = self._base + high
        released: list[str] = []
        findings: list[Finding] = []
        blocked: Block | None = None
        if high > low:
            resume = [at - self._base for at in self._resume]
            matches = self._program.find(window, low, high, resume)
            if matches:
                self._resume = [at + self._base for at in resume]
                blocked = self._decide(matches, released, findings)
        if blocked is None:
            end = self._raw_at[high] if high < len(self._view) else self._raw_end
            self._release(end, released)
            self._finished = last
            self._trim()
        else:
            self._finished = True
        return Step("".join(released), tuple(findings), blocked, 0 if self._finished else self._raw_end - self._cursor)

    @property
    def _raw_end(self) -> int:
        return self._raw_base + len(self._raw)

    def _decide(self, matches: Sequence[Match], released: list[str], findings: list[Finding]) -> Block | None:
        """Report matches and release up to the last of them, or to the first that blocks."""
        rules = self._program.rules
        for match in sorted(matches, key=lambda m: (m.start, -rules[m.rule].action, -m.end, m.rule, -m.confidence)):
            rule = rules[match.rule]
            start, end = self._raw_at[match.start], self._raw_at[match.end - 1] + 1
            finding = Finding(rule.id, rule.type, start, end, rule.action, match.confidence)
            self._cover = [f for f in self._cover if f.end > start]
            if any(f.end >= end and f.action >= rule.action for f in self._cover):
                continue
            self._cover.append(finding)
            findings.append(finding)
            if rule.action is Action.BLOCK and self._stop:
                self._release(start, released)
                return Block(finding, self._sample(finding))
            if rule.action is Action.MASK and end > self._cursor:
                self._release(start, released)
                released.append(rule.placeholder)
                self._cursor = end
        return None

    def _release(self, end: int, released: list[str]) -> None:
        if end > self._cursor:
            released.append(self._raw[self._cursor - self._raw_base : end - self._raw_base])
            self._cursor = end

    def _sample(self, finding: Finding) -> str:
        head = self._head[: finding.end]
        span = self._raw[max(finding.start, self._cursor) - self._raw_base : finding.end - self._raw_base]
        return head + span if finding.end > SAMPLE else head

    def _trim(self) -> None:
        """Forget the view that no check will look at, and the original that is released."""
        surplus = self._safe - self._base - _KEEP
        if surplus > 0:
            self._view = self._view[surplus:]
            del self._raw_at[:surplus]
            self._base += surplus
        done = min(self._cursor, self._raw_end) - self._raw_base
        if done > 0:
            self._raw = self._raw[done:]
            self._raw_base += done


def _joined(steps: Sequence[Step]) -> Step:
    """Return several steps as one."""
    return Step(
        "".join(step.released for step in steps),
        tuple(finding for step in steps for finding in step.findings),
        steps[-1].blocked,
        steps[-1].held_back,
    )
