"""How many replicas the load needs: a pure function of the load, the bounds and what was decided before.

Up at once when requests wait or the first token comes late, and not again before the new replicas answer; down by one after a time
of little load, where little means that one replica less would still be well below the targets. So a load that stays moves the
number in one direction only. Unknown load moves nothing; load that is known in part adds replicas and takes none away. Does not
know where the load is measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from lionrock.operator.resources import Autoscaling

LOW_SHARE = 0.6
"""Of a target, below which one replica less is thought of. The distance to 1 is what keeps the number still."""
MAX_FACTOR = 2
"""Growth in one step: a burst must not take every chip of a pool."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Load of one model over all its replicas. ttft_p95_ms: None where nobody asked lately."""

    waiting: int
    """Requests that wait, all replicas together."""
    ttft_p95_ms: float | None
    partial: bool = False
    """Whether there may be more load than is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """How many replicas, and since when fewer would do."""

    replicas: int
    low_since: datetime | None
    why: str = ""
    unknown: str = ""
    """What is not known of the load, and what follows."""
    recheck_after_s: float | None = None


def scale(
    bounds: Autoscaling, before: int | None, *, ready: int, load: Load | None, low_since: datetime | None, now: datetime
) -> Scaling:
    """Replicas from now on. before: what was wanted until now; None: nothing yet. ready: replicas that answer."""
    current = bounds.min_replicas if before is None else min(max(before, bounds.min_replicas), bounds.max_replicas)
    if before is None or current != before:
        return Scaling(replicas=current, low_since=None, why=f"between {bounds.min_replicas} and {bounds.max_replicas}")
    if load is None:
        return Scaling(replicas=current, low_since=None, unknown="the load is unknown, so the number of replicas stays")
    if (needed := _needed(bounds, current, load)) > current:
        if ready < current:  # what was added before does not answer yet
            return Scaling(replicas=current, low_since=None)
        return Scaling(replicas=needed, low_since=None, why=_told(load))
    if load.partial:
        return Scaling(replicas=current, low_since=None, unknown="a gateway does not tell its load, so no replica is taken away")
    if current == bounds.min_replicas or not _is_low(bounds, current, load):
        return Scaling(replicas=current, low_since=None)
    since = low_since or now
    left_s = (since + timedelta(seconds=bounds.scale_down_after_s) - now).total_seconds()
    if left_s > 0:
        return Scaling(replicas=current, low_since=since, recheck_after_s=left_s)
    return Scaling(replicas=current - 1, low_since=now, why=_told(load))


def _needed(bounds: Autoscaling, current: int, load: Load) -> int:
    """Replicas that would bring the load below its targets, in one bounded step."""
    by_queue = -(-load.waiting // bounds.target_waiting)
    late = load.ttft_p95_ms is not None and load.ttft_p95_ms > bounds.target_ttft_ms and load.waiting > 0
    return min(max(by_queue, current + 1 if late else current), MAX_FACTOR * current, bounds.max_replicas)


def _is_low(bounds: Autoscaling, current: int, load: Load) -> bool:
    """Whether one replica less would be well below the targets."""
    queue_is_short = load.waiting <= LOW_SHARE * bounds.target_waiting * (current - 1)
    return queue_is_short and (load.ttft_p95_ms is None or load.ttft_p95_ms <= LOW_SHARE * bounds.target_ttft_ms)


def _told(load: Load) -> str:
    ttft = "unknown" if load.ttft_p95_ms is None else f"{load.ttft_p95_ms:.0f} ms"
    return f"{load.waiting} requests wait, p95 time to the first token is {ttft}"
