"""Settings of the audit service; `python -m lionrock.audit --help` prints them."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator
from pydantic_settings import SettingsConfigDict

from lionrock.audit.tile_settings import TileSettings
from lionrock.audit.vault.settings import VaultSettings
from lionrock.audit.witness_settings import WitnessPeer, WitnessPolicySettings
from lionrock.chassis.settings import ServiceSettings
from lionrock.tlog.keys import VerifierKey

Tenant = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]

RESERVED_NAMES = frozenset({"tile", "checkpoint"})
"""With tiles, the platform log's own files are called so, beside the directories of the tenants' logs."""


class AuditSettings(ServiceSettings):
    """Audit service: one Merkle log a tenant, receipts that verify offline."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_prefix="LIONROCK_AUDIT_", env_nested_delimiter="__")

    platform: str = Field(
        pattern=r"^[A-Za-z0-9._~/-]{1,128}$", description="first part of every log's origin, <platform>/audit/<tenant>"
    )
    tenants: tuple[Tenant, ...] = Field(
        default=(), max_length=10_000, description="tenants that have a log, beside those of tenants_dir; all others are refused"
    )
    tenants_dir: Path | None = Field(
        None,
        description="directory of Tenant files (.yaml, .yml, .json) whose tenants have a log, followed when they change; where "
        "tiles are published, those of a tenant that joins begin when the service starts the next time",
    )
    tenants_poll_s: float = Field(1, gt=0, le=5, description="time between two looks at the files of tenants_dir, in seconds")
    store_file: Path | None = Field(
        None, description="SQLite file with the logs; one audit service at a time can hold it; either this or store_dsn_file"
    )
    store_dsn_file: Path | None = Field(
        None,
        description="file with the connection string (libpq's, URL or key=value) of a PostgreSQL database with the logs; a secret",
    )
    store_lease_s: float = Field(
        15, ge=5, le=300, description="time after which a service that says nothing to PostgreSQL loses the store to one that waits"
    )
    store_accept_timeline: int | None = Field(
        None,
        ge=1,
        description="PostgreSQL failed over up to this timeline and lost nothing, as somebody has made sure; the refusal names it",
    )
    signature: Literal["ed25519", "ml-dsa-44"] = Field(
        "ed25519", description="algorithm of the keys that are made for new logs; a log that has a key keeps it"
    )
    platform_interval_s: float = Field(
        10, gt=0, le=3600, description="time between two looks for tenants' checkpoints that the platform's log lacks, in seconds"
    )
    witnesses: tuple[WitnessPeer, ...] = Field(
        (), max_length=16, description="witnesses that cosign the platform's log; none: nobody outside vouches for it"
    )
    witness_policy: WitnessPolicySettings = WitnessPolicySettings()
    key_dir: Path = Field(
        description="directory of the signing keys and of the file of signed checkpoints; put it on another disk than the store"
    )
    region: str = Field(
        "", pattern=r"^[A-Za-z0-9-]{0,32}$", description="where this service runs, written into every leaf; unset: left out"
    )
    max_pending: int = Field(4096, ge=1, le=65536, description="appends that may wait; more are refused with OVERLOADED")
    max_batch: int = Field(1024, ge=1, le=4096, description="leaves in one transaction")
    retry_window_s: float = Field(
        3600,
        ge=0,
        le=86400,
        description="time for which a call with a payload can be repeated under its event id; its salt is kept so long",
    )
    orphan_after_s: float = Field(
        660, gt=0, description="time after which an intent without an outcome is closed as failed, in seconds"
    )
    sweep_interval_s: float = Field(15, gt=0, description="time between two looks for such intents, in seconds")

    tiles: TileSettings = Field(default=TileSettings(), description="tiles of every log, for whoever follows the logs from outside")

    @model_validator(mode="after")
    def _tiles_have_room(self) -> Self:
        if self.tiles.wanted and not RESERVED_NAMES.isdisjoint(self.tenants):
            raise ValueError("with tiles, no tenant can be called tile or checkpoint")
        if self.tiles.wanted and any(part in {"", ".", ".."} or part.startswith(".") for part in self.platform.split("/")):
            raise ValueError("with tiles, the platform is a path: no part of it is empty or begins with a dot")
        return self

    vault: VaultSettings | None = Field(None, description="where payloads are kept; unset: nowhere, leaves alone commit to them")

    @model_validator(mode="after")
    def _somebody_has_a_log(self) -> Self:
        if not self.tenants and self.tenants_dir is None:
            raise ValueError("state tenants or tenants_dir: nobody would have a log")
        return self

    @model_validator(mode="after")
    def _vault_keeps_what_is_logged(self) -> Self:
        if self.tenants_dir is None and self.vault is not None and (strangers := set(self.vault.tenants or ()) - set(self.tenants)):
            raise ValueError(f"vault.tenants names tenants without a log: {', '.join(sorted(strangers))}")
        return self

    @model_validator(mode="after")
    def _policy_can_be_met(self) -> Self:
        policy = self.witness_policy
        if len({VerifierKey.parse(witness.verifier_key).name for witness in self.witnesses}) != len(self.witnesses):
            raise ValueError("witnesses names one twice")
        if policy.threshold is not None and policy.threshold > len(self.witnesses):
            raise ValueError("witness_policy.threshold exceeds the number of witnesses")
        if policy.require_within_s is not None and not self.witnesses:
            raise ValueError("witness_policy.require_within_s needs witnesses")
        return self

    @model_validator(mode="after")
    def _one_store(self) -> Self:
        if (self.store_file is None) == (self.store_dsn_file is None):
            raise ValueError("exactly one of store_file and store_dsn_file must be set")
        return self

    @model_validator(mode="after")
    def _orphans_outlive_requests(self) -> Self:
        if self.orphan_after_s < self.server.max_deadline_s:
            raise ValueError("orphan_after_s must not be shorter than server.max_deadline_s: a request may still be answered")
        return self
