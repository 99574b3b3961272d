"""Bearer tokens of the client's calls: an OpenID Connect token or an API key, beside a certificate or instead of one.

A token is read from its file at every call, so that whoever renews it replaces the file and nothing else. It is sent over TLS
alone, and stands in no message and no log.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from lionrock.client.errors import LionrockError

MAX_CHARS = 8192
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750, section 2.1


class TokenUnusable(LionrockError):
    """There is no token where one was promised, or what is there is none."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token that lasts as long as the client does."""

    value: str = field(repr=False)

    def read(self) -> str:
        """Return the token. Raises TokenUnusable."""
        return _checked(self.value, "the token")


@dataclass(frozen=True, slots=True)
class TokenFile:
    """A file with a token and nothing else but white space around it."""

    path: str | Path

    def read(self) -> str:
        """Return the token that the file holds now. Raises TokenUnusable."""
        try:
            with Path(self.path).open(encoding="ascii") as file:
                text = file.read(MAX_CHARS + 16)
        except OSError as error:
            raise TokenUnusable(f"{self.path} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise TokenUnusable(f"{self.path} holds no token") from None
        return _checked(text.strip(), str(self.path))


TokenSource = Token | TokenFile


def _checked(text: str, where: str) -> str:
    if len(text) > MAX_CHARS or not _TOKEN.fullmatch(text):
        raise TokenUnusable(f"{where} holds no token" if where != "the token" else "the token is none")
    return text


class _Bearer(grpc.AuthMetadataPlugin):
    def __init__(self, source: TokenSource) -> None:
        self._source = source

    def __call__(self, context: grpc.AuthMetadataContext, callback: Callable[..., None]) -> None:
        del context
        try:
            callback((("authorization", f"Bearer {self._source.read()}"),), None)
        except TokenUnusable as error:
            callback((), error)


def call_credentials(source: TokenSource) -> grpc.CallCredentials:
    """Return what puts the token on every call. Raises TokenUnusable if there is none now."""
    source.read()
    return grpc.metadata_call_credentials(_Bearer(source), name="lionrock-token")
