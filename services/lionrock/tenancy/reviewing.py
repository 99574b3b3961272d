"""Which answers of a tenant wait for a reviewer, and who is told of it.

Knows what a Tenant may state about reviews. Does not know the queue (lionrock.gateway.reviews). Source: HKMA, circular on
generative AI of 19 August 2024: a person in the loop before an answer reaches a customer.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints

from lionrock.tenancy.grants import Label, Purposes, TenancyModel, distinct
from lionrock.tenancy.issuers import HTTPS_URL
from lionrock.tenancy.rules import DISTINCT

_Labels = Annotated[
    tuple[Label, ...], Field(min_length=1, max_length=32), AfterValidator(distinct), Field(json_schema_extra=DISTINCT)
]
_FilePath = Annotated[str, StringConstraints(max_length=1024, pattern=r"^/[^\x00-\x1f\x7f]+$")]


class NotifySpec(TenancyModel):
    """Who is told that an answer waits: one HTTPS request each, without a word of question or answer."""

    url: str = Field(max_length=1024, pattern=HTTPS_URL, description="Where it is sent by POST; redirects are not followed.")
    secret_file: _FilePath = Field(
        description="File on the gateways, readable by their user alone: the secret that signs what is sent, 32 characters or more."
    )
    ca_file: _FilePath | None = Field(
        default=None,
        description="PEM file on the gateways with the authorities of the receiver's certificate; unset: the system's.",
    )


class ReviewSpec(TenancyModel):
    """Answers that wait for a reviewer. Those for which a guardrail's rule asks are among them, whatever is stated here."""

    purposes: Purposes | None = Field(default=None, description="Purposes whose answers all wait; unset: none.")
    profiles: _Labels | None = Field(default=None, description="Guardrail profiles whose answers all wait; unset: none.")
    ttl_minutes: int = Field(
        default=4320,
        ge=1,
        le=43200,
        description="Minutes after which an answer that nobody decided on is refused; unset: three days.",
    )
    notify: NotifySpec | None = Field(default=None, description="Who is told that an answer waits; unset: nobody.")
