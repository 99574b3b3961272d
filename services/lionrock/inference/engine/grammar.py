"""Output constraints as grammars over a vocabulary: which tokens may come next, and when the answer is complete.

Grammars are compiled and matched by xgrammar (Dong et al. 2024, arXiv:2411.15100); what it would let through wrongly is kept out
before it (schema_subset, regex_subset) and after it (answer_filter). Matching is against the whole answer.

Knows tokens' bytes; no sequences, no batches, no threads. Imports xgrammar on first use, which takes seconds.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lionrock.inference.engine.answer_filter import PLAIN, AnswerFilter
from lionrock.inference.engine.errors import InvalidConstraint
from lionrock.inference.engine.regex_subset import UnsupportedRegex, canonical_regex
from lionrock.inference.engine.schema_subset import UnsupportedSchema, canonical_schema
from lionrock.inference.engine.sequence import Constraint

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_BYTES: Final = {"json_schema": 65536, "regex": 8192 * 4, "ebnf": 65536, "choice": 4 << 20}
"""Of a constraint's source in UTF-8."""
MAX_CHOICES, MAX_CHOICE_CHARACTERS = 1024, 1024

MAX_STEP_CPU_S = 0.25
"""CPU time that following one token may take; what takes longer would hold up the whole batch."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_WHITESPACE = 16
"""White space characters in a row between the parts of a JSON answer: an indented one fits, endless space does not."""


def checked_constraint(constraint: Constraint) -> Constraint:
    """Return the constraint in the words that a grammar is compiled from. Cheap, imports nothing. Raises InvalidConstraint."""
    kind, source = constraint.kind, constraint.source
    if kind not in MAX_BYTES:
        raise InvalidConstraint(kind, "is not a kind of constraint")
    try:
        size = len(source.encode())
    except UnicodeEncodeError:
        raise InvalidConstraint(kind, "holds half a surrogate pair") from None
    if not 1 <= size <= MAX_BYTES[kind]:
        raise InvalidConstraint(kind, f"must have 1 to {MAX_BYTES[kind]} bytes")
    try:
        match kind:
            case "json_schema":
                return Constraint(kind, canonical_schema(source))
            case "regex":
                return Constraint(kind, canonical_regex(source))
            case "choice":
                return Constraint("ebnf", _ebnf_of_choices(source))
            case _:
                return constraint
    except (UnsupportedSchema, UnsupportedRegex) as error:
        raise InvalidConstraint(kind, str(error)) from None


def _ebnf_of_choices(source: str) -> str:
    try:
        choices = json.loads(source)
    except (ValueError, RecursionError):
        choices = None
    if not isinstance(choices, list) or not 1 <= len(choices) <= MAX_CHOICES:
        raise InvalidConstraint("choice", f"must be a JSON array of 1 to {MAX_CHOICES} strings")
    for index, choice in enumerate(choices):
        if not isinstance(choice, str) or not 1 <= len(choice) <= MAX_CHOICE_CHARACTERS or _SURROGATE.search(choice):
            raise InvalidConstraint("choice", f"the value at {index} is not a text of 1 to {MAX_CHOICE_CHARACTERS} characters")
    return "root ::= " + " | ".join(f'"{"".join(map(_spelt, choice))}"' for choice in dict.fromkeys(choices))


def _spelt(character: str) -> str:
    """Spell a character inside an EBNF string."""
    return character if character.isascii() and character.isalnum() else f"\\U{ord(character):08x}"


class GrammarCompiler:
    """Compiles checked constraints for one vocabulary. Not safe for threads."""

    def __init__(self, tokens: Sequence[bytes], eos_token_ids: Iterable[int]) -> None:
        """Build; takes seconds. tokens: bytes of each id of the model, empty where an id stands for no text."""
        import xgrammar

        self._eos_token_ids = sorted(eos_token_ids)
        info = xgrammar.TokenizerInfo(list(tokens), vocab_size=len(tokens), stop_token_ids=self._eos_token_ids)
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        self._filters = {json_answer: AnswerFilter(tokens, json=json_answer) for json_answer in (False, True)}
        self._eos = _bits(len(tokens), self._eos_token_ids)
        self._text = _bits(len(tokens), [token_id for token_id, token in enumerate(tokens) if token])

    def compile(self, checked: Constraint) -> Grammar:
        """Compile what `checked_constraint` returned. Raises InvalidConstraint."""
        kind, source = checked.kind, checked.source
        try:
            match kind:
                case "json_schema":
                    compiled = self._compiler.compile_json_schema(source, strict_mode=True, max_whitespace_cnt=_WHITESPACE)
                case "regex":
                    compiled = self._compiler.compile_regex(source)
                case _:
                    compiled = self._compiler.compile_grammar(source)
        except Exception as error:  # noqa: BLE001  # what it raises is not documented, and its text quotes the source
            raise InvalidConstraint(kind, _reason(str(error))) from None
        return Grammar(kind, compiled, self._filters[kind == "json_schema"], self._eos, self._text)


def _reason(message: str) -> str:
    """Return what may be shown of the compiler's message, which quotes its input."""
    place = re.search(r"at (line \d{1,9}, column \d{1,9}|position \d{1,9})", message)
    where = f" at {place.group(1)}" if place else ""
    known = ("Nest layer exceeded the maximum limit", 'The root rule with name "root" is not found', "is not defined")
    why = next((f": {phrase}" for phrase in known if phrase in message), "")
    return f"is not a grammar that can be enforced{where}{why}"


class Grammar:
    """A compiled constraint; many answers may be matched against it at once."""

    def __init__(
        self, kind: str, compiled: Any, answer_filter: AnswerFilter, eos: NDArray[np.uint8], text: NDArray[np.uint8]
    ) -> None:
        self.kind = kind
        self._compiled = compiled
        self._filter = answer_filter
        self._eos = eos
        self._text = text

    @property
    def memory_bytes(self) -> int:
        """Roughly what it holds."""
        return int(self._compiled.memory_size_bytes)

    def matcher(self) -> AnswerMatcher:
        """Begin an answer. Raises InvalidConstraint when no answer can begin."""
        return AnswerMatcher(self.kind, self._compiled, self._filter, self._eos, self._text)


class AnswerMatcher:
    """How far one answer has come. Not safe for threads; may move between them."""

    def __init__(
        self, kind: str, compiled: Any, answer_filter: AnswerFilter, eos: NDArray[np.uint8], text: NDArray[np.uint8]
    ) -> None:
        import xgrammar

        self._kind, self._compiled = kind, compiled
        self._filter, self._eos, self._text = answer_filter, eos, text
        self._matcher = xgrammar.GrammarMatcher(compiled)
        self._state = PLAIN
        self.slow = False
        """Whether the last token took longer than MAX_STEP_CPU_S."""
        self._bitmask = np.zeros((1, len(eos) // 4), dtype=np.int32)
        self._mask = eos
        self._look()

    @property
    def ebnf(self) -> str:
        """The compiled grammar in xgrammar's EBNF, for an engine that matches by itself. What the filter keeps out is not in it."""
        return str(self._compiled.grammar)

    @property
    def allowed(self) -> bytes:
        """Bit t of little-endian 32-bit words: token t may come. The end-of-sequence tokens are among them once it may end."""
        return self._mask.tobytes()

    @property
    def ended(self) -> bool:
        """Whether the answer is complete and nothing can follow."""
        return not np.any(self._mask & ~self._eos)

    def allows(self, token_id: int) -> bool:
        """Whether a token may come."""
        return bool(self._mask[token_id // 8] >> token_id % 8 & 1)

    def accept(self, token_id: int) -> None:
        """Go on with a token that may come, and is not an end-of-sequence token.

        Raises InvalidConstraint where no token can follow although the answer is not complete, or where finding out took longer
        than MAX_STEP_CPU_S; then the matcher is of no more use.
        """
        begun_s = time.thread_time()
        accepted = self.allows(token_id) and self._matcher.accept_token(token_id)
        assert accepted, "a token came that may not come"
        self._state = self._filter.after(self._state, token_id)
        self._look()
        self.slow = time.thread_time() - begun_s > MAX_STEP_CPU_S
        if self.slow:
            raise InvalidConstraint(self._kind, "takes too long to match: write it with less ambiguity")

    def _look(self) -> None:
        """Find what may come next."""
        if not self._matcher.fill_next_token_bitmask(self._bitmask, 0):
            self._bitmask.fill(-1)
        grammar = self._bitmask.view(np.uint8)[0]
        self._mask = grammar & (self._filter.allowed(self._state) & self._text | self._eos)
        if not self._mask.any() and not self._matcher.is_completed():
            raise InvalidConstraint(self._kind, "leads to a point from which no answer can be completed")


def _bits(size: int, token_ids: Iterable[int]) -> NDArray[np.uint8]:
    bits = np.zeros(-(-size // 32) * 32, dtype=bool)
    bits[list(token_ids)] = True
    return np.packbits(bits, bitorder="little")
