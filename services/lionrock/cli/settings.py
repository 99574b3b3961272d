"""Settings of `lionrock up`: command line over YAML file over defaults."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lionrock.cli.errors import EXIT_USAGE, CommandError

DEFAULT_PORT = 7450
_FIX = "correct it; the keys are in docs/operations.md"
DEFAULT_MODEL = "smollm2-135m-instruct"
Service = Literal["gateway", "tokenization", "inference", "guardrails", "audit"]
_Label = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]


class MeshSettings(BaseModel):
    """What `up` runs. `services` holds settings of single services, merged over those that `up` writes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    port: int = Field(DEFAULT_PORT, ge=0, le=65530, description="port of the gateway, the others follow it; 0 takes free ones")
    model: str = Field(DEFAULT_MODEL, min_length=1, description="name in the store or catalogue, GGUF file, safetensors directory")
    tensor_parallel: int = Field(2, ge=1, le=64, description="shards of each layer's tensors")
    pipeline_parallel: int = Field(1, ge=1, le=64, description="stages of layers")
    ray_address: str | None = Field(None, description="Ray cluster to use; unset: start one on this machine")
    trust_domain: str = Field("lionrock.local", pattern=r"^[a-z0-9._-]{1,255}$", description="SPIFFE trust domain of the CA")
    tenant: _Label = Field("demo", description="tenant of the user's own certificate")
    user: _Label = Field("developer", description="name in the user's own certificate")
    certificate_lifetime_s: float = Field(
        3600, ge=10, le=86400, description="lifetime of a certificate; each is replaced at half of it, in seconds"
    )
    ready_timeout_s: float = Field(120, gt=0, description="time that a service gets to become ready, in seconds")
    drain_grace_s: float = Field(20, ge=0, description="time that running requests get to finish, in seconds")
    log_max_bytes: int = Field(32 * 2**20, ge=2**16, description="size of one service's log files together")
    trace_max_bytes: int = Field(256 * 2**20, ge=0, description="size of earlier runs' span files that are kept at a start")
    otlp_endpoint: str | None = Field(None, description="OTLP/gRPC collector for traces and metrics of all services")
    services: dict[Service, dict[str, Any]] = Field(default_factory=dict, description="settings of single services")


def load_mesh_settings(config: Path | None, given: Mapping[str, Any]) -> MeshSettings:
    """Read the file, put `given` over it. Raises CommandError naming the setting."""
    values: dict[str, Any] = {}
    if config is not None:
        import yaml

        try:
            content = yaml.safe_load(config.read_text(encoding="utf-8"))
        except OSError as error:
            raise CommandError(
                f"{config} cannot be read: {error.strerror}", fix="give an existing file with --config", exit_code=EXIT_USAGE
            ) from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise CommandError(f"{config} is not YAML", fix=_FIX, exit_code=EXIT_USAGE) from error
        if not isinstance(content, dict | None):
            raise CommandError(f"{config} must hold a mapping", fix=_FIX, exit_code=EXIT_USAGE)
        values = dict(content or {})
    try:
        return MeshSettings(**{**values, **given})
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        raise CommandError(f"setting {name}: {first['msg']}", fix=_FIX, exit_code=EXIT_USAGE) from error
    except TypeError as error:  # a key that is not a string
        raise CommandError(f"{config}: keys must be names", fix=_FIX, exit_code=EXIT_USAGE) from error
