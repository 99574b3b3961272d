"""What a monitor is told: which logs, by whose keys, from where. One YAML file, or the options of one log.

Knows: names and limits, and how a source is opened. Does not know: what is checked (monitor.py).
"""

import ssl
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from lionrock.audit.monitor import WatchedLog
from lionrock.audit.tile_settings import BucketSettings, bucket_store
from lionrock.audit.tile_sources import DirectorySource, HttpSource
from lionrock.chassis.settings import TelemetrySettings, TlsSettings
from lionrock.tlog.encoding import MalformedNote
from lionrock.tlog.note import VerifierKey
from lionrock.tlog.tile_client import TileSource

_FROZEN = ConfigDict(frozen=True, extra="forbid")


class SourceUnusable(Exception):
    """A source cannot be opened; the message says why."""


class WitnessSettings(BaseModel):
    """Who has to cosign."""

    model_config = _FROZEN

    keys: tuple[str, ...] = Field(min_length=1, max_length=64, description="verifier keys of witnesses")
    needed: int = Field(ge=1, description="how many of them have to have cosigned a checkpoint")

    @field_validator("keys")
    @classmethod
    def _are_keys(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        return _checked(keys)

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.needed > len(self.keys):
            raise ValueError("more witnesses are needed than are known")
        return self


class WatchedLogSettings(BaseModel):
    """One log. The name of its keys is its origin."""

    model_config = _FROZEN

    keys: tuple[str, ...] = Field(min_length=1, max_length=16, description="verifier keys of the log; after a rotation both")
    source: str | None = Field(default=None, description="directory, or http(s):// address, that has the log's checkpoint in it")
    tls: TlsSettings | None = Field(default=None, description="certificate to show to an https source, and the authority to trust")
    server_name: str | None = Field(default=None, description="name in the server's certificate, if not that of the address")
    bucket: BucketSettings | None = Field(default=None, description="bucket that the tiles are in, instead of source")
    witnesses: WitnessSettings | None = Field(default=None, description="who has to cosign; unset: nobody")
    stall_after_s: float | None = Field(default=None, gt=0, description="time for which it may stand still; unset: for ever")
    read_leaves: bool = Field(default=True, description="read every leaf and compute the root from them")

    @field_validator("keys")
    @classmethod
    def _are_keys(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        if len({VerifierKey.parse(key).name for key in _checked(keys)}) > 1:
            raise ValueError("the keys are of several logs")
        return keys

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.source is None) == (self.bucket is None):
            raise ValueError("exactly one of source and bucket must be set")
        if (self.tls or self.server_name) and not (self.source or "").startswith("https://"):
            raise ValueError("tls and server_name are for a source that begins with https://")
        return self

    @property
    def origin(self) -> str:
        """Origin of the log."""
        return VerifierKey.parse(self.keys[0]).name

    def watched(self) -> WatchedLog:
        """Open the source. Raises SourceUnusable."""
        keys = [VerifierKey.parse(key) for key in self.keys]
        witnesses = [VerifierKey.parse(key) for key in self.witnesses.keys] if self.witnesses is not None else []
        needed = self.witnesses.needed if self.witnesses is not None else 0
        return WatchedLog(self.origin, self._open(), keys, witnesses, needed, self.stall_after_s, self.read_leaves)

    def _open(self) -> TileSource:
        if self.bucket is not None:
            from lionrock.audit.tile_bucket import BucketSource

            prefix = "/".join(part for part in (self.bucket.prefix.strip("/"), self.origin) if part)
            return BucketSource(bucket_store(self.bucket), prefix)
        assert self.source is not None
        scheme = urlsplit(self.source).scheme
        if scheme not in {"http", "https"}:
            return DirectorySource(Path(self.source))
        return HttpSource(self.source, tls=None if self.tls is None else _tls_context(self.tls), server_name=self.server_name)


class MonitorSettings(BaseModel):
    """The monitor: which logs it follows, how often, and where it remembers them."""

    model_config = _FROZEN

    state_dir: Path = Field(description="directory for what was seen last, and for evidence; losing it means to trust anew")
    interval_s: float = Field(default=30, gt=0, le=86400, description="time between two looks, in seconds")
    logs: tuple[WatchedLogSettings, ...] = Field(min_length=1, max_length=10_000, description="logs to follow")
    telemetry: TelemetrySettings = Field(default=TelemetrySettings(), description="where metrics go")

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        if len({log.origin for log in self.logs}) < len(self.logs):
            raise ValueError("a log is named twice")
        return self


def _checked(keys: tuple[str, ...]) -> tuple[str, ...]:
    for key in keys:
        try:
            VerifierKey.parse(key)
        except MalformedNote as error:
            raise ValueError(str(error)) from error
    return keys


def _tls_context(tls: TlsSettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=tls.ca_file)
        context.load_cert_chain(tls.cert_file, tls.key_file)
    except (OSError, ssl.SSLError) as error:
        raise SourceUnusable(f"the certificate, its key or the authority cannot be used: {error.strerror or error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context
