"""The words that a Tenant is written in: names, roles, classes of data.

Knows their spelling alone. What a role permits, the gateway's policies say; what a class of data is, context.proto says; tests
hold the three together.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

GROUP: Final = "lionrock.io"
API_VERSION: Final = f"{GROUP}/v1alpha1"
KIND: Final = "Tenant"

LABEL: Final = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
"""DNS label, RFC 1123: names of tenants and of guardrail profiles."""
CODE: Final = r"^[a-z][a-z0-9_]{0,62}$"
"""Code of a purpose."""
TERRITORY: Final = r"^[A-Z]{2}$"
"""ISO 3166-1 alpha-2."""
MODEL: Final = r"^(\*|[A-Za-z0-9][A-Za-z0-9._/-]{0,127})$"
"""Name under which a model is served, or all of them."""
MOMENT: Final = (
    r"^2[0-9]{3}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]"
    r"(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$"
)
"""RFC 3339, to the second, in this millennium."""
POOL: Final = r"^[a-z0-9]([a-z0-9.-]{0,38}[a-z0-9])?$"
"""Name of a ChipPool."""
TEXT: Final = r"^[^\x00-\x1f\x7f]+$"
"""One line for people: no control characters."""
PRINCIPAL: Final = (
    r"^spiffe://[a-z0-9._-]{1,255}/tenant/[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?/(user|workload)/"
    r"([A-Za-z0-9_-][A-Za-z0-9._-]{0,127}|\*)$"
)
"""SPIFFE id of a caller, or, ending in "*", of every caller of a kind. No name begins with a dot: "." and ".." are no segments."""

Role = Literal[
    "auditor",
    "mlro",
    "model_risk",
    "platform_operator",
    "privacy_officer",
    "regulator",
    "reviewer",
    "security",
    "tenant_admin",
    "user",
]
DataClass = Literal["public", "internal", "personal", "identity", "suspicion"]
"""From the least to the most protected."""
ROLES: Final[tuple[str, ...]] = get_args(Role)
DATA_CLASSES: Final[tuple[str, ...]] = get_args(DataClass)
ORDINARY_DATA_CLASSES: Final = ("public", "internal", "personal")
"""What is granted where nothing is said."""
ANY_MODEL: Final = "*"
