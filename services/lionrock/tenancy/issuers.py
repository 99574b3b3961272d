"""Whose tokens a tenant believes, and what a token's claims are worth.

Knows what may be stated about an issuer. Does not know tokens (lionrock.gateway.identity checks them). Sources: OpenID Connect Core
1.0 and Discovery 1.0; RFC 8725 (JSON Web Token best current practices) for the algorithms: asymmetric ones alone, stated here and
never taken from a token.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from lionrock.tenancy.grants import GrantSpec, TenancyModel
from lionrock.tenancy.rules import rules

HTTPS_URL = r"^https://[A-Za-z0-9.-]{1,253}(:[0-9]{1,5})?(/[A-Za-z0-9._~!$&'()*+,;=:@%/-]*)?$"
"""No query, no fragment and no user: OpenID Connect Discovery 1.0, section 3. Go, too, must understand these expressions."""
CLAIM_PATH = r"^[A-Za-z0-9_:/-]{1,128}(\.[A-Za-z0-9_:/-]{1,128}){0,7}$"

Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
_Audience = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class BindingSpec(GrantSpec):
    """What a value of the roles claim is worth."""

    value: str = Field(min_length=1, max_length=256, description="Value of the roles claim, such as a group's name.")


class IssuerSpec(TenancyModel):
    """One issuer of tokens, and what it may say about the tenant's people."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "self.bindings.all(each, self.bindings.exists_one(other, other.value == each.value))",
                "bindings states a value twice",
            ),
            (
                "self.audiences.all(each, self.audiences.exists_one(other, other == each))",
                "issuers states an issuer and audience twice",
            ),
        )
    )

    issuer: str = Field(max_length=512, pattern=HTTPS_URL, description="The issuer, exactly as its tokens state it in iss.")
    audiences: tuple[_Audience, ...] = Field(
        min_length=1, max_length=8, description="Values of aud that are accepted; a token needs one of them."
    )
    algorithms: tuple[Algorithm, ...] = Field(
        default=("RS256", "ES256"), min_length=1, max_length=10, description="Signature algorithms that are accepted."
    )
    jwks_uri: str | None = Field(
        default=None, max_length=1024, pattern=HTTPS_URL, description="Where the issuer's keys are; unset: discovery says."
    )
    ca_file: str | None = Field(
        default=None,
        max_length=1024,
        pattern=r"^/[^\x00-\x1f\x7f]+$",
        description="Authorities of the issuer's certificate, a PEM file at the gateway; unset: those of the system.",
    )
    authorized_parties: tuple[_Audience, ...] | None = Field(
        default=None, min_length=1, max_length=32, description="Clients (azp) that tokens may be issued to; unset: any."
    )
    clock_skew_seconds: int = Field(default=30, ge=0, le=300, description="How far the issuer's clock may be off, in seconds.")
    max_token_age_seconds: int = Field(
        default=3600, ge=60, le=86400, description="Age (iat) beyond which a token is refused, in seconds, whatever its exp."
    )
    roles_claim: str = Field(
        default="groups", pattern=CLAIM_PATH, description="Path of the claim that bindings are about, such as realm_access.roles."
    )
    bindings: tuple[BindingSpec, ...] = Field(
        min_length=1, max_length=64, description="What each value is worth; the first that a token has decides. None: refused."
    )

    @model_validator(mode="after")
    def _values_are_bound_once(self) -> Self:
        values = [binding.value for binding in self.bindings]
        if len(set(values)) != len(values):
            raise ValueError("bindings states a value twice")
        return self
