"""The shard group: ranks in processes of their own as one ModelRunner.

Every rank gets each step as one frame and the sampling rank answers with the tokens. A dead rank is seen by the end of its link, a
frozen one by its silence; either way the whole group is given up and the rank at fault is killed, so that the others, which wait
for it inside a collective, can leave. Knows links and heartbeats; not Ray, torch or policy.
"""

from __future__ import annotations

import contextlib
import logging
import select
import threading
import time
from collections.abc import Callable, Sequence

from lionrock.inference.engine.batch import MalformedBatch, StepBatch, StepResult
from lionrock.inference.engine.errors import ShardGroupLost
from lionrock.inference.engine.runner import RunnerSpec
from lionrock.inference.engine.sequence import SequenceId
from lionrock.inference.links import Kind, Link, LinkClosed
from lionrock.inference.spans import ENDED

log = logging.getLogger("lionrock.inference")


class RankLost(LinkClosed):
    """A rank died, failed or fell silent."""

    def __init__(self, rank: int, how: str, *, at_fault: frozenset[int] | None = None) -> None:
        """at_fault: the ranks that are of no more use; None: this one."""
        super().__init__(f"rank {rank} {how}")
        self.at_fault = frozenset((rank,)) if at_fault is None else at_fault


class ShardGroup:
    """A ModelRunner over the links of all ranks, by rank."""

    def __init__(
        self,
        links: Sequence[Link],
        spec: RunnerSpec,
        *,
        heartbeat_interval_s: float,
        heartbeat_timeout_s: float,
        kill: Callable[[frozenset[int]], None],
        on_lost: Callable[[ShardGroup, str], None],
    ) -> None:
        """Take over the links.

        kill: ends the processes of the ranks at fault, as far as it is known which; the others are the caller's.
        on_lost: told once, from any thread, when the group is of no more use.
        """
        self._links = tuple(links)
        self._spec = spec
        self._interval_s = heartbeat_interval_s
        self._silence_s = heartbeat_timeout_s
        self._kill = kill
        self._on_lost = on_lost
        self._reading = threading.Lock()
        self._result: bytes | None = None
        self._lost: str | None = None
        self._closing = threading.Event()
        self._poll = select.poll()
        self._ranks = {link.fileno(): rank for rank, link in enumerate(self._links)}
        for descriptor in self._ranks:
            self._poll.register(descriptor, select.POLLIN)
        self._seen_s = [time.monotonic()] * len(self._links)
        threading.Thread(target=self._watch, name="lionrock-heartbeats", daemon=True).start()

    @property
    def spec(self) -> RunnerSpec:
        """See ModelRunner."""
        return self._spec

    @property
    def lost(self) -> str | None:
        """Why the group is of no more use, or None."""
        return self._lost

    def execute(self, batch: StepBatch) -> StepResult:
        """See ModelRunner. A step may take as long as its ranks live: collectives have their own time-out."""
        encoded = batch.encode()
        with self._reading:
            try:
                self._raise_if_lost()
                self._result = None
                for rank, link in enumerate(self._links):
                    self._send_step(rank, link, encoded)
                while self._result is None:
                    self._read(self._look_s())
                return StepResult.decode(self._result)
            except (LinkClosed, MalformedBatch) as error:
                self._lose(error)
            self._raise_if_lost()
        raise AssertionError("a lost group says so")

    def _send_step(self, rank: int, link: Link, encoded: bytes) -> None:
        try:
            link.send(Kind.STEP, encoded)
        except LinkClosed as error:
            raise RankLost(rank, "died or takes no steps") from error

    def sequence_ended(self, sequence_id: SequenceId, traceparent: str) -> None:
        """Have every rank report what it did for a traced sequence."""
        payload = ENDED.pack(sequence_id, traceparent.encode("ascii"))
        for link in self._links:
            try:
                link.send(Kind.ENDED, payload)
            except LinkClosed:
                return  # the watch finds out

    def close(self) -> None:
        """See ModelRunner: the ranks leave."""
        if self._closing.is_set():
            return
        self._closing.set()
        with self._reading:
            for link in self._links:
                with contextlib.suppress(LinkClosed):
                    link.send(Kind.CLOSE)
                link.close()

    def _raise_if_lost(self) -> None:
        if self._lost is not None:
            raise ShardGroupLost(self._lost)
        if self._closing.is_set():
            raise ShardGroupLost("the shard group is closed")

    def _read(self, timeout_s: float) -> None:
        """Take in what the ranks sent (the holder of the lock). Raises LinkClosed for a rank that is gone, failed or silent."""
        for descriptor, _ in self._poll.poll(timeout_s * 1000):
            rank = self._ranks[descriptor]
            try:
                for kind, payload in self._links[rank].received():
                    self._seen_s[rank] = time.monotonic()
                    if kind is Kind.RESULT:
                        self._result = payload
                    elif kind is Kind.FAILED:
                        failed = payload.decode("ascii", "replace")[:64]
                        raise RankLost(rank, f"failed with {failed}")
                    elif kind is Kind.PEER_LOST:
                        raise RankLost(rank, "lost another rank in a collective", at_fault=frozenset())
            except RankLost:
                raise
            except LinkClosed as error:
                raise RankLost(rank, "died") from error
        self._raise_if_silent()

    def _look_s(self) -> float:
        """Time until the next look at the ranks: when the one that was silent for longest would count as lost, if not before."""
        return min(self._interval_s, max(0.001, min(self._seen_s) + self._silence_s - time.monotonic()))

    def _raise_if_silent(self) -> None:
        now_s = time.monotonic()
        silence_s = [now_s - seen_s for seen_s in self._seen_s]
        longest_s = max(silence_s)
        if longest_s > self._silence_s:
            # Ranks that froze at the same time fell silent within one interval.
            silent = frozenset(rank for rank, mute_s in enumerate(silence_s) if mute_s > longest_s - 2 * self._interval_s)
            raise RankLost(silence_s.index(longest_s), "gives no sign of life", at_fault=silent)

    def _watch(self) -> None:
        """Look after the ranks while no step does (a thread)."""
        while not self._closing.wait(self._look_s()):
            if self._lost is not None:
                return
            if not self._reading.acquire(blocking=False):
                continue  # a step reads
            try:
                if not self._closing.is_set():
                    self._read(0)
            except LinkClosed as error:
                self._lose(error)
            finally:
                self._reading.release()

    def _lose(self, error: Exception) -> None:
        """Give the group up (the holder of the lock)."""
        if self._lost is not None or self._closing.is_set():
            self._lost = self._lost or "the shard group is closed"
            return
        self._lost = reason = str(error)
        log.warning("shard group lost: %s", reason)
        for link in self._links:
            link.close()
        self._kill(error.at_fault if isinstance(error, RankLost) else frozenset(range(len(self._links))))
        self._on_lost(self, reason)
