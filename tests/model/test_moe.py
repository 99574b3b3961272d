"""Mixtures of experts: routing and grouping against naive loops, and ranges of experts that sum to the whole."""

from pathlib import Path

import pytest
import torch
from checkpoints import save_model
from hypothesis import given, settings
from hypothesis import strategies as st

from lionrock.inference.model.config import MoeConfig, RoutingMethod
from lionrock.inference.model.errors import MalformedWeights
from lionrock.inference.model.moe import MixtureOfExperts, choose_experts
from lionrock.inference.model.weights import open_weights


def naive_choice(moe: MoeConfig, logits: list[float], bias: list[float]) -> dict[int, float]:
    """Weights of the chosen experts of one token, as the papers say it."""
    row = torch.tensor(logits, dtype=torch.float64)
    scores = (row.sigmoid() if moe.method == "noaux_tc" else row.softmax(0)).tolist()
    favour = [s + b for s, b in zip(scores, bias, strict=True)] if moe.method == "noaux_tc" else scores
    size = moe.experts // moe.groups
    groups = [range(g * size, (g + 1) * size) for g in range(moe.groups)]
    if moe.method == "noaux_tc":
        groups.sort(key=lambda group: -sum(sorted((favour[e] for e in group), reverse=True)[:2]))
    elif moe.method == "group_limited_greedy":
        groups.sort(key=lambda group: -max(favour[e] for e in group))
    allowed = [e for group in groups[: moe.groups_per_token] for e in group] if moe.method != "greedy" else range(moe.experts)
    chosen = sorted(allowed, key=lambda e: -favour[e])[: moe.experts_per_token]
    total = sum(scores[e] for e in chosen) if moe.normalised else 1.0
    return {e: scores[e] / total * moe.scaling for e in chosen}


@settings(max_examples=60, deadline=None)
@given(
    method=st.sampled_from(["greedy", "group_limited_greedy", "noaux_tc"]),
    groups=st.integers(1, 4),
    size=st.integers(2, 4),
    kept=st.integers(1, 4),
    chosen=st.integers(1, 8),
    normalised=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_experts_are_chosen_as_a_naive_reading_of_the_papers_chooses(
    method: RoutingMethod, groups: int, size: int, kept: int, chosen: int, normalised: bool, seed: int
) -> None:
    kept = min(kept, groups)
    moe = MoeConfig(
        experts=groups * size,
        experts_per_token=min(chosen, kept * size),
        expert_columns=8,
        shared_columns=0,
        first_layer=0,
        method=method,
        groups=groups,
        groups_per_token=kept,
        normalised=normalised,
        scaling=2.5,
    )
    generator = torch.Generator().manual_seed(seed)
    # Double precision: two scores that are equal would leave the choice open.
    logits = torch.randn(5, moe.experts, generator=generator, dtype=torch.float64)
    bias = torch.randn(moe.experts, generator=generator, dtype=torch.float64) * 0.3
    ids, weights = choose_experts(moe, logits, bias if method == "noaux_tc" else None)
    for token in range(5):
        found = dict(zip(ids[token].tolist(), weights[token].tolist(), strict=True))
        assert found == pytest.approx(naive_choice(moe, logits[token].tolist(), bias.tolist()), rel=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        {"experts_per_token": 9},
        {"experts": 0},
        {"groups": 3},
        {"groups_per_token": 5},
        {"experts_per_token": 5},
        {"groups": 8, "groups_per_token": 8},
        {"expert_columns": 0},
        {"first_layer": -1},
    ],
    ids=str,
)
def test_an_impossible_mixture_is_refused_by_name(change: dict[str, int]) -> None:
    sound = {"experts": 8, "experts_per_token": 2, "expert_columns": 8, "shared_columns": 0, "first_layer": 0}
    with pytest.raises(MalformedWeights):
        MoeConfig(**{**sound, "groups": 4, "groups_per_token": 2, **change}, method="noaux_tc")


def loaded(checkpoint: Path) -> MixtureOfExperts:
    source = open_weights(checkpoint)
    mixture = MixtureOfExperts(source.config, "model.layers.1.mlp")
    for weight in mixture.weights():
        weight.load(source, torch.float32, torch.device("cpu"))
        weight.finish()
    return mixture


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("mixture")
    save_model("deepseek_v3", directory)
    return directory


@pytest.mark.parametrize("tokens", [1, 2, 40])
def test_grouping_by_expert_equals_a_loop_over_tokens(checkpoint: Path, tokens: int) -> None:
    mixture = loaded(checkpoint)
    x = torch.randn(tokens, 48, generator=torch.Generator().manual_seed(2))
    ids, weights = mixture.router(x)
    assert mixture.shared is not None
    expected = mixture.shared(x)
    for token in range(tokens):
        for expert, weight in zip(ids[token].tolist(), weights[token], strict=True):
            expected[token] += weight * mixture.experts[expert](x[token : token + 1])[0]
    assert torch.allclose(mixture(x), expected, atol=1e-5)


def test_uneven_ranges_of_experts_sum_to_the_whole_even_where_nobody_visits(checkpoint: Path) -> None:
    whole = loaded(checkpoint)
    x = torch.randn(2, 48, generator=torch.Generator().manual_seed(2))
    visited = set(whole.router(x)[0].flatten().tolist())
    ranges = [(0, 1), (1, 6), (7, 0), (7, 5)]
    assert any(not visited & set(range(first, first + count)) for first, count in ranges)
    total = torch.zeros_like(x)
    for first, count in ranges:
        part = loaded(checkpoint)
        part.keep_experts(first, count)
        part.shared = None
        total += part(x)
    assert whole.shared is not None
    assert torch.allclose(total + whole.shared(x), whole(x), atol=1e-5)
