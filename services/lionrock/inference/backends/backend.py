"""What a replica asks of an engine, whichever it is. tests/backends holds the contract, and every implementation passes it.

Implementations: `torch_engine.TorchEngine` (Lionrock's engine over a shard group) and `vllm_engine.VllmEngine` (vLLM's AsyncLLM).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from lionrock.inference.engine.runner import RunnerSpec
from lionrock.inference.engine.sequence import Request, SequenceId
from lionrock.inference.engine.stream import Stream


class EngineBackend(Protocol):
    """An engine with what runs its model. Lives on one event loop, from its first `start` to `close`."""

    async def start(self, on_lost: Callable[[str], None]) -> None:
        """Build what runs the model: the first time, and again after each loss.

        on_lost: told the reason once, from any thread, when what this call built is of no more use.
        Raises ShardGroupLost when it did not come up; then nothing of it is left.
        """
        ...

    @property
    def spec(self) -> RunnerSpec | None:
        """What the model and its cache are; None until the first `start` is done."""
        ...

    @property
    def running(self) -> int:
        """Sequences in the batch."""
        ...

    @property
    def waiting(self) -> int:
        """Sequences in the queue."""
        ...

    def submit(self, request: Request) -> Stream:
        """Admit a request and return its stream, which the caller must close; closing it early aborts the sequence.

        The outputs' token ids are the answer in order, and the last output says why it ended. Raises RequestRefused in its kinds,
        EngineFull, EngineDraining, or ShardGroupLost while nothing runs the model and the engine does not wait for it. What is
        found out later (a constraint that does not compile, the deadline, a loss that it does not outlive) ends the stream with
        its error.
        """
        ...

    def give_up(self, reason: str) -> None:
        """End with ShardGroupLost the streams that outlived a loss: nothing that runs the model could be built again."""
        ...

    def sequence_ended(self, sequence_id: SequenceId, traceparent: str) -> None:
        """Have whatever ran a traced sequence report its spans, where it makes any."""
        ...

    async def drain(self) -> None:
        """Refuse new requests and return when the last stream has ended. Bound it with `asyncio.timeout`."""
        ...

    async def close(self) -> None:
        """End every stream with EngineDraining and everything that runs the model. May be called before `start`, and twice."""
        ...
