"""A Tenant object as the operator reads it: judged by the schema that gateways judge with, and the text that they get of it.

The text is JSON that is YAML too, whichever way a gateway reads it: what YAML would take for a line break or for no character is
escaped. It holds name and spec, nothing of what the cluster adds. Does not know other tenants (`tenant_admission`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from lionrock.operator.fields import Fields, Malformed
from lionrock.operator.metadata import Condition, Metadata, conditions_of, metadata_of
from lionrock.tenancy.documents import TenantsInvalid, parse_tenants
from lionrock.tenancy.spec import TenantResource
from lionrock.tenancy.vocabulary import API_VERSION, KIND

_MAX_PROBLEM: Final = 1024
_NOT_YAML: Final = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tenant:
    """One tenant, as its author wrote it."""

    meta: Metadata
    text: str
    """What gateways would read."""
    resource: TenantResource | None
    """None: it is not a Tenant that a gateway would follow."""
    problem: str | None
    """Why not, in words for its author; None where there is a resource."""
    conditions: tuple[Condition, ...]
    status: Mapping[str, Any]
    """As it is, to see whether it must be written again."""


def parse_tenant(body: Mapping[str, Any]) -> Tenant:
    """Read a Tenant as the API gives it. Raises Malformed only for one without metadata."""
    meta = metadata_of(body)
    status = body.get("status")
    status = status if isinstance(status, Mapping) else {}
    try:
        conditions = conditions_of(Fields("status", status))
    except Malformed:
        conditions = ()  # written anew with the next status
    text = text_of(meta.name, body.get("spec"))
    resource, problem = _judged(text)
    return Tenant(meta=meta, text=text, resource=resource, problem=problem, conditions=conditions, status=status)


def text_of(name: str, spec: object) -> str:
    """Return a Tenant as text, the same for the same spec."""
    document = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}, "spec": spec}
    written = json.dumps(document, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return _NOT_YAML.sub(lambda found: f"\\u{ord(found.group()):04x}", written) + "\n"


def digest_of(text: str) -> str:
    """Return what names a text in a status."""
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


@lru_cache(maxsize=4096)
def read_text(text: str) -> tuple[TenantResource, ...]:
    """Return the tenants of a text, none for one that gateways refuse."""
    try:
        return parse_tenants(text.encode("utf-8", "surrogatepass"))
    except TenantsInvalid:
        return ()


def _judged(text: str) -> tuple[TenantResource | None, str | None]:
    try:
        (tenant,) = parse_tenants(text.encode("utf-8", "surrogatepass"))
    except TenantsInvalid as invalid:
        told = "; ".join(f"{each.field}: {each.reason}" if each.field else each.reason for each in invalid.problems)
        return None, told if len(told) <= _MAX_PROBLEM else f"{told[:_MAX_PROBLEM]}…"
    return tenant, None
