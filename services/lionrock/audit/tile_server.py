"""The tiles over HTTP, read-only: c2sp.org/tlog-tiles below `/<origin>/`, for callers whose certificates may read that log.

Knows: paths, content types, cache headers, who may read which log. Does not know: TLS and limits (chassis/http_server.py), what is
in a file (whoever reads it checks it, tlog/tile_client.py).

A log is also served without the first part of its origin, for a host that is called so: the specification wants a log's origin to
be its address. Whether a log is unknown or not for this caller cannot be told apart.
"""

from __future__ import annotations

import asyncio
import gzip
import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

from cryptography import x509
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from lionrock.chassis.identity import SpiffeId
from lionrock.tlog.tile_client import CHECKPOINT_MAX_BYTES, CorruptLog, SourceFailed, TileSource
from lionrock.tlog.tiles import (
    BUNDLE_MAX_BYTES,
    CHECKPOINT_CACHING,
    CHECKPOINT_NAME,
    CHECKPOINT_TYPE,
    TILE_CACHING,
    TILE_TYPE,
    MalformedTile,
    Tile,
)

log = logging.getLogger("lionrock.audit")

MayRead = Callable[[SpiffeId, str], bool]
"""Whether an identity may read the log with this origin."""
_COMPRESSION_LEVEL = 6


class ReaderPolicy:
    """Who may read which log: the platform's any identity of the trust domain, a tenant's those that are named for it."""

    def __init__(self, platform: str, trust_domain: str, readers: Mapping[str, Collection[str]]) -> None:
        """`readers`: SPIFFE ids by tenant, exact, or a kind that ends in "/*"."""
        self._platform_log = f"{platform}/audit"
        self._trust_domain = trust_domain
        self._readers = {f"{platform}/audit/{tenant}": frozenset(ids) for tenant, ids in readers.items()}

    def may_read(self, identity: SpiffeId, origin: str) -> bool:
        """Decide. Default: no."""
        if identity.trust_domain != self._trust_domain:
            return False
        if origin == self._platform_log:
            return True
        ids = self._readers.get(origin, frozenset())
        return str(identity) in ids or f"{str(identity).rpartition('/')[0]}/*" in ids


def tile_app(source: TileSource, origins: Collection[str], may_read: MayRead) -> Starlette:
    """Application for the logs `origins`, whose files `source` has below their origins."""
    prefixes = {origin: origin for origin in origins} | {
        origin.partition("/")[2]: origin for origin in origins if origin.count("/") > 1
    }

    def find(path: str) -> tuple[str, str] | None:
        """Split a path into origin and file, if it is the path of one."""
        for mark in ("/tile/", f"/{CHECKPOINT_NAME}"):
            prefix, found, rest = path.rpartition(mark) if mark != "/tile/" else path.partition(mark)
            if found and prefix in prefixes and (mark == "/tile/" or not rest):
                return prefixes[prefix], f"{mark.strip('/')}{'/' if rest else ''}{rest}"
        return None

    async def file(request: Request) -> Response:
        identity = client_identity(request.scope)
        found = find(request.path_params["path"])
        if identity is None or found is None or not may_read(identity, found[0]):
            return PlainTextResponse("not permitted\n", 403)
        origin, name = found
        try:
            is_bundle = name != CHECKPOINT_NAME and Tile.parse(name).level is None
        except MalformedTile:
            return PlainTextResponse("no such file\n", 404)
        limit = CHECKPOINT_MAX_BYTES if name == CHECKPOINT_NAME else BUNDLE_MAX_BYTES
        try:
            content = await asyncio.to_thread(source.read, f"{origin}/{name}", limit)
        except (SourceFailed, CorruptLog) as error:
            log.error("a tile could not be read", extra={"log": origin, "why": str(error)})
            return PlainTextResponse("not readable now\n", 503)
        if content is None:
            return PlainTextResponse("no such file\n", 404, headers={"Cache-Control": CHECKPOINT_CACHING})
        if name == CHECKPOINT_NAME:
            return Response(content, headers={"Content-Type": CHECKPOINT_TYPE, "Cache-Control": CHECKPOINT_CACHING})
        # Not for caches that several callers share: who may read it was decided for this one.
        headers = {"Content-Type": TILE_TYPE, "Cache-Control": f"private, {TILE_CACHING}"}
        if is_bundle:
            headers["Vary"] = "Accept-Encoding"
            if _accepts_gzip(request.headers.get("accept-encoding", "")):
                content = await asyncio.to_thread(gzip.compress, content, _COMPRESSION_LEVEL, mtime=0)
                headers["Content-Encoding"] = "gzip"
        return Response(content, headers=headers)

    return Starlette(routes=[Route("/{path:path}", file, methods=["GET"])])


def client_identity(scope: Mapping[str, Any]) -> SpiffeId | None:
    """Return the one SPIFFE id of the certificate that TLS verified (ASGI's TLS extension), None without one."""
    chain = scope.get("extensions", {}).get("tls", {}).get("client_cert_chain") or []
    if not chain:
        return None
    try:
        certificate = x509.load_pem_x509_certificate(chain[0].encode("ascii"))
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
        return SpiffeId.parse(uri)
    except (ValueError, x509.ExtensionNotFound):
        return None


def _accepts_gzip(header: str) -> bool:
    """Whether a client takes gzip (RFC 9110, 12.5.3)."""
    for part in header.lower().split(","):
        coding, _, parameter = part.partition(";")
        if coding.strip() in {"gzip", "x-gzip"}:
            return parameter.replace(" ", "") not in {"q=0", "q=0.0", "q=0.00", "q=0.000"}
    return False
