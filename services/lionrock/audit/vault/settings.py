"""Settings of the vault: whose payloads are kept, by whose keys, for how long."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from lionrock.audit.records.retention import LOG_BOOK, LOG_BOOK_KEEP_DAYS, Retention, RetentionClass

_FROZEN = ConfigDict(frozen=True, extra="forbid")
_ClassName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
_Tenant = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
_TEN_THOUSAND_YEARS = 3_650_000


class RetentionClassSettings(BaseModel):
    """One class of retention."""

    model_config = _FROZEN

    keep_days: int = Field(default=0, ge=0, le=_TEN_THOUSAND_YEARS, description="days for which erasure is refused")
    expire_days: int | None = Field(
        default=None,
        ge=1,
        le=_TEN_THOUSAND_YEARS,
        description="days after which a record is destroyed; unset: never by itself",
    )

    @model_validator(mode="after")
    def _keep_before_expiry(self) -> Self:
        if self.expire_days is not None and self.expire_days < self.keep_days:
            raise ValueError("expire_days must not be smaller than keep_days")
        return self


class RetentionSettings(BaseModel):
    """How long records are kept."""

    model_config = _FROZEN

    classes: dict[_ClassName, RetentionClassSettings] = Field(
        default={"standard": RetentionClassSettings()},
        min_length=1,
        max_length=64,
        description='classes of retention by name; "log_book" is that of the log book of refusals, four years at least',
    )
    by_purpose: dict[str, _ClassName] = Field(
        default={}, max_length=1024, description="class of the records of a purpose; other purposes have the default"
    )
    default: _ClassName = Field(default="standard", description="class of the records of purposes that by_purpose does not name")

    @model_validator(mode="after")
    def _classes_exist(self) -> Self:
        for name in (self.default, *self.by_purpose.values()):
            if name not in self.classes:
                raise ValueError(f"there is no class of retention {name}")
            if name == LOG_BOOK:
                raise ValueError(f"the class {LOG_BOOK} is that of the log book alone")
        log_book = self.classes.get(LOG_BOOK)
        if log_book is not None and log_book.keep_days < LOG_BOOK_KEEP_DAYS:
            raise ValueError(f"the class {LOG_BOOK} keeps {LOG_BOOK_KEEP_DAYS} days at least (PDPO, section 27)")
        return self

    def retention(self) -> Retention:
        """Return the classes as the domain knows them."""
        classes = {LOG_BOOK: RetentionClass(LOG_BOOK_KEEP_DAYS, None)}
        classes.update({name: RetentionClass(found.keep_days, found.expire_days) for name, found in self.classes.items()})
        return Retention(classes, self.by_purpose, self.default)


class TransitSettings(BaseModel):
    """Tenants' keys in HashiCorp Vault or OpenBao, secrets engine "transit"."""

    model_config = _FROZEN

    address: str = Field(pattern=r"^https://[^/]+$", description="where it is, as https://HOST:PORT")
    mount: str = Field(default="transit", pattern=r"^[A-Za-z0-9_./-]{1,128}$", description="path of the engine")
    key_prefix: str = Field(default="lionrock-", pattern=r"^[A-Za-z0-9_-]{0,64}$", description="a key's name, before the tenant")
    namespace: str = Field(default="", pattern=r"^[A-Za-z0-9_./-]{0,128}$", description="namespace of the engine; unset: none")
    token_file: Path = Field(description="file with the token, read again at each call so that it can be renewed; a secret")
    ca_file: Path | None = Field(default=None, description="authorities of its certificate; unset: those of the system")
    timeout_s: float = Field(default=5, gt=0, le=60, description="deadline of one call, in seconds")
    max_connections: int = Field(default=4, ge=1, le=64, description="calls at a time")


class VaultSettings(BaseModel):
    """The vault: payloads beside the log, sealed under keys that can be destroyed."""

    model_config = _FROZEN

    key_store_file: Path = Field(
        description="SQLite file with the wrapped keys of records; on another disk than the logs, with short-lived backups"
    )
    tenants: tuple[_Tenant, ...] | None = Field(default=None, description="tenants whose payloads are kept; unset: all")
    local_key_dir: Path | None = Field(
        default=None,
        description="directory of the tenants' own keys, a file each, made when missing; either this or transit",
    )
    transit: TransitSettings | None = Field(default=None, description="where the tenants' own keys are, if not in files")
    retention: RetentionSettings = RetentionSettings()
    expiry_interval_s: float = Field(default=3600, gt=0, description="time between two looks for expired records, in seconds")
    expiry_batch: int = Field(default=256, ge=1, le=4096, description="records that one EXPIRY leaf covers at most")
    cached_keys: int = Field(default=4096, ge=0, le=1_000_000, description="unwrapped keys in memory at most")
    cached_key_s: float = Field(default=300, gt=0, le=86400, description="time that an unwrapped key stays in memory, in seconds")

    @model_validator(mode="after")
    def _one_key_management(self) -> Self:
        if (self.local_key_dir is None) == (self.transit is None):
            raise ValueError("exactly one of local_key_dir and transit must be set")
        return self
