"""Two services on one PostgreSQL: one writes, the other stands by and takes over.

Knows: that a process which waits is alive but not ready, and that one which lost its store must end. Does not know: how a store
is held (store/postgres.py), what is checked before anything is signed (tenant_log.py).

Who waits listens on nothing but the port of probes, and a signal ends it at once: there is nothing to drain. Who loses the store
(its session was ended, or the server was) exits with an error and is started again by whatever runs it, to stand by or to take
over: only a start checks the stored heads.
"""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Final

from lionrock.audit.failures import StoreFailed, StoreHeld
from lionrock.audit.log import AuditLogs
from lionrock.audit.store import LogStore
from lionrock.chassis.probes import waiting_probes

_INTERVAL_S: Final = 0.5


async def take_over(open_store: Callable[[], LogStore], probe_listen: str | None, service_name: str) -> LogStore:
    """Open a store, waiting for as long as another service holds it. Raises StoreFailed."""
    try:
        return await asyncio.to_thread(open_store)
    except StoreHeld as held:
        print(f"lionrock audit: standing by: {held}", file=sys.stderr, flush=True)
    async with waiting_probes(probe_listen, [service_name]):
        while True:
            await asyncio.sleep(_INTERVAL_S)
            with suppress(StoreHeld):
                return await asyncio.to_thread(open_store)


async def until_store_is_lost(serving: Coroutine[Any, Any, None], logs: AuditLogs) -> None:
    """Serve, but no longer than the store is ours. Raises StoreFailed when it is not."""
    task = asyncio.create_task(serving)
    while logs.broken is None:
        done, _ = await asyncio.wait({task}, timeout=_INTERVAL_S)
        if done:
            return task.result()
    task.cancel()  # another service may sign by now: nobody should wait for what this one still does
    with suppress(asyncio.CancelledError):
        await task
    raise StoreFailed(logs.broken)
