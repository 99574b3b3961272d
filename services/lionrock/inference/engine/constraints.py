"""Turns constraints into matchers outside the step thread: judged in a sandbox, compiled once, kept in a bounded cache.

Two threads: one compiles what is new, one begins answers on what is known, so that a slow constraint delays new constraints alone.
Everything that waits is a request that the engine has admitted, so its own bounds hold here.

Knows constraints and answers' tokens; no sequences, no batches.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from lionrock.inference.engine.constraint_sandbox import ConstraintSandbox, SandboxLimits
from lionrock.inference.engine.errors import InvalidConstraint, InvalidRequest
from lionrock.inference.engine.grammar import AnswerMatcher, Grammar, GrammarCompiler, checked_constraint
from lionrock.inference.engine.sequence import Constraint
from lionrock.modelstore.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class ConstraintLimits:
    """Bounds of one engine's constraints."""

    cached: int = 256
    """Constraints whose grammar, or whose refusal, is kept; the least recently used goes first."""
    cached_bytes: int = 256 << 20
    sandbox: SandboxLimits | None = field(default_factory=SandboxLimits)
    """None: constraints are not judged by a sandbox first, because whoever writes them is trusted."""


class Constraints:
    """The constraints of one engine, over one vocabulary."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        vocab_size: int,
        eos_token_ids: Iterable[int],
        limits: ConstraintLimits | None = None,
        *,
        compiling: Executor | None = None,
        beginning: Executor | None = None,
    ) -> None:
        """vocab_size: of the model, which may have more ids than the vocabulary; these are never allowed.

        compiling, beginning: where constraints are compiled and answers begun, one thread each unless given.
        """
        self._limits = limits or ConstraintLimits()
        self._tokens = [vocabulary.bytes_of(token_id) for token_id in range(vocab_size)]
        self._eos_token_ids = sorted(token_id for token_id in eos_token_ids if token_id < vocab_size)
        self._compiling = compiling or ThreadPoolExecutor(1, thread_name_prefix="lionrock-grammar")
        self._beginning = beginning or ThreadPoolExecutor(1, thread_name_prefix="lionrock-answer")
        sandbox = self._limits.sandbox
        self._sandbox = None if sandbox is None else ConstraintSandbox(self._tokens, self._eos_token_ids, sandbox)
        self._compiler: GrammarCompiler | None = None  # of the compiling thread
        self._lock = threading.Lock()  # guards the cache
        self._cache: OrderedDict[Constraint, Grammar | InvalidConstraint] = OrderedDict()

    def warm_up(self) -> None:
        """Load the compiler now, in the background: that takes seconds, and would delay the first constraint."""
        self._compiling.submit(self._ready_compiler)

    def begin(self, constraint: Constraint, answer: Sequence[int]) -> Future[AnswerMatcher]:
        """Begin an answer, or go on after the tokens that it has.

        Raises InvalidConstraint for what is refused at sight. The future raises InvalidConstraint, or InvalidRequest for an
        answer that does not match.
        """
        checked = checked_constraint(constraint)
        known = self._known(checked)
        if known is None:
            return self._compiling.submit(self._compile_and_begin, constraint.kind, checked, tuple(answer))
        return self._beginning.submit(_begin, constraint.kind, known, tuple(answer))

    def close(self) -> None:
        """End the threads and the sandbox. Futures that have not begun are cancelled."""
        if self._sandbox is not None:
            self._sandbox.close()
        for executor in (self._compiling, self._beginning):
            executor.shutdown(wait=False, cancel_futures=True)

    def _known(self, checked: Constraint) -> Grammar | InvalidConstraint | None:
        with self._lock:
            found = self._cache.get(checked)
            if found is not None:
                self._cache.move_to_end(checked)
            return found

    def _compile_and_begin(self, kind: str, checked: Constraint, answer: tuple[int, ...]) -> AnswerMatcher:
        known = self._known(checked)  # an equal constraint may have come just before
        if known is None:
            try:
                compiler = self._ready_compiler()
                if self._sandbox is not None:
                    self._sandbox.judge(checked)
                known = compiler.compile(checked)
            except InvalidConstraint as error:
                known = error
            self._keep(checked, known)
        return _begin(kind, known, answer)

    def _ready_compiler(self) -> GrammarCompiler:
        if self._sandbox is not None:
            self._sandbox.start()
        if self._compiler is None:
            self._compiler = GrammarCompiler(self._tokens, self._eos_token_ids)
        return self._compiler

    def _keep(self, checked: Constraint, found: Grammar | InvalidConstraint) -> None:
        with self._lock:
            self._cache[checked] = found
            held = sum(map(_bytes, self._cache.items()))
            while len(self._cache) > self._limits.cached or (held > self._limits.cached_bytes and len(self._cache) > 1):
                held -= _bytes(self._cache.popitem(last=False))


def _bytes(entry: tuple[Constraint, Grammar | InvalidConstraint]) -> int:
    checked, found = entry
    return 4 * len(checked.source) + (found.memory_bytes if isinstance(found, Grammar) else 0)


def _begin(kind: str, known: Grammar | InvalidConstraint, answer: tuple[int, ...]) -> AnswerMatcher:
    if isinstance(known, InvalidConstraint):
        raise InvalidConstraint(kind, known.description)
    matcher = known.matcher()
    for index, token_id in enumerate(answer):
        if not matcher.allows(token_id):
            raise InvalidRequest("resumed_tokens", f"the resumed answer does not match the constraint from its token {index} on")
        matcher.accept(token_id)
    return matcher
