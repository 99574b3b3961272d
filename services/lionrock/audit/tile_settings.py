"""Settings of the tiles (publishing.py): where they go, who may read them.

Knows: names, limits, and how a sink is opened from them. Does not know: what is published.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lionrock.audit.failures import SinkFailed
from lionrock.audit.tile_sinks import DirectorySink, Readers, TileSink
from lionrock.chassis.http_settings import HttpServerSettings

if TYPE_CHECKING:
    from obstore.store import S3Store

_SECRET_MAX_BYTES = 4096


class BucketSettings(BaseModel):
    """A bucket of an S3-compatible store. The key comes from files, as secrets are mounted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoint: str = Field(pattern=r"^https://[^/]+$", description="address of the object store, https://host:port")
    bucket: str = Field(min_length=1, description="name of the bucket; the key needs to get, put, delete and list its objects")
    prefix: str = Field(default="", description="what the names of all objects begin with")
    region: str = Field(default="us-east-1", description="region that requests are signed for")
    access_key_id_file: Path = Field(description="file with the id of the access key")
    secret_access_key_file: Path = Field(description="file with the secret of the access key")
    ca_file: Path | None = Field(default=None, description="authorities trusted for it, PEM; unset: those of the system")


class TileSettings(BaseModel):
    """Tiles of every log, as c2sp.org/tlog-tiles has them. At most one of directory and bucket."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    directory: Path | None = Field(default=None, description="directory for the tiles of all logs; unset: no directory")
    bucket: BucketSettings | None = Field(default=None, description="bucket for the tiles of all logs; unset: no bucket")
    readers: Readers = Field(default="owner", description="who may read a directory beside this service: owner, group or all")
    interval_s: float = Field(default=2, gt=0, le=3600, description="time between two looks for new leaves, in seconds")

    http: HttpServerSettings | None = Field(default=None, description="port that serves the tiles to certificates; unset: none")
    http_readers: Mapping[str, tuple[str, ...]] = Field(
        default={}, description="by tenant, SPIFFE ids of auditors and regulators that may read its log over HTTP; <kind>/* for all"
    )

    @model_validator(mode="after")
    def _http_knows_its_callers(self) -> Self:
        if self.http is not None:
            if not self.wanted:
                raise ValueError("http serves the tiles of a directory or a bucket, and none is set")
            if self.http.tls is None or self.http.client_certificates != "required":
                raise ValueError("http.tls must be set and http.client_certificates be required: a certificate says who may read")
        return self

    @model_validator(mode="after")
    def _one_sink(self) -> Self:
        if self.directory is not None and self.bucket is not None:
            raise ValueError("tiles go to a directory or to a bucket, not to both")
        return self

    @property
    def wanted(self) -> bool:
        """Whether tiles are published."""
        return self.directory is not None or self.bucket is not None


def open_sink(settings: TileSettings) -> TileSink:
    """Open the sink that is wanted. Blocks. Raises SinkFailed."""
    if settings.directory is not None:
        return DirectorySink(settings.directory, readers=settings.readers)
    assert settings.bucket is not None
    from lionrock.audit.tile_bucket import BucketSink  # its client is 30 MB that a directory does not need

    return BucketSink(bucket_store(settings.bucket), settings.bucket.prefix)


def bucket_store(bucket: BucketSettings) -> "S3Store":
    """Return a client of the bucket. Raises SinkFailed for a secret or an authority that cannot be read."""
    from lionrock.audit.tile_bucket import open_bucket

    return open_bucket(
        bucket.endpoint,
        bucket.bucket,
        access_key_id=_secret(bucket.access_key_id_file),
        secret_access_key=_secret(bucket.secret_access_key_file),
        region=bucket.region,
        ca_file=bucket.ca_file,
    )


def _secret(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_SECRET_MAX_BYTES).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SinkFailed(f"{path} cannot be read") from error
