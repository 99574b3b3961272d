"""What a decision on access costs, in process: `python -m benchmarks.access_policy [--quick]`.

Cases: the packaged policies for a caller who was seen before, permitted and refused; a caller who was not; 200 more policies of a
site; and a set that is read, validated and parsed, as happens when one changes. Each is timed by the wall and, since a machine is
seldom alone, by the thread's own time on a processor. The limit is 0.5 ms at the 99th percentile.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from itertools import count

from benchmarks.report import Row, row, write
from lionrock.gateway.access_policies import AccessPolicies, packaged_roles
from lionrock.gateway.authorization import AccessRequest, Action
from lionrock.gateway.tenants import Grant, Principal, Tenant, TenantName

LIMIT_US = 500.0
RUNS = 7
TENANT = Tenant(TenantName("bank"), "HK", 64, {})
GRANT = Grant(
    roles=("user",),
    purposes=tuple(f"purpose_{number}" for number in range(16)),
    models=frozenset(f"model-{number}" for number in range(16)),
    data_classes=frozenset({"public", "internal", "personal"}),
    profile="default",
)
PERMITTED = AccessRequest(Action.CHAT, "purpose_7", "personal", "model-3")
REFUSED = AccessRequest(Action.CHAT, "marketing", "personal", "model-3")


def caller(number: int = 0) -> Principal:
    return Principal(f"spiffe://bank.example/tenant/bank/user/u{number}", TENANT, GRANT)


def of_a_site(policies: int) -> AccessPolicies:
    """Return the packaged roles and more forbids, none of which forbids what is asked here."""
    more = (
        f'@id("site-{number}") @denial("PURPOSE_NOT_PERMITTED") forbid (principal, action == Action::"chat", resource) '
        f'when {{ context has purpose && context.purpose == "closed_{number}" && context has model }};'
        for number in range(policies)
    )
    return AccessPolicies({**packaged_roles(), "site.cedar": "\n".join(more)})


def percentiles(decide: Callable[[], object], times: int, clock: Callable[[], int]) -> tuple[float, float]:
    """Return p50 and p99 of as many calls, in microseconds."""
    taken = []
    for _ in range(times):
        began = clock()
        decide()
        taken.append((clock() - began) / 1000)
    taken.sort()
    return taken[times // 2], taken[int(times * 0.99)]


def measure(times: int) -> Iterator[Row]:
    packaged, large = AccessPolicies(packaged_roles()), of_a_site(200)
    known, number = caller(), count(1)
    cases: list[tuple[str, Callable[[], object], int]] = [
        ("permitted", lambda: packaged.decide(known, PERMITTED), times),
        ("refused", lambda: packaged.decide(known, REFUSED), times),
        ("permitted, a caller not seen before", lambda: packaged.decide(caller(next(number)), PERMITTED), times),
        ("permitted, 200 policies more", lambda: large.decide(known, PERMITTED), times // 4),
    ]
    for name, decide, calls in cases:
        decide()
        for what, clock in (("wall", time.perf_counter_ns), ("CPU", time.thread_time_ns)):
            runs = [percentiles(decide, calls, clock) for _ in range(RUNS)]
            yield row(f"{name}: p50, {what}", [p50 for p50, _ in runs], "us", "lower")
            yield row(f"{name}: p99, {what}", [p99 for _, p99 in runs], "us", "lower", baseline="limit", baseline_values=[LIMIT_US])
    reading = [percentiles(lambda: AccessPolicies(packaged_roles()), 3, time.perf_counter_ns)[0] / 1000 for _ in range(RUNS)]
    yield row("a set is read and validated", reading, "ms", "lower")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the decisions")
    arguments = parser.parse_args()
    write("access_policy", list(measure(1000 if arguments.quick else 10_000)))


if __name__ == "__main__":
    main()
