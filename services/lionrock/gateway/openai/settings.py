"""Where the HTTP API listens. Its bounds, deadlines and message size are those of the gRPC port."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from lionrock.chassis.http_settings import HttpServerSettings
from lionrock.chassis.settings import ServerSettings, TlsSettings

_AFTER_DEADLINE_S = 5.0
_REFUSED_TOO = 64


class HttpApiSettings(BaseModel):
    """The HTTP port of the gateway."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    listen: str = Field(
        default="127.0.0.1:0", pattern=r"^.+:\d{1,5}$", description="host:port to listen on; port 0 takes a free one"
    )
    tls: TlsSettings | None = Field(
        default=None,
        description="certificate of this port, and the authorities of client certificates in ca_file; unset: those of server.tls",
    )
    max_connections: int = Field(default=1024, ge=1, description="connections open at once; more are closed unanswered")
    body_timeout_s: float = Field(default=10, gt=0, description="time in which a request's body has to be here, in seconds")
    write_timeout_s: float = Field(
        default=10, gt=0, description="time in which a client has to take what was written to it, in seconds"
    )
    keep_alive_s: float = Field(
        default=60, gt=0, description="time in which the headers of the first or the next request have to be here, in seconds"
    )
    ready_file: Path | None = Field(default=None, description="file that gets the port number as text once the server listens")

    def beside(self, server: ServerSettings) -> HttpServerSettings:
        """Return the settings of the port beside a gRPC port."""
        return HttpServerSettings(
            listen=self.listen,
            tls=self.tls or server.tls,
            client_certificates="optional",
            max_connections=self.max_connections,
            # The bound itself is the server's: whoever is over it is told so by the same error as over gRPC.
            max_concurrent_requests=server.max_concurrent_rpcs + _REFUSED_TOO,
            max_body_bytes=server.max_message_bytes,
            body_timeout_s=self.body_timeout_s,
            request_timeout_s=self.body_timeout_s + server.max_deadline_s + _AFTER_DEADLINE_S,
            write_timeout_s=self.write_timeout_s,
            keep_alive_s=self.keep_alive_s,
            drain_grace_s=server.drain_grace_s,
            ready_file=self.ready_file,
        )
