"""Where a published log is read from: a directory, HTTP(S), or a bucket of an S3-compatible store.

Knows: how to get at most so many bytes of a file, in how much time. Does not know: what is right (tlog/tile_client.py).
"""

import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import urllib3
from urllib3.exceptions import HTTPError, MaxRetryError

from lionrock.tlog.tile_client import CorruptLog, SourceFailed

_TIMEOUT: Final = urllib3.Timeout(connect=10, read=30)
_READ_TIMEOUT_S: Final = 60.0
"""For a whole file, however slowly it comes."""
_RETRIES: Final = urllib3.Retry(
    total=3, backoff_factor=0.5, status_forcelist=(429, 502, 503, 504), redirect=False, raise_on_status=False
)
_NOT_THERE: Final = frozenset({404, 410})
_PIECE_BYTES: Final = 64 * 1024


class DirectorySource:
    """Files of a log below a directory."""

    def __init__(self, root: Path) -> None:
        """Read below `root`, the directory with the log's `checkpoint`."""
        self._root = root

    def read(self, name: str, max_bytes: int) -> bytes | None:
        """Content of a file."""
        try:
            with (self._root / name).open("rb") as file:
                return _limited(name, file.read(max_bytes + 1), max_bytes)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise SourceFailed(f"{self._root / name}: {error.strerror}") from error

    def __str__(self) -> str:
        return str(self._root)


class HttpSource:
    """Files of a log below a URL. Redirects are not followed: a log has one address."""

    def __init__(self, prefix: str, *, tls: Callable[[], ssl.SSLContext] | None = None, server_name: str | None = None) -> None:
        """Read below `prefix`, https:// or http://.

        `tls`: says whom to trust and who we are, asked before every read, so that a renewed certificate is shown without a
        restart; default: the system's authorities. `server_name`: what the server's certificate has to say, if not the host of the
        prefix.
        """
        self._prefix = prefix.rstrip("/")
        self._tls = tls
        self._named: dict[str, Any] = (
            {} if server_name is None else {"server_hostname": server_name, "assert_hostname": server_name}
        )
        self._context = None if tls is None else tls()
        self._pool = self._new_pool()

    def read(self, name: str, max_bytes: int) -> bytes | None:
        """Content of a file, decompressed."""
        headers = {"Accept-Encoding": "gzip, identity"}
        end_s = time.monotonic() + _READ_TIMEOUT_S
        try:
            response = self._connections().request(
                "GET", f"{self._prefix}/{name}", headers=headers, redirect=False, retries=_RETRIES, preload_content=False
            )
            try:
                if response.status in _NOT_THERE:
                    return None
                if response.status != 200:
                    raise SourceFailed(f"{name}: the server answered with status {response.status}")
                content = bytearray()
                for piece in response.stream(_PIECE_BYTES, decode_content=True):
                    content += piece
                    if len(content) > max_bytes:
                        break
                    if time.monotonic() > end_s:
                        raise SourceFailed(f"{name}: took more than {_READ_TIMEOUT_S:.0f} s")
            finally:
                response.close()  # of what was read to its end, only the response; else the connection as well
        except HTTPError as error:
            reason = error.reason if isinstance(error, MaxRetryError) and error.reason is not None else error
            raise SourceFailed(f"{name}: {type(reason).__name__}") from error
        return _limited(name, bytes(content), max_bytes)

    def _connections(self) -> urllib3.PoolManager:
        context = None if self._tls is None else self._tls()
        if context is not self._context:
            self._pool.clear()
            self._context = context
            self._pool = self._new_pool()
        return self._pool

    def _new_pool(self) -> urllib3.PoolManager:
        return urllib3.PoolManager(num_pools=2, maxsize=4, block=True, timeout=_TIMEOUT, ssl_context=self._context, **self._named)

    def __str__(self) -> str:
        return self._prefix


def _limited(name: str, content: bytes, max_bytes: int) -> bytes:
    if len(content) > max_bytes:
        raise CorruptLog(f"{name} has more than {max_bytes} bytes")
    return content
