"""What a caller hears when a quota leaves no room, or when nobody can say whether it does.

Knows the quotas' exceptions and the errors at our border. Does not know when which is asked (pipeline.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lionrock.gateway import errors
from lionrock.gateway.quotas.admission import QuotaExceededError
from lionrock.gateway.quotas.limits import Quota
from lionrock.gateway.state.store import StateUnavailable

_RETRY_AFTER_S = 1.0


@contextmanager
def state_needed(why: str = "quotas cannot be counted") -> Iterator[None]:
    """Turn a state that cannot be reached into SharedStateUnavailable."""
    try:
        yield
    except StateUnavailable as unavailable:
        raise errors.SharedStateUnavailable(why, retry_after_s=_RETRY_AFTER_S) from unavailable


@contextmanager
def quota_refusals(refused: Callable[[Quota], None]) -> Iterator[None]:
    """Turn what quotas raise into TenantQuota, of which `refused` is told, and SharedStateUnavailable."""
    try:
        with state_needed():
            yield
    except QuotaExceededError as exceeded:
        refused(exceeded.budget.quota)
        violation = [(str(exceeded.budget), exceeded.what)]
        raise errors.TenantQuota(
            "a quota is used up", retry_after_s=exceeded.retry_after_s, quota_violations=violation
        ) from exceeded
