"""A bidirectional call in which every message is answered by exactly one: the shape of Decode and InspectStream.

Knows grpc.aio calls and time limits; does not know what the messages mean.
"""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

import grpc

from lionrock.gateway.peer_errors import Translate, protocol_violation, translated

Request = TypeVar("Request")
Response = TypeVar("Response")


class PairedStream(Generic[Request, Response]):
    """One open call. Its opening message is sent when it is made, and answered while the caller does something else."""

    def __init__(
        self, call: grpc.aio.StreamStreamCall[Request, Response], opening: Request, *, timeout_s: float, translate: Translate
    ) -> None:
        """`timeout_s` bounds each exchange; `translate` says what a failure means to our caller."""
        self._call = call
        self._timeout_s = timeout_s
        self._translate = translate
        self._opened = asyncio.create_task(self._exchange(opening))

    async def opened(self) -> Response:
        """Return the answer to the opening message. Raises like exchange."""
        return await asyncio.shield(self._opened)

    async def exchange(self, request: Request) -> Response:
        """Send one message and return its answer.

        Raises what `translate` makes of a failure, of an early end or of a late answer.
        """
        await self.opened()
        return await self._exchange(request)

    def close(self) -> None:
        """End the call at once; idempotent."""
        self._call.cancel()
        self._opened.cancel()
        if self._opened.done() and not self._opened.cancelled():
            self._opened.exception()  # seen: an opening that failed after nobody cared is not news

    async def _exchange(self, request: Request) -> Response:
        with translated(self._translate):
            async with asyncio.timeout(self._timeout_s):
                await self._call.write(request)
                response = await self._call.read()
        if response is grpc.aio.EOF:
            raise self._translate(protocol_violation("STREAM_ENDED_EARLY"))
        return response  # type: ignore[return-value]
