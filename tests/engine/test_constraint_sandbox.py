"""Constraints that would take an engine down are refused in time, and the sandbox serves the next one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import psutil
import pytest
from spelling_model import EOS, TOKENS, VOCAB_SIZE, VOCABULARY

from lionrock.inference.engine.constraint_sandbox import ConstraintSandbox, SandboxFailed, SandboxLimits
from lionrock.inference.engine.constraints import ConstraintLimits, Constraints
from lionrock.inference.engine.errors import InvalidConstraint
from lionrock.inference.engine.grammar import checked_constraint
from lionrock.inference.engine.sequence import Constraint

DOUBLING = "\n".join(["root ::= a0", *(f"a{n} ::= a{n + 1} a{n + 1} | a{n + 1}" for n in range(40)), 'a40 ::= "x" | ""'])
HOSTILE = {
    "nested repetition": Constraint("regex", "(" * 24 + "a" + "|b)*" * 24),
    "counted repetition": Constraint("regex", "((a{1,1000}){1,1000}){1,1000}"),
    "doubling": Constraint("ebnf", DOUBLING),
    "endless recursion": Constraint("ebnf", "root ::= root"),
}


def helpers() -> set[int]:
    """Ids of the helpers of this process."""
    children = psutil.Process().children()
    return {child.pid for child in children if "lionrock.inference.engine.constraint_sandbox" in child.cmdline()}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[ConstraintSandbox]:
    """Small limits, so that what is hostile is found out soon."""
    sandbox = ConstraintSandbox(TOKENS, [EOS], SandboxLimits(cpu_s=4, elapsed_s=40, memory_bytes=1 << 29))
    yield sandbox
    sandbox.close()


@pytest.mark.parametrize("constraint", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_constraint_is_refused_within_its_limits(sandbox: ConstraintSandbox, constraint: Constraint) -> None:
    with pytest.raises(InvalidConstraint):
        sandbox.judge(checked_constraint(constraint))
    sandbox.judge(checked_constraint(Constraint("regex", r"\d+")))


def test_a_helper_that_died_is_started_again(sandbox: ConstraintSandbox) -> None:
    sandbox.start()
    (helper,) = helpers()
    os.kill(helper, signal.SIGKILL)
    sandbox.judge(checked_constraint(Constraint("regex", r"\d+")))


def test_closing_ends_the_helper_and_whoever_waits_for_it() -> None:
    before = helpers()
    constraints = Constraints(VOCABULARY, VOCAB_SIZE, [EOS], ConstraintLimits())
    waiting = constraints.begin(Constraint("regex", "a"), ())
    constraints.close()
    with pytest.raises(SandboxFailed):
        waiting.result(timeout=60)
    assert helpers() == before
