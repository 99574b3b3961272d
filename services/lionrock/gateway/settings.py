"""What the gateway is told: where its peers are, who its tenants are, and its limits. Read once, in __main__."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_settings import SettingsConfigDict

from lionrock.chassis.settings import PeerSettings, ServiceSettings
from lionrock.gateway.consents.settings import ConsentSettings
from lionrock.gateway.granting import (
    refuse_uncounted_quotas,
    refuse_undivided_engine,
    refuse_unkept_consents,
    refuse_unkept_reviews,
    tenant_of,
)
from lionrock.gateway.identity.settings import ApiKeySettings
from lionrock.gateway.openai.settings import HttpApiSettings
from lionrock.gateway.state.opening import StateSettings
from lionrock.gateway.tenants import Tenant, TenantDirectory
from lionrock.tenancy.spec import NamedTenant
from lionrock.tenancy.vocabulary import TERRITORY

_FROZEN = ConfigDict(frozen=True, extra="forbid")


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
    assumed_max_tokens: int = Field(
        default=2048,
        ge=1,
        le=131072,
        description="tokens of an answer, at most, for which no max_tokens is stated and whose tenant has a quota of tokens",
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
    tenants_poll_s: float = Field(
        default=1.0, gt=0, le=5, description="time between two looks at the files of tenants_dir, in seconds"
    )
    policies_poll_s: float = Field(
        default=1.0, gt=0, le=5, description="time between two looks at the files of policy_dir, in seconds"
    )
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
    http: HttpApiSettings | None = Field(default=None, description="port of the OpenAI-compatible HTTP API; unset: none")
    tenants: tuple[NamedTenant, ...] = Field(
        default=(), description="who may come in, beside the tenants of tenants_dir; a caller that no tenant lists is refused"
    )
    tenants_dir: Path | None = Field(
        default=None, description="directory of Tenant files (.yaml, .yml, .json), followed when they change; unset: there are none"
    )
    policy_dir: Path | None = Field(
        default=None,
        description="directory of access policies (*.cedar) in place of the packaged roles, followed when they change",
    )
    served_in: str | None = Field(
        default=None,
        pattern=TERRITORY,
        description="territory of this gateway and its engines; tenants of another are not answered; unset: not checked",
    )
    state: StateSettings | None = Field(
        default=None, description="what gateways share, quotas among it; unset: no tenant may have quotas"
    )
    api_keys: ApiKeySettings | None = Field(
        default=None, description="API keys for workloads without a certificate, kept in the state; unset: there are none"
    )
    consents: ConsentSettings | None = Field(
        default=None,
        description="consents and opt-outs of data subjects, kept in the state; unset: no purpose may need consent",
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
    def _api_keys_are_kept_somewhere(self) -> Self:
        if self.api_keys is not None and self.state is None:
            raise ValueError("state state: API keys are kept there")
        return self

    @model_validator(mode="after")
    def _consents_are_kept_somewhere(self) -> Self:
        if self.consents is not None and self.state is None:
            raise ValueError("state state: consents are kept there")
        return self

    @model_validator(mode="after")
    def _directory_is_consistent(self) -> Self:
        if not self.tenants and self.tenants_dir is None:
            raise ValueError("state tenants or tenants_dir: nobody could come in")
        self.directory()
        if self.routes_file is None:
            refuse_undivided_engine(self.named_tenants())
        if self.state is None:
            refuse_uncounted_quotas(self.named_tenants())
            refuse_unkept_reviews(self.named_tenants())
        if self.consents is None:
            refuse_unkept_consents(self.named_tenants())
        return self

    def named_tenants(self) -> tuple[Tenant, ...]:
        """Return the tenants that are named here, as the directory knows them."""
        domain = self.server.trust_domain
        return tuple(tenant_of(tenant.name, tenant, trust_domain=domain) for tenant in self.tenants)

    def directory(self) -> TenantDirectory:
        """Return the tenants that are named here, indexed."""
        return TenantDirectory(self.named_tenants())
