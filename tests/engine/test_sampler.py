import math
import pickle
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lionrock.inference.engine import errors
from lionrock.inference.engine.batch import GREEDY, SamplingRow
from lionrock.inference.engine.sampler import philox, sample, uniform


def row(**options) -> SamplingRow:
    fields = {"temperature": 1.0, "top_p": 1.0, "top_k": None, "min_p": 0.0, "seed": 1, "logprobs": None}
    return SamplingRow(**{**fields, **options})


def reference(logits: torch.Tensor, position: int, item: SamplingRow) -> int:
    """The definition, one token at a time in double precision."""
    values = logits.tolist()
    by_rank = sorted(range(len(values)), key=lambda i: (-values[i], i))
    if item.temperature == 0:
        return by_rank[0]
    best = values[by_rank[0]]
    weight = {i: math.exp((values[i] - best) / item.temperature) for i in by_rank}
    kept = by_rank[: item.top_k]
    if item.top_p < 1:
        mass, reached, count = sum(weight[i] for i in kept), 0.0, 0
        while reached < item.top_p * mass and count < len(kept):
            reached += weight[kept[count]]
            count += 1
        kept = kept[:count]
    kept = sorted(i for i in kept if weight[i] >= item.min_p)
    draw, cumulated = uniform(item.seed, position) * sum(weight[i] for i in kept), 0.0
    for i in kept:
        cumulated += weight[i]
        if draw < cumulated:
            return i
    return kept[-1]


def test_philox_gives_the_published_vectors() -> None:
    """Known answers of Random123 for philox4x32-10."""
    assert philox(0, 0) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert philox(2**64 - 1, 2**128 - 1) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    key, counter = 0x299F31D0A4093822, 0x0370734413198A2E85A308D3243F6A88
    assert philox(key, counter) == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


@settings(deadline=None, max_examples=200)
@given(
    seed=st.integers(0, 2**64 - 1),
    position=st.integers(0, 2**31),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    top_k=st.none() | st.integers(1, 60),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.05, 0.6]),
    # Few distinct values, so that ties are common; far enough apart that rounding decides nothing.
    levels=st.lists(st.integers(-4, 4), min_size=2, max_size=50),
)
def test_the_draw_is_the_definition(seed, position, temperature, top_k, top_p, min_p, levels) -> None:
    logits = torch.tensor(levels, dtype=torch.float32) * 0.7
    item = row(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    (chosen,) = sample(logits[None], [position], [item]).token_ids
    assert chosen == reference(logits, position, item)


def test_a_nucleus_wider_than_the_guess_is_the_definition() -> None:
    logits = torch.linspace(0, 1, 5000)
    for position in range(20):
        item = row(top_p=0.9, seed=7)
        assert sample(logits[None], [position], [item]).token_ids == (reference(logits, position, item),)


def test_rows_draw_alike_alone_and_in_a_batch() -> None:
    logits = torch.randn(16, 3000, generator=torch.Generator().manual_seed(0)) * 3
    rows = [row(seed=n, top_k=5 if n % 3 == 0 else None, top_p=0.8 if n % 2 else 1.0) if n % 5 else GREEDY for n in range(16)]
    together = sample(logits, range(16), rows).token_ids
    assert together == tuple(sample(logits[n : n + 1], [n], [rows[n]]).token_ids[0] for n in range(16))


def test_equal_logits_are_broken_by_the_lowest_id() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0]])
    assert sample(logits, [0], [GREEDY]).token_ids == (1,)
    assert {sample(logits, [n], [row(top_k=1)]).token_ids for n in range(50)} == {(1,)}


def test_a_vanishing_temperature_is_greedy() -> None:
    logits = torch.randn(1, 100, generator=torch.Generator().manual_seed(0))
    greedy = sample(logits, [0], [GREEDY]).token_ids
    for temperature in (1e-300, 1e-45, 1e-30):
        assert sample(logits, [3], [row(temperature=temperature)]).token_ids == greedy


def test_draws_follow_the_probabilities() -> None:
    probabilities = torch.tensor([0.5, 0.25, 0.15, 0.1])
    logits, draws = probabilities.log()[None].expand(4000, -1), 4000
    counts = Counter(sample(logits, range(draws), [row(seed=11)] * draws).token_ids)
    chi_square = sum((counts[i] - draws * p) ** 2 / (draws * p) for i, p in enumerate(probabilities.tolist()))
    assert chi_square < 16.27  # 3 degrees of freedom, p = 0.001; the draws are fixed by the seed


def test_logprobs_are_those_before_temperature_and_truncation() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0, 2.0]])
    result = sample(logits, [0], [row(temperature=0.5, top_k=1, logprobs=2)])
    entry = result.logprobs[0]
    expected = logits[0].log_softmax(0)
    assert result.token_ids == (1,)
    assert entry.logprob == pytest.approx(expected[1].item())
    assert [token_id for token_id, _ in entry.top] == [1, 3]
    assert sample(logits, [0], [row(temperature=0.0, logprobs=0)]).logprobs[0].top == ()


@pytest.mark.parametrize(
    "error",
    [
        errors.PromptTooLong(10, 5),
        errors.UnknownTokenId(3, 7),
        errors.InvalidRequest("field", "why"),
        errors.UnsupportedSamplingOption("stop"),
        errors.UnsupportedOutputConstraint(),
        errors.InvalidConstraint("regex", "unbalanced ("),
        errors.EngineFull(1.5),
        errors.RequestExpired(),
        errors.ShardGroupLost("rank 1"),
    ],
)
def test_errors_survive_the_way_between_processes(error: errors.EngineError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (str(copy), vars(copy)) == (str(error), vars(error))
