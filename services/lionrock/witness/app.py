"""The witness over HTTP: POST /add-checkpoint, GET /<SHA-256 of the origin>/checkpoint. Source: c2sp.org/tlog-witness.

Knows: statuses and content types. Does not know: what is checked (witness.py). One thread does all of it, so that a checkpoint is
checked and remembered before the next one is looked at.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from lionrock.witness.failures import Inconsistent, OtherSize, StateFailed, WitnessError
from lionrock.witness.witness import Witness

log = logging.getLogger("lionrock.witness")

_T = TypeVar("_T")
SIZE_TYPE = "text/x.tlog.size"
WAITING_MAX = 128
"""Requests that wait for the one thread, also those whose client has left."""


def witness_app(witness: Witness, worker: ThreadPoolExecutor) -> Starlette:
    """Application of one witness. `worker` has one thread."""
    waiting = 0

    async def on_worker(call: Callable[[], _T]) -> _T:
        nonlocal waiting
        if waiting >= WAITING_MAX:
            raise HTTPException(503, headers={"Retry-After": "1"})
        waiting += 1
        step = asyncio.get_running_loop().run_in_executor(worker, call)
        step.add_done_callback(done)
        # Shielded: a client that leaves in the middle must not leave half a step behind. So it waits on, and is counted.
        return await asyncio.shield(step)

    def done(step: asyncio.Future[_T]) -> None:
        nonlocal waiting
        waiting -= 1
        if not step.cancelled():
            step.exception()  # whoever left does not ask

    async def add_checkpoint(request: Request) -> Response:
        body = await request.body()
        try:
            return PlainTextResponse(await on_worker(lambda: witness.add_checkpoint(body)))
        except OtherSize as conflict:
            return Response(f"{conflict.size}\n", conflict.status, media_type=None, headers={"Content-Type": SIZE_TYPE})
        except WitnessError as refusal:
            if isinstance(refusal, Inconsistent | StateFailed):
                # Both need a person: the first may be a log that forks.
                log.error("not cosigned", extra={"refusal": type(refusal).__name__, "why": str(refusal)})
            return PlainTextResponse(f"{refusal}\n", refusal.status)

    async def latest_checkpoint(request: Request) -> Response:
        try:
            note = await on_worker(lambda: witness.latest(request.path_params["origin_hash"]))
        except WitnessError as failure:
            return PlainTextResponse(f"{failure}\n", failure.status)
        return PlainTextResponse("never cosigned\n", 404) if note is None else PlainTextResponse(note)

    return Starlette(
        routes=[
            Route("/add-checkpoint", add_checkpoint, methods=["POST"]),
            Route("/{origin_hash:str}/checkpoint", latest_checkpoint, methods=["GET"]),
        ]
    )
