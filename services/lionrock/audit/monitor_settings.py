"""What a monitor is told: which logs, by whose keys, from where. One YAML file, or the options of one log.

Knows: names and limits, and how a source is opened. Does not know: what is checked (monitor.py).
"""

from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from lionrock.audit.monitor import WatchedLog
from lionrock.audit.tile_settings import BucketSettings, bucket_store
from lionrock.audit.tile_sources import DirectorySource, HttpSource
from lionrock.chassis.settings import TelemetrySettings, TlsSettings
from lionrock.chassis.tls import TlsFilesUnusable, WatchedClientContext
from lionrock.tlog.encoding import MalformedNote
from lionrock.tlog.note import VerifierKey
from lionrock.tlog.tile_client import TileSource

_FROZEN = ConfigDict(frozen=True, extra="forbid")


class SourceUnusable(Exception):
    """A source cannot be opened; the message says why."""


class SettingsUnusable(Exception):
    """The file of settings cannot be used; the message says which setting."""


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
        try:
            tls = None if self.tls is None else WatchedClientContext(self.tls).latest
        except TlsFilesUnusable as error:
            raise SourceUnusable(f"the certificate, its key or the authority cannot be used: {error}") from error
        return HttpSource(self.source, tls=tls, server_name=self.server_name)


class MonitorSettings(BaseModel):
    """The monitor: which logs it follows, how often, and where it remembers them."""

    model_config = _FROZEN

    state_dir: Path = Field(description="directory for what was seen last, and for evidence; losing it means to trust anew")
    interval_s: float = Field(default=30, gt=0, le=86400, description="time between two looks, in seconds")
    logs: tuple[WatchedLogSettings, ...] = Field(min_length=1, max_length=10_000, description="logs to follow")
    telemetry: TelemetrySettings = Field(default=TelemetrySettings(), description="where metrics go")
    probe_listen: str | None = Field(
        default=None,
        pattern=r"^.+:\d{1,5}$",
        description="host:port for a kubelet's probes in clear text, which say nothing about the logs; unset: none",
    )

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        if len({log.origin for log in self.logs}) < len(self.logs):
            raise ValueError("a log is named twice")
        return self


def read_settings(path: Path) -> MonitorSettings:
    """Read a YAML file. Raises SettingsUnusable."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsUnusable(f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsUnusable(f"{path} is not YAML") from error
    return settings_of(values)


def settings_of(values: object) -> MonitorSettings:
    """Check settings. Raises SettingsUnusable."""
    try:
        return MonitorSettings.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise SettingsUnusable(f"{where}: {first['msg']}") from error


def _checked(keys: tuple[str, ...]) -> tuple[str, ...]:
    for key in keys:
        try:
            VerifierKey.parse(key)
        except MalformedNote as error:
            raise ValueError(str(error)) from error
    return keys
