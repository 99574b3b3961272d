"""Settings of an HTTP port, and of a program that serves HTTP instead of gRPC."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lionrock.chassis.settings import MIB, ProgramSettings, TlsSettings


class HttpServerSettings(BaseModel):
    """One HTTP port and its limits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    listen: str = Field(
        default="127.0.0.1:0", pattern=r"^.+:\d{1,5}$", description="host:port to listen on; port 0 takes a free one"
    )
    tls: TlsSettings | None = Field(default=None, description="certificate of this server; unset: clear text")
    client_certificates: Literal["ignored", "optional", "required"] = Field(
        default="ignored", description="whether clients show certificates of the authorities in tls.ca_file"
    )
    max_connections: int = Field(default=256, ge=1, description="connections open at once; more are closed unanswered")
    max_concurrent_requests: int = Field(default=64, ge=1, description="requests served at once; more are answered with 503")
    max_header_bytes: int = Field(default=16 * 1024, ge=1024, le=MIB, description="request line and headers of one request")
    max_body_bytes: int = Field(
        default=MIB, ge=0, le=256 * MIB, description="body of one request; it is held in memory, so times max_concurrent_requests"
    )
    body_timeout_s: float = Field(default=10, gt=0, description="time in which a request's body has to be here, in seconds")
    request_timeout_s: float = Field(default=30, gt=0, description="time in which a request has to be answered in full, in seconds")
    write_timeout_s: float = Field(
        default=10, gt=0, description="time in which a client has to take what was written to it, in seconds"
    )
    keep_alive_s: float = Field(
        default=15, gt=0, description="time in which the headers of the first or the next request have to be here, in seconds"
    )
    drain_grace_s: float = Field(default=10, ge=0, description="time that running requests get after SIGTERM, in seconds")
    ready_file: Path | None = Field(default=None, description="file that gets the port number as text once the server listens")

    @model_validator(mode="after")
    def _client_certificates_need_tls(self) -> Self:
        if self.tls is None and self.client_certificates != "ignored":
            raise ValueError("client certificates need tls")
        return self


class HttpServiceSettings(ProgramSettings):
    """What every program has that serves HTTP. It subclasses this and sets its env_prefix."""

    http: HttpServerSettings
