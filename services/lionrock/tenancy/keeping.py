"""How long a tenant's records are kept, and whose key encrypts them, as a Tenant states it.

Knows what may be stated. Does not know records (lionrock.audit.records) or keys (lionrock.audit.vault): the audit service obeys
this, the gateway does not read it, and so it stands in Tenant documents alone and not in the gateway's own settings.
"""

from __future__ import annotations

from typing import Annotated, Final, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from lionrock.tenancy import vocabulary as words
from lionrock.tenancy.grants import Purposes, TenancyModel
from lionrock.tenancy.rules import rules

MAX_DAYS: Final = 36_500
LOG_BOOK: Final = "log_book"
"""Class of the log book of refusals, whose years the law states; no tenant has another."""
_ClassName = Annotated[str, StringConstraints(max_length=32, pattern=words.CODE)]
_BEFORE = "expireDays must not be smaller than keepDays"
_RESERVED = "the class log_book is that of the log book alone"
_TWICE = "states a class twice"
_NO_DEFAULT = "default is none of the classes"
_TWO_CLASSES = "states a purpose twice"


class RetentionClassSpec(TenancyModel):
    """One class of retention."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            ("!has(self.expireDays) || !has(self.keepDays) || self.expireDays >= self.keepDays", _BEFORE),
            (f"self.name != '{LOG_BOOK}'", _RESERVED),
        )
    )

    name: _ClassName = Field(description="Name of the class; the leaf of a record states it, with its days.")
    keep_days: int = Field(
        default=0,
        ge=0,
        le=MAX_DAYS,
        description="Days from a record's first leaf for which erasure is refused; unset: 0.",
    )
    expire_days: int | None = Field(
        default=None, ge=1, le=MAX_DAYS, description="Days after which a record is destroyed; unset: never by itself."
    )
    purposes: Purposes | None = Field(
        default=None,
        description="Purposes whose records are of the class; unset: of the default, all that no class names.",
    )

    @model_validator(mode="after")
    def _keep_before_expiry(self) -> Self:
        if self.expire_days is not None and self.expire_days < self.keep_days:
            raise ValueError(_BEFORE)
        if self.name == LOG_BOOK:
            raise ValueError(_RESERVED)
        return self


class RetentionSpec(TenancyModel):
    """How long records are kept. A change concerns the records that begin after it."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            ("self.classes.all(each, self.classes.exists_one(other, other.name == each.name))", _TWICE),
            ("self.classes.exists(each, each.name == self.default)", _NO_DEFAULT),
            (
                "self.classes.all(each, !has(each.purposes) || each.purposes.all(purpose,"
                " self.classes.exists_one(other, has(other.purposes) && purpose in other.purposes)))",
                _TWO_CLASSES,
            ),
        )
    )

    classes: tuple[RetentionClassSpec, ...] = Field(min_length=1, max_length=8, description="Classes of retention.")
    default: _ClassName = Field(description="Class of the records of purposes that no class names.")

    @model_validator(mode="after")
    def _classes_fit_together(self) -> Self:
        names = [each.name for each in self.classes]
        if len(set(names)) != len(names):
            raise ValueError(_TWICE)
        if self.default not in names:
            raise ValueError(_NO_DEFAULT)
        purposes = [purpose for each in self.classes for purpose in each.purposes or ()]
        if len(set(purposes)) != len(purposes):
            raise ValueError(_TWO_CLASSES)
        return self


class TransitKeySpec(TenancyModel):
    """A key of the secrets engine "transit" of HashiCorp Vault or OpenBao."""

    name: str = Field(max_length=128, pattern=r"^[A-Za-z0-9_-]+$", description="Name of the key; no two tenants have the same.")
    mount: str | None = Field(
        default=None,
        max_length=128,
        pattern=r"^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$",
        description="Path of the engine; unset: the one that the audit service has for all.",
    )


class KeysSpec(TenancyModel):
    """The key that wraps all other keys of the tenant's records; after a change what the former wrapped is wrapped anew."""

    transit: TransitKeySpec = Field(
        description="Key of the engine that the audit service is connected to; after a change the former is needed for hours."
    )
