import itertools
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from paged_history import PagedHistory

from lionrock.inference.engine.batch import BatchRow
from lionrock.inference.engine.engine import Engine, EngineLimits
from lionrock.inference.engine.sequence import Request, RequestId, Sampling, Sequence, SequenceId
from lionrock.inference.engine.speculation import NGRAM, PromptLookup


def _sequence(tokens: Seq[int], *, sequence_id: int = 0, max_total_tokens: int = 10_000) -> Sequence:
    request = Request(RequestId(str(sequence_id)), tuple(tokens))
    return Sequence(
        sequence_id=SequenceId(sequence_id), request=request, tokens=list(tokens), prompt_tokens=len(tokens),
        max_total_tokens=max_total_tokens, stop_token_ids=frozenset(), arrived_s=0.0,
    )  # fmt: skip


def _measured(max_drafts: int = 8, rows: int = 1) -> PromptLookup:
    """A policy that has seen how long plain steps take, so that it begins to offer."""
    lookup = PromptLookup(max_drafts)
    lookup.note_step(rows, rows, 0.01, drafted=False)
    return lookup


def _naive(tokens: Seq[int]) -> int | None:
    """Index of what followed the last occurrence of the last n-gram before the end."""
    tail = tuple(tokens[-NGRAM:])
    for end in range(len(tokens) - 1, NGRAM - 1, -1):
        if tuple(tokens[end - NGRAM : end]) == tail:
            return end
    return None


@given(st.lists(st.integers(0, 2), min_size=1, max_size=40), st.integers(0, 10))
def test_a_draft_is_what_followed_the_last_occurrence_of_the_last_tokens(tokens: list[int], known: int) -> None:
    lookup = _measured(max_drafts=4)
    sequence = _sequence(tokens[: max(1, len(tokens) - known)])
    for token in tokens[len(sequence.tokens) :]:
        lookup.propose([sequence], 1)
        sequence.tokens.append(token)
    draft = lookup.propose([sequence], 1).get(sequence.sequence_id, ())
    found = _naive(tokens)
    if found is None:
        assert draft == ()
    else:
        assert len(draft) == 4
        assert draft[: len(tokens) - found] == tuple(tokens[found : found + 4])


def test_nothing_is_offered_beyond_the_end_of_the_answer() -> None:
    tokens = [1, 2, 3, 4, 1, 2, 3]
    assert _measured().propose([_sequence(tokens, max_total_tokens=len(tokens) + 3)], 1) == {SequenceId(0): (4, 1)}
    assert _measured().propose([_sequence(tokens, max_total_tokens=len(tokens) + 1)], 1) == {}


def test_offers_double_while_they_hold_and_pause_when_they_do_not() -> None:
    lookup = _measured(max_drafts=8)
    sequence = _sequence([1, 2, 3, 4] * 10)
    assert len(lookup.propose([sequence], 1)[SequenceId(0)]) == 4
    lookup.note_draft(sequence, 4, 4)
    assert len(lookup.propose([sequence], 1)[SequenceId(0)]) == 8
    lookup.note_draft(sequence, 8, 2)
    assert len(lookup.propose([sequence], 1)[SequenceId(0)]) == 3
    lookup.note_draft(sequence, 3, 0)
    assert lookup.propose([sequence], 1) == {}
    sequence.tokens += [1, 2, 3, 4] * 4
    assert len(lookup.propose([sequence], 1)[SequenceId(0)]) == 1


def test_drafts_end_where_steps_without_them_are_faster_and_are_tried_again_later() -> None:
    lookup = _measured()
    sequence = _sequence([1, 2, 3, 4] * 10)
    offers = 0
    for _ in range(600):
        if lookup.propose([sequence], 1):
            offers += 1
            lookup.note_step(1, 2, 0.05, drafted=True)  # 40 tokens a second against 100
    assert 16 <= offers <= 24


def test_drafts_go_on_where_they_are_faster() -> None:
    lookup = _measured()
    sequence = _sequence([1, 2, 3, 4] * 10)
    offers = 0
    for _ in range(200):
        if lookup.propose([sequence], 1):
            offers += 1
            lookup.note_step(1, 5, 0.015, drafted=True)
    assert offers >= 190


def test_what_holds_for_one_row_says_nothing_of_many() -> None:
    lookup = _measured()
    rows = [_sequence([1, 2, 3, 4] * 10, sequence_id=index) for index in range(16)]
    assert lookup.propose(rows, 16) == {}  # not yet measured without drafts
    lookup.note_step(16, 16, 0.05, drafted=False)
    assert len(lookup.propose(rows, 16)) == 16


def test_an_ended_sequence_leaves_nothing_behind() -> None:
    lookup = _measured()
    for number in range(100):
        sequence = _sequence([1, 2, 3, 4] * 3, sequence_id=number)
        lookup.propose([sequence], 1)
        lookup.forget(sequence.sequence_id)
    assert not lookup._histories


def test_it_can_be_switched_off() -> None:
    assert _measured(max_drafts=0).propose([_sequence([1, 2, 3, 4] * 10)], 1) == {}


class Predictable(PagedHistory):
    """As its base, with answers that go round in circles most of the time."""

    def _next(self, row: BatchRow, end: int) -> int:
        chosen = super()._next(row, end)
        if end < 8 or chosen % 16 == 0:
            return chosen % 3 + 1
        before = self._slots[self._slot(row, end - 4)]
        assert before is not None
        return before[1]


def _ticking() -> Callable[[], float]:
    ticks = itertools.count()
    return lambda: float(next(ticks))


def _answers(requests: Seq[Request], **limits: int) -> tuple[dict[str, tuple[int, ...]], Predictable]:
    runner = Predictable(kv_blocks=40)
    engine = Engine(runner, EngineLimits(**limits), _ticking())
    answers: dict[str, tuple[int, ...]] = {}
    for request in requests:
        engine.add(request)
        answers[request.request_id] = ()
    while engine.has_work:
        for output in engine.step():
            answers[output.request_id] += output.token_ids
            if output.finish is not None:
                assert output.timings is not None
                assert output.timings.completion_tokens == len(answers[output.request_id])
    assert engine.free_kv_blocks == 40
    assert not engine._lookup._histories
    return answers, runner


@given(
    st.lists(st.tuples(st.lists(st.integers(1, 3), min_size=1, max_size=20), st.integers(1, 60)), min_size=1, max_size=4),
    st.sampled_from([(), (2,)]),
)
def test_drafts_change_no_answer(wanted: list[tuple[list[int], int]], stop: tuple[int, ...]) -> None:
    requests = [
        Request(RequestId(str(index)), tuple(prompt), Sampling(max_tokens=tokens, stop_token_ids=stop), cache_salt=b"one")
        for index, (prompt, tokens) in enumerate(wanted)
    ]
    assert _answers(requests, max_drafts=8)[0] == _answers(requests, max_drafts=0)[0]


def test_answers_that_repeat_themselves_take_fewer_steps() -> None:
    requests = [Request(RequestId("0"), (1, 2, 3), Sampling(max_tokens=100))]
    _, plain = _answers(requests, max_drafts=0)
    _, drafted = _answers(requests, max_drafts=4)
    assert len(plain.batches) == 100
    assert len(drafted.batches) < 90
    assert max(row.drafts for batch in drafted.batches for row in batch.rows) <= 4


def test_sequences_with_penalties_biases_or_constraints_get_no_drafts() -> None:
    runner = Predictable()
    runner.spec = replace(runner.spec, sampling_options=frozenset({"repetition_penalty", "logit_bias"}))
    engine = Engine(runner, EngineLimits(), _ticking())
    engine.add(Request(RequestId("0"), (1, 2, 3), Sampling(max_tokens=60, repetition_penalty=1.5)))
    engine.add(Request(RequestId("1"), (1, 2, 3), Sampling(max_tokens=60, logit_bias={5: 1.0})))
    while engine.has_work:
        engine.step()
    assert all(row.drafts == 0 for batch in runner.batches for row in batch.rows)
