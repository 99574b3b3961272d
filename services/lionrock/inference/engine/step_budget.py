"""How many tokens of prompts a step may have while several tenants share an engine, so that its steps stay short.

Who comes waits for the step that runs, and a step full of another tenant's prompts is the longest there is: on a slow chip, one of
512 tokens takes longer than all else that comes before a first token. So prompts are cut, by what a token of them took before.
Where a tenant is alone, or a step of `max_step_tokens` is short anyway, nothing is cut. Source: Agrawal et al., "Taming
Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve", OSDI 2024 (token budgets of steps by a limit of time).

Knows tokens and seconds; neither sequences nor tenants.
"""

from __future__ import annotations

from typing import Final

_SMOOTHING: Final = 0.2
_FIRST: Final = 64
"""Tokens of the first prompts, before any step has been timed."""
_MOST: Final = 1 << 30


class StepBudget:
    """The budget of an engine. Steps are timed whole, so decoding rows beside a prompt make the next chunk shorter."""

    def __init__(self, aim_s: float, floor: int) -> None:
        """`aim_s`: how long a step should take, in seconds, 0: as long as it does; `floor`: tokens that a step may always have."""
        self._aim_s = aim_s
        self._floor = floor
        self._s_per_token: float | None = None

    @property
    def tokens(self) -> int | None:
        """Tokens of prompts in a step that tenants share; None: as many as fit."""
        if not self._aim_s:
            return None
        if self._s_per_token is None:
            return max(self._floor, _FIRST)
        return max(self._floor, int(min(self._aim_s / self._s_per_token, _MOST)))

    def note(self, prompt_tokens: int, step_s: float) -> None:
        """Note how long a step took. One with fewer tokens of prompts than the floor says nothing of them."""
        if prompt_tokens < self._floor or step_s <= 0:
            return
        took = step_s / prompt_tokens
        self._s_per_token = took if self._s_per_token is None else self._s_per_token + _SMOOTHING * (took - self._s_per_token)
