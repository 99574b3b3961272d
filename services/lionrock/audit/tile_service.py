"""Publishes tiles, and serves them over HTTP where settings ask for it, as long as the service runs.

Knows: what belongs together. Does not know: how it is done (publishing.py, tile_server.py, chassis/http_server.py).
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

from lionrock.audit.failures import SinkFailed
from lionrock.audit.publisher import PublishedLog
from lionrock.audit.publishing import TilePublishing
from lionrock.audit.store import LogStore
from lionrock.audit.tile_settings import TileSettings, bucket_store, open_sink
from lionrock.chassis.http_settings import HttpServerSettings
from lionrock.chassis.ready_file import write_ready_file
from lionrock.chassis.tls import TlsFilesUnusable
from lionrock.tlog.tile_client import TileSource

log = logging.getLogger("lionrock.audit")


@asynccontextmanager
async def tile_service(
    settings: TileSettings, logs: Sequence[PublishedLog], store: LogStore, *, platform: str, trust_domain: str
) -> AsyncIterator[TilePublishing | None]:
    """Do both while the block runs; nothing when no tiles are wanted. Raises SinkFailed when the port cannot be had."""
    if not settings.wanted:
        yield None
        return
    async with TilePublishing(logs, store, partial(open_sink, settings), interval_s=settings.interval_s) as publishing:
        if settings.http is None:
            yield publishing
            return
        async with _http(settings, settings.http, [each.origin for each in logs], platform=platform, trust_domain=trust_domain):
            yield publishing


@asynccontextmanager
async def _http(
    settings: TileSettings, http: HttpServerSettings, origins: Sequence[str], *, platform: str, trust_domain: str
) -> AsyncIterator[None]:
    from lionrock.audit.tile_server import ReaderPolicy, tile_app  # and with it an HTTP server, which not every service needs
    from lionrock.chassis.http_server import CannotListen, start_http_server

    policy = ReaderPolicy(platform, trust_domain, settings.http_readers)
    app = tile_app(await asyncio.to_thread(_source, settings), origins, policy.may_read)
    try:
        running = await start_http_server(app, http)
    except (CannotListen, TlsFilesUnusable) as error:
        raise SinkFailed(f"tiles.http: {error}") from error
    if http.ready_file is not None:
        write_ready_file(http.ready_file, running.port)
    log.info("serving tiles", extra={"port": running.port})
    try:
        yield
    finally:
        await running.stop(http.drain_grace_s)


def _source(settings: TileSettings) -> TileSource:
    if settings.directory is not None:
        from lionrock.audit.tile_sources import DirectorySource

        return DirectorySource(settings.directory)
    assert settings.bucket is not None
    from lionrock.audit.tile_bucket import BucketSource  # its client is 30 MB that a directory does not need

    return BucketSource(bucket_store(settings.bucket), settings.bucket.prefix)
