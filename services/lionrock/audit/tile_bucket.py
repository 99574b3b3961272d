"""Tiles in a bucket of an S3-compatible store: the TileSink (tile_sinks.py) that a static web host can serve from.

Knows: the conditional writes that make files unchangeable (`If-None-Match: *`) and the checkpoint's swap safe (`If-Match`), and
how a bucket is opened. Does not know: tiles. S3's protocol and its signatures (AWS Signature Version 4) are obstore's. A store
that ignores these conditions is no sink: `open_bucket` tries them, and refuses.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError, PreconditionError
from obstore.store import S3Store

from lionrock.audit.failures import SinkFailed, TileConflict
from lionrock.audit.tile_sinks import check_name
from lionrock.tlog.tile_client import CorruptLog, SourceFailed
from lionrock.tlog.tiles import CHECKPOINT_CACHING, CHECKPOINT_NAME, CHECKPOINT_TYPE, TILE_CACHING, TILE_TYPE

if TYPE_CHECKING:
    from obstore import UpdateVersion

_PARALLEL: Final = 8
_LISTED_AT_ONCE: Final = 1000
_CONNECT_TIMEOUT: Final = timedelta(seconds=10)
_TIMEOUT: Final = timedelta(seconds=60)
_PROBE_PREFIX: Final = "lionrock-probe"


def open_bucket(
    endpoint: str,
    bucket: str,
    *,
    access_key_id: str,
    secret_access_key: str,
    region: str = "us-east-1",
    ca_file: Path | None = None,
) -> S3Store:
    """Return a client of a bucket. Raises SinkFailed for authorities that cannot be read."""
    client: dict[str, Any] = {"connect_timeout": _CONNECT_TIMEOUT, "timeout": _TIMEOUT}
    if ca_file is not None:
        try:
            client["root_certificate"] = ca_file.read_bytes()
        except OSError as error:
            raise SinkFailed(f"{ca_file} cannot be read: {error.strerror}") from error
    return S3Store(
        bucket,
        endpoint=endpoint,
        region=region,
        access_key_id=access_key_id,
        secret_access_key=secret_access_key,
        virtual_hosted_style_request=False,
        client_options=client,  # type: ignore[arg-type]
        retry_config={"max_retries": 4, "retry_timeout": _TIMEOUT},
    )


class BucketSink:
    """Objects below a prefix of a bucket."""

    def __init__(self, store: S3Store, prefix: str = "") -> None:
        """Use `store` below `prefix`. Raises SinkFailed unless the store keeps the conditions of writes."""
        self._store = store
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._pool = ThreadPoolExecutor(_PARALLEL, thread_name_prefix="audit-tiles")
        try:
            self._try_conditions()
        except BaseException:
            self._pool.shutdown()
            raise

    def read(self, name: str) -> bytes | None:
        """Content of an object."""
        found = self._get(name)
        return None if found is None else found[0]

    def add(self, files: Mapping[str, bytes]) -> None:
        """Put new objects, several at a time; a store acknowledges what is durable."""
        pending = [self._pool.submit(self._create, name, content) for name, content in files.items()]
        failures = [failure for future in pending if (failure := future.exception()) is not None]
        conflicts = [failure for failure in failures if isinstance(failure, TileConflict)]
        for failure in [*conflicts, *failures]:
            raise failure

    def replace(self, name: str, content: bytes, expected: bytes | None) -> None:
        """Swap an object by its ETag."""
        found = self._get(name)
        if (None if found is None else found[0]) != expected:
            raise TileConflict(f"{name} was changed by somebody else")
        if found is None:
            self._create(name, content)
            return
        try:
            self._put(name, content, {"e_tag": found[1]})
        except PreconditionError:
            # A try of ours that was cut off and repeated below us looks the same as somebody else's write.
            if self.read(name) != content:
                raise TileConflict(f"{name} was changed by somebody else") from None
        except (BaseError, OSError) as error:
            raise _failed("writing", name, error) from None

    def remove_below(self, prefix: str) -> None:
        """Delete all objects under a prefix."""
        try:
            for batch in obstore.list(self._store, self._key(prefix.rstrip("/")), chunk_size=_LISTED_AT_ONCE):
                obstore.delete(self._store, [each["path"] for each in batch])
        except NotFoundError:
            return
        except (BaseError, OSError) as error:
            raise _failed("removing", prefix, error) from None

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def _create(self, name: str, content: bytes) -> None:
        try:
            self._put(name, content, "create")
        except AlreadyExistsError:
            if self.read(name) != content:
                raise TileConflict(f"{name} is published with other bytes") from None
        except (BaseError, OSError) as error:
            raise _failed("writing", name, error) from None

    def _put(self, name: str, content: bytes, mode: Literal["create"] | UpdateVersion) -> None:
        text = name.rpartition("/")[2] == CHECKPOINT_NAME
        attributes: dict[str, str] = {
            "Content-Type": CHECKPOINT_TYPE if text else TILE_TYPE,
            "Cache-Control": CHECKPOINT_CACHING if text else TILE_CACHING,
        }
        obstore.put(self._store, self._key(name), content, mode=mode, use_multipart=False, attributes=attributes)

    def _get(self, name: str) -> tuple[bytes, str] | None:
        try:
            found = obstore.get(self._store, self._key(name))
            return bytes(found.bytes()), found.meta["e_tag"] or ""
        except (FileNotFoundError, NotFoundError):
            return None
        except (BaseError, OSError) as error:
            raise _failed("reading", name, error) from None

    def _key(self, name: str) -> str:
        check_name(name)
        return self._prefix + name

    def _try_conditions(self) -> None:
        """Create an object twice; a store that lets the second one pass would let a published tile be overwritten."""
        key = f"{self._prefix}{_PROBE_PREFIX}-{secrets.token_hex(8)}"
        try:
            obstore.put(self._store, key, b"1", mode="create")
            try:
                obstore.put(self._store, key, b"2", mode="create")
            except AlreadyExistsError:
                return
            finally:
                obstore.delete(self._store, key)
        except (BaseError, OSError) as error:
            raise _failed("writing", key, error) from None
        raise SinkFailed("the object store ignores If-None-Match, so that published tiles could be overwritten: use another one")


class BucketSource:
    """Files of a log below a prefix of a bucket, for a reader (tlog/tile_client.py)."""

    def __init__(self, store: S3Store, prefix: str) -> None:
        """Read below `prefix`, where the log's `checkpoint` is."""
        self._store = store
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""

    def read(self, name: str, max_bytes: int) -> bytes | None:
        """Content of an object. Raises SourceFailed, CorruptLog for more than `max_bytes`."""
        try:
            found = obstore.get(self._store, f"{self._prefix}{name}")
            if found.meta["size"] > max_bytes:
                raise CorruptLog(f"{name} has more than {max_bytes} bytes")
            return bytes(found.bytes())
        except (FileNotFoundError, NotFoundError):
            return None
        except (BaseError, OSError) as error:
            raise SourceFailed(f"{name}: {type(error).__name__}") from None

    def __str__(self) -> str:
        return self._prefix or "/"


def _failed(doing: str, name: str, error: BaseException) -> SinkFailed:
    """Name the failure without the library's text, which quotes requests."""
    return SinkFailed(f"{doing} {name}: {type(error).__name__}")
