"""What the gateway is told: where its peers are, who its tenants are, and its limits. Read once, in __main__."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from lionrock.chassis.identity import SpiffeId
from lionrock.chassis.settings import PeerSettings, ServiceSettings
from lionrock.common.v1 import context_pb2 as ctx
from lionrock.gateway.authorization import ROLE_ACTIONS
from lionrock.gateway.tenants import Grant, Tenant, TenantDirectory, TenantName

_FROZEN = ConfigDict(frozen=True, extra="forbid")
_LABEL = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
_CODE = r"^[a-z][a-z0-9_]{0,62}$"
_DATA_CLASSES = frozenset(name.removeprefix("DATA_CLASS_").lower() for name in ctx.DataClass.DESCRIPTOR.values_by_name) - {
    "unspecified"
}


class PrincipalSettings(BaseModel):
    """One caller, or one kind of caller, and what it may do."""

    model_config = _FROZEN

    spiffe_id: str = Field(description='SPIFFE id under the tenant, or a kind: "spiffe://<trust domain>/tenant/<tenant>/user/*"')
    roles: tuple[str, ...] = Field(
        ("user",), min_length=1, max_length=16, description="roles; what each permits is in docs/operations.md"
    )
    purposes: tuple[str, ...] = Field(
        min_length=1, max_length=64, description="purposes that may be stated; the first is the default"
    )
    models: frozenset[str] = Field(default=frozenset({"*"}), min_length=1, description='model names, or "*" for all')
    data_classes: frozenset[str] = Field(
        default=frozenset({"public", "internal", "personal"}), min_length=1, description="classes of data that may be declared"
    )
    profile: str | None = Field(default=None, pattern=_LABEL, description="guardrail profile; unset: the tenant's")
    max_streams: int | None = Field(
        default=None, ge=1, description="open answers of one caller at a time; unset: the tenant's bound"
    )

    @field_validator("roles")
    @classmethod
    def _known_roles(cls, roles: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := sorted(set(roles) - ROLE_ACTIONS.keys()):
            raise ValueError(f"no such role: {', '.join(unknown)}; there are {', '.join(sorted(ROLE_ACTIONS))}")
        return roles

    @field_validator("data_classes")
    @classmethod
    def _known_classes(cls, classes: frozenset[str]) -> frozenset[str]:
        if unknown := sorted(classes - _DATA_CLASSES):
            raise ValueError(f"no such data class: {', '.join(unknown)}; there are {', '.join(sorted(_DATA_CLASSES))}")
        return classes

    @field_validator("purposes")
    @classmethod
    def _purpose_codes(cls, purposes: tuple[str, ...]) -> tuple[str, ...]:
        if any(not re.fullmatch(_CODE, purpose) for purpose in purposes):
            raise ValueError("a purpose is a lower-case code such as customer_service")
        return purposes


class TenantSettings(BaseModel):
    """One tenant."""

    model_config = _FROZEN

    name: str = Field(pattern=_LABEL, description="DNS label; also the tenant in its callers' SPIFFE ids")
    territory: str = Field(
        default="HK", pattern="^[A-Z]{2}$", description="territory that requests must not leave, ISO 3166-1 alpha-2"
    )
    profile: str = Field(default="default", pattern=_LABEL, description="guardrail profile of its requests")
    max_streams: int = Field(default=64, ge=1, description="open answers of the whole tenant at a time")
    principals: tuple[PrincipalSettings, ...] = Field(min_length=1, description="who may call")

    @model_validator(mode="after")
    def _principals_are_its_own(self) -> Self:
        for principal in self.principals:
            # A kind is checked like an id with one more segment: "*" is no character of a SPIFFE id.
            base = principal.spiffe_id[:-1] + "any" if principal.spiffe_id.endswith("/*") else principal.spiffe_id
            if SpiffeId.parse(base).tenant != self.name:
                form = f"spiffe://<trust domain>/tenant/{self.name}/<user|workload>/<name>"
                raise ValueError(f"principal {principal.spiffe_id} is not of the form {form}")
        return self

    def tenant(self) -> Tenant:
        """Return the tenant as the directory knows it."""
        grants = {
            principal.spiffe_id: Grant(
                roles=principal.roles,
                purposes=principal.purposes,
                models=principal.models,
                data_classes=principal.data_classes,
                profile=principal.profile or self.profile,
                max_streams=principal.max_streams,
            )
            for principal in self.principals
        }
        return Tenant(TenantName(self.name), self.territory, self.max_streams, grants)


class LimitSettings(BaseModel):
    """Bounds of the gateway itself."""

    model_config = _FROZEN

    max_streams: int = Field(default=192, ge=1, description="open answers of all tenants at a time")
    max_prompt_code_points: int = Field(default=1_000_000, ge=1, le=1_000_000, description="code points of a conversation")
    max_answer_bytes: int = Field(
        default=4 * 2**20, ge=1024, le=8 * 2**20 - 65536, description="an answer that grows beyond this ends with reason LENGTH"
    )
    max_pending_tokens: int = Field(
        default=4096, ge=1, description="tokens that wait for a slow client before the engine's stream is not read"
    )
    max_delta_tokens: int = Field(default=256, ge=1, le=65536, description="tokens in one delta at most")
    gathering_s_per_stream: float = Field(
        default=0.005, ge=0, description="time that tokens gather between deltas, for each other open answer, in seconds"
    )
    max_gathering_s: float = Field(default=0.2, ge=0, description="the same at most, in seconds")
    min_deadline_s: float = Field(default=0.05, ge=0, description="a request with less time left is refused, in seconds")
    outcome_timeout_s: float = Field(
        default=5.0, gt=0, description="time to write the outcome of a request that has ended, in seconds"
    )
    max_resumptions: int = Field(default=3, ge=0, description="shard groups that one answer may lose before it fails")
    resume_window_s: float = Field(default=30.0, ge=0, description="time to find another shard group after a loss, in seconds")
    routes_poll_s: float = Field(default=1.0, gt=0, description="time between two looks at the routes file, in seconds")
    models_fresh_s: float = Field(default=5.0, ge=0, description="time for which the list of served models is believed, in seconds")


class GatewaySettings(ServiceSettings):
    """The gateway: the door of the mesh."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_prefix="LIONROCK_GATEWAY_", env_nested_delimiter="__")

    tokenization: PeerSettings | None = Field(
        default=None, description="what encodes and decodes for engines whose routes name no tokenization; unset: there are none"
    )
    inference: PeerSettings | None = Field(
        default=None, description="the one engine that answers for every model; unset: engines are learnt from routes_file"
    )
    routes_file: Path | None = Field(
        default=None,
        description="JSON file that names the engines of each model, followed when it changes; missing: no models yet",
    )
    guardrails: PeerSettings
    audit: PeerSettings
    tenants: tuple[TenantSettings, ...] = Field(
        min_length=1, description="who may come in; a caller that no tenant lists is refused"
    )
    limits: LimitSettings = LimitSettings()
    cache_salt_file: Path | None = Field(
        default=None,
        description="secret of the prefix-cache salts, 32 bytes or more, the same in all gateways; unset: drawn at start",
    )

    @model_validator(mode="after")
    def _engines_are_named_once(self) -> Self:
        if (self.inference is None) == (self.routes_file is None):
            raise ValueError("state either inference, the one engine, or routes_file, which names the engines of each model")
        if self.routes_file is None and self.tokenization is None:
            raise ValueError("state tokenization: only a routes_file can name that of each engine")
        return self

    @model_validator(mode="after")
    def _directory_is_consistent(self) -> Self:
        self.directory()
        domain = self.server.trust_domain
        for tenant in self.tenants:
            for principal in tenant.principals:
                if not principal.spiffe_id.startswith(f"spiffe://{domain}/"):
                    raise ValueError(f"principal {principal.spiffe_id} is not of the trust domain {domain}")
        return self

    def directory(self) -> TenantDirectory:
        """Return the tenants, indexed by SPIFFE id."""
        return TenantDirectory(tenant.tenant() for tenant in self.tenants)
