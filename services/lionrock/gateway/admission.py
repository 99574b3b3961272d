"""How much at a time: open answers of a caller, of a tenant and of the whole gateway.

Counts; does not queue. A request over a bound is refused at once with an estimate of when to come back, since a queue here would
only move the wait to where nobody sees it (the engine has the one queue). Imports neither grpc nor stubs. State lives in this
process: several gateways each have their own counters.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from lionrock.gateway.tenants import Principal

MAX_STREAMS = "max_streams"
"""What these bounds are called beside the names of quotas."""

_SMOOTHING = 0.2
_MIN_RETRY_S, _MAX_RETRY_S = 0.1, 5.0


class AdmissionRefusedError(Exception):
    """Over a bound. `retry_after_s`: when a place is likely to be free."""

    def __init__(self, subject: str, limit: int, retry_after_s: float) -> None:
        super().__init__(f"{subject} has {limit} open answers, which is the limit")
        self.subject = subject
        self.limit = limit
        self.retry_after_s = retry_after_s


class GatewayFullError(AdmissionRefusedError):
    """The gateway has no place for anybody."""


class TenantFullError(AdmissionRefusedError):
    """The tenant, or the caller within it, has used up its own places."""


class Ticket:
    """One place. Give it back exactly once with `release`; further calls do nothing."""

    __slots__ = ("_release",)

    def __init__(self, release: Callable[[], None]) -> None:
        self._release: Callable[[], None] | None = release

    def release(self) -> None:
        """Free the place."""
        if self._release is not None:
            self._release()
            self._release = None


class Admission:
    """Counters of open answers. Not thread-safe: one event loop uses it."""

    def __init__(self, max_streams: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`max_streams`: open answers of all tenants together. `clock`: seconds."""
        self._max_streams = max_streams
        self._clock = clock
        self._open = 0
        # Both drop their zero entries, so that they never hold more keys than there are open answers.
        self._by_tenant: Counter[str] = Counter()
        self._by_actor: Counter[str] = Counter()
        self._mean_duration_s = 1.0

    @property
    def open_streams(self) -> int:
        """Open answers of all tenants."""
        return self._open

    def admit(self, principal: Principal) -> Ticket:
        """Take a place. Raises TenantFullError before GatewayFullError: a tenant over its own bound learns that it is its own."""
        tenant, actor = principal.tenant, principal.actor
        if self._by_tenant[tenant.name] >= tenant.max_streams:
            raise TenantFullError(f"tenant {tenant.name}", tenant.max_streams, self._retry_after_s(tenant.max_streams))
        most = principal.grant.max_streams
        if most is not None and self._by_actor[actor] >= most:
            raise TenantFullError(actor, most, self._retry_after_s(most))
        if self._open >= self._max_streams:
            raise GatewayFullError("the gateway", self._max_streams, self._retry_after_s(self._max_streams))
        self._open += 1
        self._by_tenant[tenant.name] += 1
        self._by_actor[actor] += 1
        admitted_at = self._clock()

        def release() -> None:
            self._open -= 1
            for counter, key in ((self._by_tenant, str(tenant.name)), (self._by_actor, actor)):
                counter[key] -= 1
                if not counter[key]:
                    del counter[key]
            self._mean_duration_s += _SMOOTHING * (self._clock() - admitted_at - self._mean_duration_s)

        return Ticket(release)

    def _retry_after_s(self, places: int) -> float:
        # Little's law: with all places taken, one is freed every mean duration / places.
        return min(_MAX_RETRY_S, max(_MIN_RETRY_S, self._mean_duration_s / places))
