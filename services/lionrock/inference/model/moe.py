"""A mixture of experts: each token goes through the few routed experts that its router chooses, and through the shared ones.

Tokens are grouped by expert, and an expert that no token chose costs nothing. A rank may hold a range of the routed experts and a
part of the shared ones' columns; what it returns is then its part of the sum. Every rank routes alike, from the same hidden state.
Sources: DeepSeekMoE (Dai et al. 2024); DeepSeek-V2 (2405.04434) §2.2, groups; DeepSeek-V3 (2412.19437) §2.1.2, sigmoid and bias.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from lionrock.inference.model.config import ModelConfig, MoeConfig
from lionrock.inference.model.layers import Mlp, Slice, Weight


class MixtureOfExperts:
    """Routed and shared experts of one layer. x: [T, hidden]; returns [T, hidden]."""

    def __init__(self, config: ModelConfig, name: str) -> None:
        assert config.moe is not None, "a dense model has no experts"
        moe = config.moe
        self.router = Router(moe, config.hidden_size, f"{name}.gate")
        self.first_expert = 0
        self.experts = [
            Mlp(f"{name}.experts.{index}", config.hidden_size, moe.expert_columns, bias=False) for index in range(moe.experts)
        ]
        self.shared: Mlp | None = None
        if moe.shared_columns:
            self.shared = Mlp(f"{name}.shared_experts", config.hidden_size, moe.shared_columns, bias=config.mlp_bias)

    def keep_experts(self, first: int, count: int) -> None:
        """Leave the other routed experts to other ranks."""
        assert self.first_expert == 0, "the experts were cut before"
        assert first + count <= len(self.experts), "experts out of range"
        self.first_expert, self.experts = first, self.experts[first : first + count]

    def __call__(self, x: Tensor, /) -> Tensor:
        """Apply. The sum over experts is taken in float32, in the order of the experts whatever the batch."""
        ids, weights = self.router(x)
        # Visits sorted by expert: those of this rank's experts lie together.
        visits = ids.flatten()
        order = visits.argsort(stable=True)
        tokens, shares = order // ids.shape[1], weights.flatten()[order]
        counts = visits.bincount(minlength=self.router.experts).tolist()
        begin = sum(counts[: self.first_expert])
        total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        for expert, count in zip(self.experts, counts[self.first_expert :], strict=False):
            if count:
                visitors = tokens[begin : begin + count]
                total.index_add_(0, visitors, expert(x[visitors]).float() * shares[begin : begin + count, None])
                begin += count
        if self.shared is not None:
            total += self.shared(x)
        return total.to(x.dtype)

    def weights(self) -> Iterator[Weight]:
        """List what to load."""
        yield from self.router.weights()
        for expert in self.experts:
            yield from expert.weights()
        if self.shared is not None:
            yield from self.shared.weights()


class Router:
    """Scores experts in float32 and chooses. x: [T, hidden]; returns expert ids [T, k] int64 and their weights [T, k] float32."""

    def __init__(self, moe: MoeConfig, hidden_size: int, name: str) -> None:
        self.experts = moe.experts
        self._moe = moe
        # float32 whatever the model's type: what decides between experts is not rounded.
        self._weight = Weight(Slice.matrix(name, moe.experts, hidden_size), dtype=torch.float32)
        self._bias: Weight | None = None
        if moe.method == "noaux_tc":
            bias = Slice(name, (moe.experts,), range(moe.experts))
            self._bias = Weight(bias, kind="e_score_correction_bias", dtype=torch.float32)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Choose."""
        logits = functional.linear(x.float(), self._weight.data)
        return choose_experts(self._moe, logits, None if self._bias is None else self._bias.data)

    def weights(self) -> Iterator[Weight]:
        """List what to load."""
        yield self._weight
        if self._bias is not None:
            yield self._bias


def choose_experts(moe: MoeConfig, logits: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Choose experts by their logits. logits: [T, experts] float32; bias: [experts], of noaux_tc.

    Returns ids [T, k] and weights [T, k]; the bias sways the choice and not the weight.
    """
    if moe.method == "noaux_tc":
        assert bias is not None, "noaux_tc corrects scores by a bias"
        scores = logits.sigmoid()
        favour = scores + bias
    else:
        scores = favour = logits.softmax(dim=-1)
    if moe.method != "greedy":
        groups = favour.view(len(favour), moe.groups, -1)
        best = groups.amax(-1) if moe.method == "group_limited_greedy" else groups.topk(2).values.sum(-1)
        closed = torch.ones_like(best, dtype=torch.bool).scatter_(1, best.topk(moe.groups_per_token).indices, False)
        favour = groups.masked_fill(closed[..., None], float("-inf")).flatten(1)
    ids = favour.topk(moe.experts_per_token).indices
    weights = scores.gather(1, ids)
    if moe.normalised:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return ids, weights * moe.scaling
