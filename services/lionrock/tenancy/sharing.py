"""Whether a tenant shares engines with others, as its Tenant states it.

The other half of it stands in the cluster: a ModelDeployment with `tenancy: {type: Dedicated, tenant: <name>}` answers that tenant
alone. Here the tenant says that it asks no other. Does not know routes (lionrock.gateway.routes) or chips (lionrock.operator).
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints, model_validator

from lionrock.tenancy import vocabulary as words
from lionrock.tenancy.grants import TenancyModel, distinct
from lionrock.tenancy.rules import DISTINCT, rules

_Pool = Annotated[str, StringConstraints(max_length=40, pattern=words.POOL)]
_Pools = Annotated[
    tuple[_Pool, ...], Field(min_length=1, max_length=16), AfterValidator(distinct), Field(json_schema_extra=DISTINCT)
]
_WHOSE = "pools are stated with type Dedicated, and with no other"


class SharingSpec(TenancyModel):
    """With whom a tenant shares engines."""

    model_config = ConfigDict(json_schema_extra=rules(("!has(self.pools) || (has(self.type) && self.type == 'Dedicated')", _WHOSE)))

    type: Literal["Shared", "Dedicated"] = Field(
        default="Shared",
        description="Dedicated: requests reach no models but those dedicated to the tenant. Shared: those and all shared ones.",
    )
    pools: _Pools | None = Field(
        default=None,
        description="Chip pools on which the tenant's models answer it, and no other tenant's models are placed; unset: any pool.",
    )

    @model_validator(mode="after")
    def _pools_are_of_the_dedicated(self) -> Self:
        if self.pools is not None and self.type != "Dedicated":
            raise ValueError(_WHOSE)
        return self
