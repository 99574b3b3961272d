"""Penalties, bias, stop strings and constraints in the engine: the same answer in any batch, preempted or resumed."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spelling_model import EOS, TOKENS, VOCAB_SIZE, VOCABULARY, SpellingModel, ids_of, logits_after

from lionrock.inference.engine.async_engine import AsyncEngine
from lionrock.inference.engine.constraints import ConstraintLimits, Constraints
from lionrock.inference.engine.engine import Engine, EngineLimits
from lionrock.inference.engine.errors import (
    InvalidConstraint,
    InvalidRequest,
    RequestExpired,
    RequestRefused,
    UnsupportedOutputConstraint,
    UnsupportedSamplingOption,
)
from lionrock.inference.engine.grammar import Grammar, GrammarCompiler
from lionrock.inference.engine.sequence import Constraint, FinishReason, Request, RequestId, Sampling, StepOutput

_ids = itertools.count()
PROMPT = ids_of(b"say")
DIGITS = Constraint("regex", r"\d{6}")


class AtOnce(Executor):
    """Runs a call where it is submitted."""

    def submit(self, call: Callable[..., Any], /, *arguments: Any, **keywords: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(call(*arguments, **keywords))
        except Exception as error:  # noqa: BLE001
            future.set_exception(error)
        return future


class Held(Executor):
    """Runs calls when the test says so."""

    def __init__(self) -> None:
        self.calls: list[tuple[Future[Any], Callable[[], Any]]] = []

    def submit(self, call: Callable[..., Any], /, *arguments: Any, **keywords: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.calls.append((future, lambda: call(*arguments, **keywords)))
        return future

    def let(self) -> None:
        """Run the oldest call that nobody cancelled."""
        while self.calls:
            future, call = self.calls.pop(0)
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except Exception as error:  # noqa: BLE001
                    future.set_exception(error)
                return


TRUSTED = ConstraintLimits(sandbox=None)


@pytest.fixture(scope="module")
def compiled() -> Constraints:
    """Compiles where it is asked to, and keeps what it compiled: one for all engines that need no other."""
    return Constraints(VOCABULARY, VOCAB_SIZE, [EOS], TRUSTED, compiling=AtOnce(), beginning=AtOnce())


def an_engine(constraints: Constraints | None = None, limits: EngineLimits | None = None, **options: Any) -> Engine:
    return Engine(SpellingModel(**options), limits, vocabulary=VOCABULARY, constraints=constraints)


def request(prompt=PROMPT, *, constraint: Constraint | None = None, resumed_tokens=0, deadline_s=None, **sampling: Any) -> Request:
    options = {"max_tokens": 12, **sampling}
    return Request(
        RequestId(f"request-{next(_ids)}"),
        tuple(prompt),
        Sampling(**options),
        constraint=constraint,
        resumed_tokens=resumed_tokens,
        deadline_s=deadline_s,
    )


def run(engine: Engine, *requests: Request) -> list[list[StepOutput]]:
    outputs: dict[str, list[StepOutput]] = {item.request_id: [] for item in requests}
    for item in requests:
        engine.add(item)
    while engine.has_work:
        for output in engine.step():
            outputs[output.request_id].append(output)
    assert engine.free_kv_blocks == engine.spec.kv_blocks
    return list(outputs.values())


def tokens(outputs: list[StepOutput]) -> tuple[int, ...]:
    return tuple(token_id for output in outputs for token_id in output.token_ids)


def spelt(token_ids: Sequence[int]) -> bytes:
    return b"".join(map(VOCABULARY.bytes_of, token_ids))


def text(outputs: list[StepOutput]) -> bytes:
    return spelt(tokens(outputs))


# ---- the same answer everywhere ----------------------------------------------------------------------------------------------

EVERYTHING: dict[str, Any] = {
    "repetition_penalty": 1.4,
    "presence_penalty": 0.9,
    "frequency_penalty": 0.6,
    "logit_bias": {5: 3.0, 200: -100.0},
    "temperature": 0.9,
    "seed": 77,
    "stop": ("中x", "zzz"),
}
WORDS = Constraint("regex", r"([a-z]{1,4} ){30}")
NUMBERS = Constraint("json_schema", '{"type": "array", "items": {"type": "integer"}, "maxItems": 9}')
MIXTURE: list[dict[str, Any]] = [
    EVERYTHING,
    {"constraint": WORDS},
    {**EVERYTHING, "constraint": WORDS},
    {"frequency_penalty": 2.0},
    {"logit_bias": {9: 100.0}, "max_tokens": 5},
    {},
    {
        "constraint": Constraint("json_schema", '{"type": "array", "items": {"type": "integer"}, "maxItems": 9}'),
        "seed": 3,
        "temperature": 1.5,
    },
]


def mixture() -> list[Request]:
    options: dict[str, Any] = {"max_tokens": 16, "ignore_eos": True}
    return [request(PROMPT * (1 + n % 3), **{**options, **item}) for n, item in enumerate(MIXTURE)]


@pytest.fixture(scope="module")
def alone(compiled: Constraints) -> list[tuple[int, ...]]:
    """Each of the mixture, answered with nobody beside it."""
    return [tokens(run(an_engine(compiled), item)[0]) for item in mixture()]


def test_a_batch_changes_no_answer(compiled: Constraints, alone: list[tuple[int, ...]]) -> None:
    assert [tokens(outputs) for outputs in run(an_engine(compiled), *mixture())] == alone
    assert len(set(alone)) == len(alone)


def test_preemption_changes_no_answer(compiled: Constraints, alone: list[tuple[int, ...]]) -> None:
    answers = run(an_engine(compiled, kv_blocks=12), *mixture())
    assert sum(outputs[-1].timings.preemptions for outputs in answers) > 0
    assert [tokens(outputs) for outputs in answers] == alone


def test_another_runner_changes_no_answer(compiled: Constraints, alone: list[tuple[int, ...]]) -> None:
    engine, items = an_engine(compiled), mixture()
    outputs: dict[str, list[StepOutput]] = {item.request_id: [] for item in items}
    for item in items:
        engine.add(item)
    for steps in itertools.count(1):
        if not engine.has_work:
            break
        if steps % 5 == 0:
            batch, early = engine.schedule()
            for output in early:
                outputs[output.request_id].append(output)
            assert engine.lose_cache(batch) == []
            assert engine.replace_runner(SpellingModel()) == []
        for output in engine.step():
            outputs[output.request_id].append(output)
    assert [tokens(got) for got in outputs.values()] == alone


@pytest.mark.parametrize("had", [1, 4, 9])
def test_a_resumed_answer_goes_on_as_it_would_have(compiled: Constraints, alone: list[tuple[int, ...]], had: int) -> None:
    items = []
    for item, whole in zip(mixture(), alone, strict=True):
        kept = whole[: min(had, len(whole))]
        items.append(
            request(
                (*item.token_ids, *kept),
                resumed_tokens=len(kept),
                constraint=item.constraint,
                **{name: getattr(item.sampling, name) for name in Sampling.__dataclass_fields__},
            )
        )
    for outputs, item, whole in zip(run(an_engine(compiled), *items), items, alone, strict=True):
        assert tokens(outputs) == whole[item.resumed_tokens :]


def test_penalties_count_the_answer_and_repetition_the_prompt_too() -> None:
    """By the definition, from the logits of each position."""
    item = request(b"\x05\x09\x05", repetition_penalty=1.7, presence_penalty=0.8, frequency_penalty=0.5, ignore_eos=True)
    (outputs,) = run(an_engine(), item)
    history, answer = list(item.token_ids), []
    for _ in range(12):
        logits = logits_after(history).tolist()
        for token_id in set(history):
            logits[token_id] = logits[token_id] / 1.7 if logits[token_id] > 0 else logits[token_id] * 1.7
        for token_id in set(answer):
            logits[token_id] -= 0.8 + 0.5 * answer.count(token_id)
        chosen = max(range(len(logits)), key=lambda token_id: (logits[token_id], -token_id))
        history.append(chosen)
        answer.append(chosen)
    assert tokens(outputs) == tuple(answer)


# ---- stop strings ------------------------------------------------------------------------------------------------------------


LETTERS = dict.fromkeys(ids_of(b"abcdefgh"), 50.0)


@pytest.mark.parametrize(("begin", "end"), [(0, 1), (2, 5), (3, 9)])
def test_a_stop_string_ends_the_answer_with_the_token_that_completes_it(begin: int, end: int) -> None:
    free = text(run(an_engine(), request(logit_bias=LETTERS))[0])
    stop = free[begin:end].decode()
    (outputs,) = run(an_engine(), request(logit_bias=LETTERS, stop=("never", stop)))
    assert (outputs[-1].finish, outputs[-1].stop) == (FinishReason.STOP, stop)
    assert text(outputs) == free[: free.find(stop.encode()) + len(stop)]


def test_a_stop_string_of_a_character_cut_into_tokens_is_found() -> None:
    (outputs,) = run(an_engine(), request(logit_bias={0xE4 + 1: 60.0}, max_tokens=1))
    assert text(outputs) == b"\xe4"
    resumed = request(
        (*PROMPT, *ids_of("中".encode()[:2])), resumed_tokens=2, logit_bias={"中".encode()[2] + 1: 60.0}, stop=("中",)
    )
    (outputs,) = run(an_engine(), resumed)
    assert (text(outputs), outputs[-1].finish, outputs[-1].stop) == ("中".encode()[2:], FinishReason.STOP, "中")


def test_an_answer_resumed_after_its_stop_string_ends_at_once() -> None:
    (outputs,) = run(an_engine(), request((*PROMPT, *ids_of(b"so. END")), resumed_tokens=7, stop=("END",)))
    assert (tokens(outputs), outputs[-1].finish, outputs[-1].stop) == ((), FinishReason.STOP, "END")


def test_the_prompt_holds_no_stop_string() -> None:
    (outputs,) = run(an_engine(), request(ids_of(b"say END"), stop=("END",), max_tokens=2, ignore_eos=True))
    assert outputs[-1].finish is FinishReason.LENGTH


@pytest.mark.parametrize(
    ("sampling", "field"),
    [
        ({"stop": ("",)}, "sampling.stop"),
        ({"stop": ("a" * 257,)}, "sampling.stop"),
        ({"stop": ("\ud800",)}, "sampling.stop"),
        ({"stop": tuple(map(str, range(17)))}, "sampling.stop"),
        ({"repetition_penalty": 0.0}, "sampling.repetition_penalty"),
        ({"repetition_penalty": float("nan")}, "sampling.repetition_penalty"),
        ({"presence_penalty": 2.1}, "sampling.presence_penalty"),
        ({"frequency_penalty": float("inf")}, "sampling.frequency_penalty"),
        ({"logit_bias": {VOCAB_SIZE: 1.0}}, "sampling.logit_bias"),
        ({"logit_bias": {-1: 1.0}}, "sampling.logit_bias"),
        ({"logit_bias": {1: float("nan")}}, "sampling.logit_bias"),
        ({"logit_bias": {1: 101.0}}, "sampling.logit_bias"),
    ],
)
def test_what_is_out_of_range_is_refused_by_its_field(sampling: dict[str, Any], field: str) -> None:
    engine = an_engine()
    with pytest.raises(InvalidRequest) as refused:
        engine.add(request(**sampling))
    assert refused.value.field == field
    assert not engine.has_work


def test_without_a_vocabulary_both_are_refused_by_name() -> None:
    engine = Engine(SpellingModel())
    assert not engine.spec.sampling_options & {"stop", "constraint"}
    with pytest.raises(UnsupportedSamplingOption, match="stop"):
        engine.add(request(stop=("x",)))
    with pytest.raises(UnsupportedOutputConstraint):
        engine.add(request(constraint=DIGITS))
    assert an_engine().spec.sampling_options >= {"stop", "constraint"}


# ---- constraints -------------------------------------------------------------------------------------------------------------


UNHELPFUL = [{}, {"temperature": 1.0, "seed": 5}, {"logit_bias": {VOCAB_SIZE - 1: 100.0}, "ignore_eos": True}]


@pytest.mark.parametrize(
    ("constraint", "matches"),
    [
        (DIGITS, lambda answer: re.fullmatch(r"\d{6}", answer)),
        (Constraint("regex", r"(中|é){2}[^\n]{3}"), lambda answer: re.fullmatch(r"(中|é){2}[^\n]{3}", answer)),
        (Constraint("choice", '["yes, \\"sir\\"", "no\\n", "中文"]'), lambda answer: answer in ('yes, "sir"', "no\n", "中文")),
        (Constraint("ebnf", 'root ::= "(" inner ")"\ninner ::= "x" | "(" "x" ")"'), lambda answer: answer in ("(x)", "((x))")),
        (Constraint("json_schema", '{"enum": [1.5, "é\\"", [true]]}'), lambda answer: json.loads(answer) in (1.5, 'é"', [True])),
    ],
    ids=["regex", "unicode", "choice", "ebnf", "json_schema"],
)
@pytest.mark.parametrize("sampling", UNHELPFUL, ids=["greedy", "drawn", "biased"])
def test_a_constrained_answer_is_of_its_language_and_ends_by_itself(
    compiled: Constraints, constraint: Constraint, matches: Callable[[str], Any], sampling: dict[str, Any]
) -> None:
    (outputs,) = run(an_engine(compiled), request(constraint=constraint, max_tokens=80, **sampling))
    assert outputs[-1].finish is FinishReason.STOP
    assert matches(text(outputs).decode())


def test_an_answer_that_may_end_or_go_on_ends_when_the_model_says_so(compiled: Constraints) -> None:
    constraint = Constraint("regex", "a+")
    (eager,) = run(an_engine(compiled), request(constraint=constraint, logit_bias={EOS: 100.0}))
    (patient,) = run(an_engine(compiled), request(constraint=constraint, logit_bias={EOS: -100.0}, max_tokens=5))
    assert (text(eager), eager[-1].finish) == (b"a", FinishReason.STOP)
    assert (text(patient), patient[-1].finish) == (b"aaaaa", FinishReason.LENGTH)


def test_max_tokens_cuts_a_constrained_answer(compiled: Constraints) -> None:
    (outputs,) = run(an_engine(compiled), request(constraint=DIGITS, max_tokens=3))
    assert outputs[-1].finish is FinishReason.LENGTH
    assert re.fullmatch(rb"\d+", text(outputs))


def test_ids_that_no_token_has_are_never_chosen_under_a_constraint(compiled: Constraints) -> None:
    bias = dict.fromkeys(range(len(TOKENS), VOCAB_SIZE), 100.0)
    (outputs,) = run(an_engine(compiled), request(constraint=Constraint("regex", ".{8}"), logit_bias=bias))
    assert max(tokens(outputs)) < len(TOKENS)


@pytest.mark.parametrize("resumed", [b"12x", b"1234567"])
def test_a_resumed_answer_that_does_not_match_is_refused_by_its_field(compiled: Constraints, resumed: bytes) -> None:
    (outputs,) = run(an_engine(compiled), request((*PROMPT, *ids_of(resumed)), resumed_tokens=len(resumed), constraint=DIGITS))
    assert [output.finish for output in outputs] == [FinishReason.REFUSED]
    assert isinstance(outputs[0].error, InvalidRequest)
    assert outputs[0].error.field == "resumed_tokens"


def test_an_answer_resumed_after_its_end_ends_at_once(compiled: Constraints) -> None:
    (outputs,) = run(an_engine(compiled), request((*PROMPT, *ids_of(b"123456")), resumed_tokens=6, constraint=DIGITS))
    assert (tokens(outputs), outputs[-1].finish) == ((), FinishReason.STOP)


@pytest.mark.parametrize(
    "constraint",
    [
        Constraint("regex", "(a"),
        Constraint("regex", "(?=a)b"),
        Constraint("json_schema", "{"),
        Constraint("json_schema", '{"oneOf": [{"type": "null"}]}'),
        Constraint("json_schema", '{"type": "object", "required": ["a"]}'),
        Constraint("choice", "[]"),
        Constraint("choice", '["\\ud800"]'),
        Constraint("regex", "a" * 40000),
        Constraint("regex", "\ud800"),
    ],
    ids=lambda constraint: f"{constraint.kind}-{len(constraint.source)}",
)
def test_a_constraint_that_cannot_be_enforced_is_refused_at_once(compiled: Constraints, constraint: Constraint) -> None:
    engine = an_engine(compiled)
    with pytest.raises(InvalidConstraint) as refused:
        engine.add(request(constraint=constraint))
    assert refused.value.field == f"constraint.{constraint.kind}"
    assert not engine.has_work


@pytest.mark.parametrize(
    "source", ["root ::= root", "nonsense", 'root ::= "secret', "x ::= y", 'root ::= "a" missing', "(" * 5000, "root ::= Token(0)"]
)
def test_a_grammar_that_matches_nothing_ends_its_stream_with_an_error_that_does_not_quote_it(
    compiled: Constraints, source: str
) -> None:
    ((output,),) = run(an_engine(compiled), request(constraint=Constraint("ebnf", source)))
    assert output.finish is FinishReason.REFUSED
    assert isinstance(output.error, InvalidConstraint)
    assert output.error.field == "constraint.ebnf"
    assert not any(word in str(output.error) for word in ("secret", "nonsense", "missing", "Token"))


def test_a_grammar_that_leads_nowhere_ends_its_stream_there(compiled: Constraints) -> None:
    (outputs,) = run(an_engine(compiled), request(constraint=Constraint("ebnf", 'root ::= "ab" x\nx ::= x')))
    assert outputs[-1].finish is FinishReason.REFUSED
    assert isinstance(outputs[-1].error, InvalidConstraint)


# ---- while a constraint is compiled ------------------------------------------------------------------------------------------


def held_constraints() -> tuple[Constraints, Held]:
    held = Held()
    return Constraints(VOCABULARY, VOCAB_SIZE, [EOS], TRUSTED, compiling=held, beginning=held), held


def test_others_run_while_a_constraint_is_compiled() -> None:
    constraints, held = held_constraints()
    engine = an_engine(constraints)
    constrained, other = request(constraint=DIGITS), request(ignore_eos=True)
    engine.add(constrained)
    engine.add(other)
    assert (engine.waiting, engine.idle_s) == (2, 0.0)
    for _ in range(12):
        assert [output.request_id for output in engine.step()] == [other.request_id]
    assert (engine.waiting, engine.idle_s) == (1, None)
    held.let()
    assert engine.idle_s == 0.0
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    assert re.fullmatch(rb"\d{6}", text(outputs))


def test_a_request_expires_or_is_aborted_while_its_constraint_is_compiled() -> None:
    constraints, held = held_constraints()
    now_s = 0.0
    engine = Engine(SpellingModel(), clock=lambda: now_s, vocabulary=VOCABULARY, constraints=constraints)
    late, gone = request(constraint=DIGITS, deadline_s=5.0), request(constraint=Constraint("regex", "b"))
    engine.add(late)
    engine.add(gone)
    assert engine.idle_s == 5.0
    assert engine.abort(gone.request_id).finish is FinishReason.ABORTED
    now_s = 5.0
    assert engine.idle_s == 0.0
    assert [output.finish for output in engine.step()] == [FinishReason.EXPIRED]
    assert not engine.has_work
    held.let()
    assert engine.free_kv_blocks == engine.spec.kv_blocks


def test_requests_whose_constraint_is_compiled_count_as_waiting() -> None:
    constraints, _ = held_constraints()
    engine = an_engine(constraints, EngineLimits(max_waiting=1))
    engine.add(request(constraint=DIGITS))
    with pytest.raises(Exception, match="full"):
        engine.add(request())


def test_losing_the_runner_while_a_constraint_is_compiled_loses_nothing() -> None:
    constraints, held = held_constraints()
    engine = an_engine(constraints)
    item = request(constraint=DIGITS)
    engine.add(item)
    assert engine.replace_runner(SpellingModel()) == []
    held.let()
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    assert re.fullmatch(rb"\d{6}", text(outputs))


def test_equal_constraints_are_compiled_once_and_refusals_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    compile_one = GrammarCompiler.compile

    def counting(self: GrammarCompiler, checked: Constraint) -> Grammar:
        compiled.append(checked.kind)
        return compile_one(self, checked)

    monkeypatch.setattr(GrammarCompiler, "compile", counting)
    constraints, held = held_constraints()
    engine = an_engine(constraints)
    for _ in range(3):
        engine.add(request(constraint=DIGITS))
        engine.add(request(constraint=Constraint("ebnf", 'root ::= "a')))
    for _ in range(6):
        held.let()
    finishes = []
    while engine.has_work:
        finishes += [output.finish.value for output in engine.step() if output.finish]
    assert sorted(finishes) == ["refused"] * 3 + ["stop"] * 3
    assert compiled == ["regex", "ebnf"]


def test_the_least_recently_used_grammar_leaves_a_full_cache() -> None:
    held = AtOnce()
    limits = ConstraintLimits(cached=2, sandbox=None)
    constraints = Constraints(VOCABULARY, VOCAB_SIZE, [EOS], limits, compiling=held, beginning=held)
    for source in ("a", "b", "a", "c"):
        constraints.begin(Constraint("regex", source), ()).result()
    assert [checked.source for checked in constraints._cache] == ["a", "c"]


async def test_streams_flow_while_a_constraint_is_compiled_and_its_own_begins_after() -> None:
    constraints, held = held_constraints()
    async with AsyncEngine(an_engine(constraints)) as engine:
        stream = engine.submit(request(constraint=DIGITS))
        first = asyncio.ensure_future(anext(stream))
        other = [output async for output in engine.generate(request(ignore_eos=True))]
        assert len(tokens(other)) == 12
        assert not first.done()
        await asyncio.to_thread(held.let)
        outputs = [await first, *[output async for output in stream]]
        assert re.fullmatch(rb"\d{6}", text(outputs))


async def test_a_stream_raises_why_its_constraint_was_refused() -> None:
    constraints, held = held_constraints()
    async with AsyncEngine(an_engine(constraints)) as engine:
        stream = engine.submit(request(constraint=Constraint("ebnf", "root ::= root")))
        await asyncio.to_thread(held.let)
        with pytest.raises(InvalidConstraint):
            await anext(stream)
        assert engine.active_streams == 0


async def test_a_stream_expires_while_its_constraint_is_compiled() -> None:
    constraints, _ = held_constraints()
    engine = an_engine(constraints)
    async with AsyncEngine(engine) as running:
        stream = running.submit(request(constraint=DIGITS, deadline_s=engine.now_s() + 0.05))
        with pytest.raises(RequestExpired):
            await anext(stream)


async def test_a_stream_closed_while_its_constraint_is_compiled_leaves_nothing() -> None:
    constraints, held = held_constraints()
    async with AsyncEngine(an_engine(constraints)) as engine:
        engine.submit(request(constraint=DIGITS)).close()
        assert (engine.active_streams, engine.engine.waiting) == (0, 0)
        held.let()
        assert len(tokens([output async for output in engine.generate(request(ignore_eos=True))])) == 12


# ---- any constraint ----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=150)
@given(st.text(r'ab{}[]()"*+?|:=,.\ 012rotype$', max_size=24), st.sampled_from(["regex", "ebnf", "json_schema", "choice"]))
def test_any_text_as_a_constraint_is_refused_by_its_field_or_enforced(compiled: Constraints, source: str, kind: Any) -> None:
    engine = an_engine(compiled)
    try:
        (outputs,) = run(engine, request(constraint=Constraint(kind, source), max_tokens=6))
    except RequestRefused:
        assert not engine.has_work
        return
    assert outputs[-1].finish in (FinishReason.STOP, FinishReason.LENGTH, FinishReason.REFUSED)
    assert (outputs[-1].finish is FinishReason.REFUSED) == (outputs[-1].error is not None)
