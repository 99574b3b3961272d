"""The work queue: which key is reconciled next, and when.

Knows keys and times, not Kubernetes. A key waits at most once, however often it is added; while it is being worked on, further adds
are kept and given out once it is done, so that two workers never hold one key. `Schedule` is the pure part, to which the time is
told; `WorkQueue` adds a lock, a clock and waiting. Behaviour as in client-go's util/workqueue (dirty and processing sets, delayed
adds, exponential back-off for each key), with jitter, since failures come in storms.
"""

from __future__ import annotations

import heapq
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from itertools import count
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

DEFAULT_CAPACITY = 100_000
"""Keys at a time. Keys are names of objects, so their number is bounded by the cluster; this bounds a defect."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delays after failures in a row: base × factor^(n−1), at most cap, each shortened at random by up to the jitter's part."""

    base_s: float = 0.05
    cap_s: float = 60.0
    factor: float = 2.0
    jitter: float = 0.25

    def delay_s(self, failures: int, draw: float) -> float:
        """Delay after so many failures in a row. draw: a random number in [0, 1)."""
        # The exponent is bounded too: a key that fails for a week must not overflow a float.
        whole = min(self.cap_s, self.base_s * self.factor ** min(failures - 1, 64))
        return whole * (1 - self.jitter * draw)


class Schedule(Generic[K]):
    """Keys that are ready, in order of arrival; keys that wait for a time; keys that are being worked on. Not thread-safe.

    Of several times for one key the earliest counts, as the key's work is the same whoever asked for it.
    """

    def __init__(self, backoff: Backoff = Backoff(), *, capacity: int = DEFAULT_CAPACITY, seed: int | None = None) -> None:
        self._backoff = backoff
        self._capacity = capacity
        self._random = random.Random(seed)  # noqa: S311 - jitter, no secret
        self._ready: OrderedDict[K, None] = OrderedDict()
        self._processing: set[K] = set()
        self._dirty: set[K] = set()  # added while being worked on
        self._due: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []  # entries whose time is not the one in _due are stale
        self._order = count()
        self._failures: dict[K, int] = {}
        self.overflowed = False
        """Whether an add was dropped because of the capacity. Who reads it adds all keys again and clears it."""

    def __len__(self) -> int:
        """Keys that wait, ready or not; those that are being worked on are not counted."""
        return len(self._ready) + len(self._dirty) + len(self._due)

    @property
    def ready(self) -> int:
        """Keys that could be taken now, as of the last call with a time."""
        return len(self._ready)

    @property
    def processing(self) -> int:
        """Keys that are being worked on."""
        return len(self._processing)

    def add(self, key: K) -> None:
        """Make a key ready, at once or as soon as it is done."""
        if key in self._ready or key in self._dirty:
            return
        if key not in self._due and key not in self._processing and self._full():
            self.overflowed = True
            return
        self._due.pop(key, None)
        if key in self._processing:
            self._dirty.add(key)
        else:
            self._ready[key] = None

    def add_at(self, key: K, due: float) -> None:
        """Make a key ready at a time, unless it is ready or due earlier anyway."""
        if key in self._ready or key in self._dirty:
            return
        known = self._due.get(key)
        if known is not None and known <= due:
            return
        if known is None and key not in self._processing and self._full():
            self.overflowed = True
            return
        self._due[key] = due
        heapq.heappush(self._heap, (due, next(self._order), key))
        if len(self._heap) > 2 * len(self._due) + 64:
            self._heap = [entry for entry in self._heap if self._due.get(entry[2]) == entry[0]]
            heapq.heapify(self._heap)

    def fail(self, key: K, now: float, *, at_least_s: float = 0.0) -> float:
        """Count a failure and make the key ready after its back-off. Returns the delay. at_least_s: what the server asked for."""
        self._failures[key] = failures = self._failures.get(key, 0) + 1
        delay_s = max(at_least_s, self._backoff.delay_s(failures, self._random.random()))
        self.add_at(key, now + delay_s)
        return delay_s

    def forget(self, key: K) -> None:
        """Begin the back-off of a key anew."""
        self._failures.pop(key, None)

    def failures(self, key: K) -> int:
        """Failures in a row of a key."""
        return self._failures.get(key, 0)

    def take(self, now: float) -> K | None:
        """Return the key that is ready for longest, to be worked on; None if there is none. `done` must follow."""
        self._ripen(now)
        if not self._ready:
            return None
        key, _ = self._ready.popitem(last=False)
        self._processing.add(key)
        return key

    def done(self, key: K) -> None:
        """End the work on a key. If it was added meanwhile, it is ready again. Raises KeyError if it was not taken."""
        self._processing.remove(key)
        if key in self._dirty:
            self._dirty.remove(key)
            self._ready[key] = None

    def next_due(self) -> float | None:
        """When the next key that waits for a time becomes ready; None if none waits."""
        while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def _ripen(self, now: float) -> None:
        while (due := self.next_due()) is not None and due <= now:
            _, _, key = heapq.heappop(self._heap)
            self.add(key)

    def _full(self) -> bool:
        return len(self) + len(self._processing) >= self._capacity


class ShutDown(Exception):
    """The queue gives out no more keys."""


class WorkQueue(Generic[K]):
    """A `Schedule` for threads."""

    def __init__(
        self,
        backoff: Backoff = Backoff(),
        *,
        capacity: int = DEFAULT_CAPACITY,
        seed: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._schedule: Schedule[K] = Schedule(backoff, capacity=capacity, seed=seed)
        self._changed = threading.Condition()
        self._clock = clock
        self._shut_down = False

    def __len__(self) -> int:
        """Keys that wait, ready or not."""
        with self._changed:
            return len(self._schedule)

    def add(self, key: K) -> None:
        """Make a key ready. After `shut_down` this does nothing."""
        with self._changed:
            if not self._shut_down:
                self._schedule.add(key)
                self._changed.notify()

    def add_after(self, key: K, delay_s: float) -> None:
        """Make a key ready after a time, unless it is ready earlier anyway."""
        with self._changed:
            if not self._shut_down:
                self._schedule.add_at(key, self._clock() + delay_s)
                self._changed.notify()

    def take(self, timeout_s: float | None = None) -> K | None:
        """Wait for a key and take it; None after the time-out. Raises ShutDown."""
        deadline = None if timeout_s is None else self._clock() + timeout_s
        with self._changed:
            while True:
                if self._shut_down:
                    raise ShutDown
                now = self._clock()
                key = self._schedule.take(now)
                if key is not None:
                    return key
                if deadline is not None and now >= deadline:
                    return None
                ends = [end for end in (deadline, self._schedule.next_due()) if end is not None]
                self._changed.wait(min(ends) - now if ends else None)

    def succeed(self, key: K, *, again_after_s: float | None = None) -> None:
        """End the work on a key, whose back-off begins anew."""
        with self._changed:
            self._schedule.forget(key)
            self._schedule.done(key)
            if again_after_s is not None and not self._shut_down:
                self._schedule.add_at(key, self._clock() + again_after_s)
            self._changed.notify_all()

    def fail(self, key: K, *, at_least_s: float = 0.0) -> float:
        """End the work on a key, which comes again after its back-off. Returns the delay."""
        with self._changed:
            delay_s = self._schedule.fail(key, self._clock(), at_least_s=at_least_s)
            self._schedule.done(key)
            self._changed.notify_all()
            return delay_s

    def forget(self, key: K) -> None:
        """Begin the back-off of a key anew."""
        with self._changed:
            self._schedule.forget(key)

    def take_overflow(self) -> bool:
        """Whether adds were dropped since the last call; the caller adds all keys again."""
        with self._changed:
            overflowed, self._schedule.overflowed = self._schedule.overflowed, False
            return overflowed

    def shut_down(self, drain_s: float) -> bool:
        """Give out no more keys, and wait for those that are being worked on. Returns whether all were done in time."""
        deadline = self._clock() + drain_s
        with self._changed:
            self._shut_down = True
            self._changed.notify_all()
            while self._schedule.processing:
                left_s = deadline - self._clock()
                if left_s <= 0:
                    return False
                self._changed.wait(left_s)
            return True
