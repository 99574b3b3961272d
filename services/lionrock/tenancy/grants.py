"""What somebody may do, as a Tenant states it, however they prove who they are.

Knows the form of a grant. Does not know whose it is: a caller's by SPIFFE id (spec.py) or whoever carries a claim (issuers.py).
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from datetime import datetime
from typing import Annotated, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)
from pydantic.alias_generators import to_camel

from lionrock.tenancy import vocabulary as words
from lionrock.tenancy.rules import DISTINCT, rules
from lionrock.tenancy.vocabulary import DataClass, Role

_T = TypeVar("_T", bound=Hashable)


def distinct(values: tuple[_T, ...]) -> tuple[_T, ...]:
    """Return the values. Raises ValueError when one is stated twice."""
    if len(set(values)) != len(values):
        raise ValueError("states something twice")
    return values


def _rfc3339(value: object) -> object:
    """Make a time of a text. Raises ValueError for what is none."""
    if not isinstance(value, str):
        return value
    try:
        if re.fullmatch(words.MOMENT, value, re.ASCII):
            return datetime.fromisoformat(value)  # a strict model takes a text for a time only before anybody has looked at it
    except ValueError:
        pass  # the thirtieth of February
    raise ValueError("is not a time such as 2026-11-23T18:00:00+08:00")


Moment = Annotated[
    AwareDatetime,
    BeforeValidator(_rfc3339),
    WithJsonSchema({"type": "string", "format": "date-time", "pattern": words.MOMENT}),
]
Purpose = Annotated[str, StringConstraints(max_length=63, pattern=words.CODE)]
ModelName = Annotated[str, StringConstraints(max_length=128, pattern=words.MODEL)]
Label = Annotated[str, StringConstraints(max_length=63, pattern=words.LABEL)]
_Distinct = Field(json_schema_extra=DISTINCT)
Roles = Annotated[tuple[Role, ...], Field(min_length=1, max_length=10), AfterValidator(distinct), _Distinct]
Purposes = Annotated[tuple[Purpose, ...], Field(min_length=1, max_length=32), AfterValidator(distinct), _Distinct]
Models = Annotated[tuple[ModelName, ...], Field(min_length=1, max_length=32), AfterValidator(distinct), _Distinct]
DataClasses = Annotated[tuple[DataClass, ...], Field(min_length=1, max_length=5), AfterValidator(distinct), _Distinct]


class TenancyModel(BaseModel):
    """Whatever a Tenant consists of: frozen, nothing unknown, camelCase beside snake_case."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        # The text of a value that is refused may be a secret that stands in the wrong place.
        hide_input_in_errors=True,
    )


class QuotasSpec(TenancyModel):
    """How much may be used, counted by all gateways together. Unset: no limit of that kind."""

    requests_per_minute: int | None = Field(default=None, ge=1, le=1_000_000_000, description="Requests in a minute of the clock.")
    tokens_per_minute: int | None = Field(
        default=None, ge=1, le=1_000_000_000_000, description="Tokens of prompts and answers in a minute of the clock."
    )
    daily_tokens: int | None = Field(
        default=None, ge=1, le=1_000_000_000_000_000, description="Tokens of prompts and answers in a day of Hong Kong."
    )
    concurrent_streams: int | None = Field(default=None, ge=1, le=65536, description="Open answers at a time.")


class TenantQuotasSpec(QuotasSpec):
    """How much a tenant may use, and its part of what tenants share."""

    weight: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="The tenant's part of an engine that several want more of: twice as large, twice as many tokens; unset: 1.",
    )


class GrantSpec(TenancyModel):
    """What somebody may do."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.roles) || !('regulator' in self.roles) || has(self.notAfter)",
                "the role regulator is granted for a time: state notAfter",
            )
        )
    )

    roles: Roles = Field(default=("user",), description="Roles; what each permits, the access policies say.")
    purposes: Purposes = Field(description="Purposes that may be stated; the first is that of a request that states none.")
    models: Models = Field(default=(words.ANY_MODEL,), description='Models by name, or "*": all that the tenant may use.')
    data_classes: DataClasses | None = Field(
        default=None, description="Classes of data that may be declared; unset: public, internal and personal."
    )
    profile: Label | None = Field(default=None, description="Guardrail profile; unset: the tenant's.")
    max_streams: int | None = Field(
        default=None, ge=1, le=65536, description="Open answers of one caller at a time; unset: the tenant's bound alone."
    )
    quotas: QuotasSpec | None = Field(
        default=None, description="Quotas of each caller by itself, within the tenant's; unset: the tenant's alone."
    )
    priority: Literal["interactive", "batch"] = Field(
        default="interactive",
        description="Whether engines serve it at once, or when nothing else waits; unset: interactive.",
    )
    not_after: Moment | None = Field(
        default=None, description="When the grant ends, RFC 3339; unset: never. The role regulator needs it."
    )

    @model_validator(mode="after")
    def _a_regulator_comes_for_a_time(self) -> Self:
        if "regulator" in self.roles and self.not_after is None:
            raise ValueError("the role regulator is granted for a time: state notAfter")
        return self
