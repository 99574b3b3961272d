import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lionrock.inference.engine.batch import GREEDY, LogitAdjustment, SamplingRow
from lionrock.inference.engine.logit_adjustment import adjust
from lionrock.inference.engine.sampler import needs_whole_logits, sample

VOCAB_SIZE = 41


def reference(logits: list[float], item: LogitAdjustment) -> list[float]:
    """The definitions, one token at a time, each operation rounded to binary32 as tensors are."""
    rounded = lambda x: torch.tensor(x, dtype=torch.float32).item()  # noqa: E731
    out = list(logits)
    for token_id, bias in item.logit_bias:
        out[token_id] = rounded(out[token_id] + rounded(bias))
    repetition, answer = rounded(item.repetition_penalty), Counter(item.tokens[item.prompt_tokens :])
    for token_id in set(item.tokens):
        value = out[token_id]
        out[token_id] = rounded(value / repetition) if value > 0 else rounded(value * repetition)
    for token_id, count in answer.items():
        out[token_id] = rounded(out[token_id] - rounded(rounded(item.frequency_penalty) * count))
        out[token_id] = rounded(out[token_id] - rounded(item.presence_penalty))
    if item.allowed:
        for token_id in range(len(out)):
            if not item.allowed[token_id // 8] >> token_id % 8 & 1:
                out[token_id] = -math.inf
    return out


def mask(allowed: set[int]) -> bytes:
    return sum(1 << token_id for token_id in allowed).to_bytes(-(-VOCAB_SIZE // 32) * 4, "little")


TOKENS = st.integers(0, VOCAB_SIZE - 1)
NUMBERS = {"allow_nan": False, "width": 32}


@st.composite
def adjustments(draw) -> LogitAdjustment:
    tokens = tuple(draw(st.lists(TOKENS, min_size=1, max_size=30)))
    return LogitAdjustment(
        tokens=tokens,
        prompt_tokens=draw(st.integers(0, len(tokens))),
        repetition_penalty=draw(st.sampled_from([1.0, 0.5, 1.3, 10.0])),
        presence_penalty=draw(st.sampled_from([0.0, -2.0, 0.7, 2.0])),
        frequency_penalty=draw(st.sampled_from([0.0, -0.3, 1.1])),
        logit_bias=tuple(draw(st.dictionaries(TOKENS, st.floats(-100, 100, **NUMBERS), max_size=8)).items()),
        allowed=draw(st.just(b"") | st.sets(TOKENS, min_size=1).map(mask)),
    )


@settings(deadline=None, max_examples=150)
@given(
    st.lists(
        st.tuples(st.lists(st.floats(-20, 20, **NUMBERS), min_size=VOCAB_SIZE, max_size=VOCAB_SIZE), st.none() | adjustments()),
        min_size=1,
        max_size=5,
    )
)
def test_every_row_of_a_batch_gets_what_the_definitions_say(rows) -> None:
    logits = torch.tensor([values for values, _ in rows])
    adjust(logits, [(index, item) for index, (_, item) in enumerate(rows) if item is not None])
    for got, (values, item) in zip(logits.tolist(), rows, strict=True):
        expected = values if item is None else reference(values, item)
        assert got == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(
    ("item", "chosen"),
    [
        (LogitAdjustment(), 3),
        (LogitAdjustment(tokens=(3,), prompt_tokens=1, repetition_penalty=2.0), 2),
        (LogitAdjustment(tokens=(3,), prompt_tokens=1, presence_penalty=2.0), 3),  # the prompt does not count
        (LogitAdjustment(tokens=(0, 3), prompt_tokens=1, presence_penalty=1.5), 2),
        (LogitAdjustment(tokens=(0, 3, 3, 3), prompt_tokens=1, frequency_penalty=0.5), 2),
        (LogitAdjustment(logit_bias=((0, 50.0),)), 0),
        (LogitAdjustment(allowed=mask({0, 1})), 1),
        (LogitAdjustment(logit_bias=((0, 50.0),), allowed=mask({1, 2})), 2),  # no bias opens what the mask closes
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 0.001])
def test_the_choice_comes_from_adjusted_logits(item: LogitAdjustment, chosen: int, temperature: float) -> None:
    logits = torch.zeros(2, VOCAB_SIZE)
    logits[:, :4] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    row = SamplingRow(temperature=temperature, top_p=1.0, top_k=None, min_p=0.0, seed=3, logprobs=None)
    assert sample(logits, [5, 5], [GREEDY, row], [None, item]).token_ids == (3, chosen)


def test_a_mask_that_is_narrower_than_the_logits_forbids_the_rest() -> None:
    logits = torch.zeros(1, VOCAB_SIZE + 60)
    logits[0, VOCAB_SIZE + 50] = 9.0
    assert sample(logits, [0], [GREEDY], [LogitAdjustment(allowed=mask({7}))]).token_ids == (7,)


def test_logprobs_are_the_models_own_whatever_was_adjusted() -> None:
    logits = torch.randn(1, VOCAB_SIZE, generator=torch.Generator().manual_seed(1))
    expected = logits[0].log_softmax(0)
    row = SamplingRow(temperature=0.0, top_p=1.0, top_k=None, min_p=0.0, seed=0, logprobs=2)
    item = LogitAdjustment(tokens=(1, 2), prompt_tokens=0, presence_penalty=2.0, allowed=mask({5}))
    result = sample(logits, [0], [row], [item])
    assert result.token_ids == (5,)
    assert result.logprobs[0].logprob == pytest.approx(expected[5].item())
    assert result.logprobs[0].top[0][1] == pytest.approx(expected.max().item())


def test_adjusted_rows_need_whole_logits() -> None:
    assert not needs_whole_logits(GREEDY, None)
    assert needs_whole_logits(GREEDY, LogitAdjustment(logit_bias=((1, 1.0),)))
