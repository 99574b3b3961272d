"""Certificate files of one identity, read whole and consistent, and read again when they change.

Knows files and PEM, not gRPC. A certificate and its key are two files, so a reader can meet a new certificate with an old key; such
a pair is never handed on. Symlink swaps (Kubernetes) and renames are both seen, because inodes are compared and not only times.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from lionrock.chassis.settings import TlsSettings

_Fingerprint = tuple[tuple[int, int, int], ...]


class TlsFilesUnusable(Exception):
    """The certificate files are missing, are not PEM, or do not belong together."""


@dataclass(frozen=True, slots=True)
class PemIdentity:
    """The contents of the three files."""

    certificate_chain: bytes
    private_key: bytes
    authorities: bytes


def _fingerprint(files: tuple[Path, ...]) -> _Fingerprint:
    return tuple((status.st_ino, status.st_mtime_ns, status.st_size) for status in (file.stat() for file in files))


def read_identity(tls: TlsSettings) -> PemIdentity:
    """Read and check the files. Raises TlsFilesUnusable."""
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls.cert_file, tls.key_file)
        context.load_verify_locations(tls.ca_file)
        identity = PemIdentity(tls.cert_file.read_bytes(), tls.key_file.read_bytes(), tls.ca_file.read_bytes())
    except (OSError, ssl.SSLError) as error:
        raise TlsFilesUnusable(f"{tls.cert_file.parent}: {error.__class__.__name__}: {error.strerror or 'unusable'}") from None
    return identity


Read = TypeVar("Read")


class _Watched(Generic[Read]):
    """What some files hold together. While they are unusable, as in the middle of a rotation, the last good one stays."""

    def __init__(self, files: tuple[Path, ...], read: Callable[[], Read], *, interval_s: float, clock: Callable[[], float]) -> None:
        """Read the files once. Raises TlsFilesUnusable: without good ones nothing starts."""
        self._files = files
        self._read = read
        self._interval_s = interval_s
        self._clock = clock
        self._checked_at = clock()
        self._seen = self._look()
        self._latest = read()
        self.version = 1
        """Grows by one with every change."""

    def _look(self) -> _Fingerprint | None:
        try:
            return _fingerprint(self._files)
        except OSError:
            return None

    def latest(self) -> Read:
        """Return what the files hold, looked at no more often than once an interval."""
        now = self._clock()
        if now - self._checked_at < self._interval_s:
            return self._latest
        self._checked_at = now
        seen = self._look()
        if seen is None or seen == self._seen:
            return self._latest
        try:
            read = self._read()
        except TlsFilesUnusable:
            return self._latest
        if seen == self._look():
            self._seen = seen
            if read != self._latest:
                self._latest = read
                self.version += 1
        return self._latest


class WatchedIdentity(_Watched[PemIdentity]):
    """An identity that follows its files."""

    def __init__(self, tls: TlsSettings, *, interval_s: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the files once. Raises TlsFilesUnusable: without a good identity nothing starts."""
        files = (tls.cert_file, tls.key_file, tls.ca_file)
        super().__init__(files, lambda: read_identity(tls), interval_s=interval_s, clock=clock)


class WatchedAuthorities(_Watched[bytes]):
    """What a client trusts that shows no certificate itself: PEM of authorities, which follows its file."""

    def __init__(self, ca_file: Path, *, interval_s: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the file once. Raises TlsFilesUnusable."""
        super().__init__((ca_file,), lambda: _read_authorities(ca_file), interval_s=interval_s, clock=clock)


def _read_authorities(ca_file: Path) -> bytes:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(ca_file)
        return ca_file.read_bytes()
    except (OSError, ssl.SSLError) as error:
        raise TlsFilesUnusable(f"{ca_file}: {error.__class__.__name__}: {error.strerror or 'unusable'}") from None


class WatchedClientContext:
    """What a client of Python's `ssl` shows and trusts, following its files as WatchedIdentity does."""

    def __init__(self, tls: TlsSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the files once. Raises TlsFilesUnusable."""
        self._tls = tls
        self._watched = WatchedIdentity(tls, clock=clock)
        self._version = self._watched.version
        self._context = self._build()

    def latest(self) -> ssl.SSLContext:
        """Return the context for the next connection: another object whenever the files changed."""
        self._watched.latest()
        if self._watched.version != self._version:
            with suppress(TlsFilesUnusable):  # replaced once more in this moment: the next call sees it
                self._context = self._build()
                self._version = self._watched.version
        return self._context

    def _build(self) -> ssl.SSLContext:
        tls = self._tls
        try:
            context = ssl.create_default_context(cafile=tls.ca_file)
            context.load_cert_chain(tls.cert_file, tls.key_file)
        except (OSError, ssl.SSLError) as error:
            raise TlsFilesUnusable(f"{tls.cert_file.parent}: {error.__class__.__name__}: {error.strerror or 'unusable'}") from None
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        return context
