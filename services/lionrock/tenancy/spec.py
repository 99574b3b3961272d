"""The schema of a Tenant: who may come in, and what each of them may do.

One schema, three places: a file in a gateway's `tenants_dir`, a Kubernetes resource (charts/lionrock-crds, whose schema accepts and
refuses the same), and the gateway's own setting `tenants`. Files and resources spell fields in camelCase and state everything
under `spec`; settings may also spell them in snake_case, and state the tenant's `name` beside them.

    apiVersion: lionrock.io/v1alpha1
    kind: Tenant
    metadata: {name: retail}
    spec:
      territory: HK
      principals:
        - spiffeId: spiffe://bank.example/tenant/retail/user/*
          purposes: [customer_service]

Every field here is obeyed by something that runs: a field that nothing obeys would be a lie to whoever audits the file. The
resource's schema is made from this one (`tools/tenant_definition.py`, which a test runs), so a field has one type: Kubernetes'
schemas have no unions, and what belongs to some items of a list of words is a list of objects of its own beside it. What a
validator refuses, a rule in `json_schema_extra` of its class refuses too (`rules.py`). Knows what a Tenant may say. Does not know
files (files.py) or what the gateway makes of it (lionrock.gateway.granting).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lionrock.tenancy import vocabulary as words
from lionrock.tenancy.grants import DataClasses, GrantSpec, Label, Models, Purposes, TenancyModel, TenantQuotasSpec
from lionrock.tenancy.issuers import IssuerSpec
from lionrock.tenancy.keeping import KeysSpec, RetentionSpec
from lionrock.tenancy.notices import Disclosure, PurposeRuleSpec
from lionrock.tenancy.reviewing import ReviewSpec
from lionrock.tenancy.rules import rules
from lionrock.tenancy.sharing import SharingSpec

MAX_PRINCIPALS = 128
MAX_ISSUERS = 8
MAX_PURPOSE_RULES = 32
_RULES_ARE_OF_PURPOSES = "purposeRules is about purposes that the tenant states, each once"


def _within_rules(field: str, what: str, inside: str, *, unless: str = "") -> tuple[tuple[str, str], ...]:
    """Say of a list that every grant has what `_within` says of it."""
    grant = f"!has(each.{field}) || each.{field}.{inside}"
    principals = f"!has(self.principals) || self.principals.all(each, {grant})"
    bindings = f"!has(self.issuers) || self.issuers.all(issuer, issuer.bindings.all(each, {grant}))"
    told = f"is granted a {what} that the tenant does not have"
    unbounded = f"!has(self.{field}){unless}"
    return (f"{unbounded} || {principals}", f"a principal {told}"), (f"{unbounded} || {bindings}", f"a binding {told}")


class PrincipalSpec(GrantSpec):
    """One caller, or one kind of caller, by SPIFFE id, and what it may do."""

    spiffe_id: str = Field(
        max_length=512,
        pattern=words.PRINCIPAL,
        description='SPIFFE id spiffe://<trust domain>/tenant/<tenant>/<user|workload>/<name>; the name "*" means every one.',
    )

    @property
    def tenant(self) -> str:
        """The tenant that the id names."""
        return self.spiffe_id.split("/")[4]


class TenantSpec(TenancyModel):
    """What a Tenant says under `spec`."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "(has(self.principals) && size(self.principals) > 0) || (has(self.issuers) && size(self.issuers) > 0)",
                "nobody could come in: state principals or issuers",
            ),
            (
                "!has(self.principals) || self.principals.all(each,"
                " self.principals.exists_one(other, other.spiffeId == each.spiffeId))",
                "principals states a spiffeId twice",
            ),
            (
                "!has(self.issuers) || self.issuers.all(each, self.issuers.exists_one(other,"
                " other.issuer == each.issuer && sets.intersects(each.audiences, other.audiences)))",
                "issuers states an issuer and audience twice",
            ),
            (
                "!has(self.purposeRules) || size(self.purposeRules) == 0 || (has(self.purposes) && self.purposeRules.all(each,"
                " each.purpose in self.purposes && self.purposeRules.exists_one(other, other.purpose == each.purpose)))",
                _RULES_ARE_OF_PURPOSES,
            ),
            *_within_rules("purposes", "purpose", "all(value, value in self.purposes)"),
            *_within_rules("models", "model", "all(value, value == '*' || value in self.models)", unless=" || '*' in self.models"),
            *_within_rules("dataClasses", "class of data", "all(value, value in self.dataClasses)"),
        )
    )

    display_name: str | None = Field(
        default=None, min_length=1, max_length=128, pattern=words.TEXT, description="What people call the tenant."
    )
    territory: str = Field(
        default="HK", pattern=words.TERRITORY, description="Territory that requests must not leave, ISO 3166-1 alpha-2."
    )
    profile: Label = Field(default="default", description="Guardrail profile of the tenant's requests; unset: default.")
    max_streams: int = Field(default=64, ge=1, le=65536, description="Open answers of the whole tenant at a time; unset: 64.")
    purposes: Purposes | None = Field(
        default=None, description="Purposes that the tenant has; no principal may state another. Unset: those of its principals."
    )
    purpose_rules: tuple[PurposeRuleSpec, ...] = Field(
        default=(),
        max_length=MAX_PURPOSE_RULES,
        description="Which purposes need consent, and the collection notice of each; unset: none does, and none has one.",
    )
    disclosure: Disclosure = Field(
        default=(),
        description="What answers carry to say that a machine wrote them; languages that are not stated have the usual text.",
    )
    models: Models | None = Field(
        default=None, description="Models that the tenant may use, whatever its principals say; unset: all."
    )
    data_classes: DataClasses | None = Field(
        default=None, description="Classes of data that the tenant may declare, whatever its principals say; unset: all."
    )
    quotas: TenantQuotasSpec | None = Field(
        default=None, description="Quotas of all the tenant's callers together, and its weight; unset: none, and 1."
    )
    tenancy: SharingSpec = Field(
        default=SharingSpec(), description="Whether the tenant's requests share engines with those of others; unset: they do."
    )
    review: ReviewSpec | None = Field(
        default=None, description="Answers that wait for a reviewer; unset: none does, and what a rule wants reviewed is refused."
    )
    principals: tuple[PrincipalSpec, ...] = Field(
        default=(), max_length=MAX_PRINCIPALS, description="Who may call by mTLS, and what each may do."
    )
    issuers: tuple[IssuerSpec, ...] = Field(
        default=(), max_length=MAX_ISSUERS, description="Whose tokens are believed, and what their claims are worth."
    )

    @model_validator(mode="after")
    def _grants_stay_within_the_tenant(self) -> Self:
        if not _all_different([principal.spiffe_id for principal in self.principals]):
            raise ValueError("principals states a spiffeId twice")
        if not self.principals and not self.issuers:
            raise ValueError("nobody could come in: state principals or issuers")
        claimed = [f"{issuer.issuer} {audience}" for issuer in self.issuers for audience in issuer.audiences]
        if not _all_different(claimed):
            raise ValueError("issuers states an issuer and audience twice")
        ruled = [rule.purpose for rule in self.purpose_rules]
        if not _all_different(ruled) or not set(ruled).issubset(self.purposes or ()):
            raise ValueError(_RULES_ARE_OF_PURPOSES)
        for principal in self.principals:
            self._within(principal.spiffe_id, principal)
        for issuer in self.issuers:
            for binding in issuer.bindings:
                self._within(f"{issuer.issuer}, {binding.value}", binding)
        return self

    def _within(self, who: str, grant: GrantSpec) -> None:
        """Raise ValueError when a grant gives what the tenant does not have."""
        limits: Sequence[tuple[str, Sequence[str], Sequence[str] | None]] = (
            ("purpose", grant.purposes, self.purposes),
            ("model", grant.models, None if self.models is not None and words.ANY_MODEL in self.models else self.models),
            ("class of data", grant.data_classes or (), self.data_classes),
        )
        for what, granted, owned in limits:
            for value in granted:
                if owned is not None and value not in owned and value != words.ANY_MODEL:
                    raise ValueError(f"{who} is granted the {what} {value}, which the tenant does not have")


def _all_different(values: Sequence[str]) -> bool:
    return len(set(values)) == len(values)


class NamedTenant(TenantSpec):
    """A tenant as the gateway's setting `tenants` states it: its name beside its spec."""

    name: Label = Field(description="DNS label; also the tenant in its callers' SPIFFE ids")

    @model_validator(mode="after")
    def _principals_are_its_own(self) -> Self:
        refuse_strangers(self.name, self)
        return self


class WholeSpec(TenantSpec):
    """A spec that has to stand alone: where a tenant's requests may go, nobody decides for it.

    What the audit service obeys is in here, for it reads documents and not the gateway's settings.
    """

    territory: str = Field(pattern=words.TERRITORY, description=TenantSpec.model_fields["territory"].description)
    retention: RetentionSpec | None = Field(
        default=None, description="How long records of requests are kept; unset: as the audit service's settings say."
    )
    keys: KeysSpec | None = Field(
        default=None, description="The key that wraps all other keys of the records; unset: the one of the tenant's name."
    )


class TenantMetadata(BaseModel):
    """Of an object's metadata the name alone concerns Lionrock; the rest is Kubernetes', and is not read."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    name: Label


class TenantResource(TenancyModel):
    """A Tenant as a document: what a file and a Kubernetes object have in common."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.spec.principals) || self.spec.principals.all(each, each.spiffeId.split('/')[4] == self.metadata.name)",
                "a principal is of another tenant: spiffe://<trust domain>/tenant/<this name>/<user|workload>/<name>",
            )
        )
    )

    api_version: Literal["lionrock.io/v1alpha1"]
    kind: Literal["Tenant"]
    metadata: TenantMetadata
    spec: WholeSpec
    status: dict[str, Any] | None = Field(default=None, exclude=True, description="Written by the operator; not read.")

    @model_validator(mode="after")
    def _principals_are_its_own(self) -> Self:
        refuse_strangers(self.metadata.name, self.spec)
        return self

    @property
    def name(self) -> str:
        """The tenant's name."""
        return self.metadata.name


def refuse_strangers(name: str, spec: TenantSpec) -> None:
    """Raise ValueError for a principal of another tenant."""
    for principal in spec.principals:
        if principal.tenant != name:
            form = f"spiffe://<trust domain>/tenant/{name}/<user|workload>/<name>"
            raise ValueError(f"principal {principal.spiffe_id} is not of the form {form}")
