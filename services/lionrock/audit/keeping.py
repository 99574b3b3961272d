"""What Tenant documents say of keeping: for how long the audit service keeps a tenant's records, and under whose key.

Knows what of it this service can obey. Refuses the rest, so that nothing is stated that nothing obeys. Does not know files
(tenants_dir.py), what is kept (records/) or how keys are reached (vault/).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lionrock.audit.records.retention import Retention, RetentionClass, stated_name
from lionrock.audit.vault.settings import VaultSettings
from lionrock.audit.vault.transit import TransitKey, usual_key
from lionrock.tenancy.keeping import RetentionSpec
from lionrock.tenancy.spec import TenantResource


@dataclass(frozen=True, slots=True)
class Keeping:
    """By tenant, of those that state something."""

    retentions: Mapping[str, Retention] = field(default_factory=dict)
    keys: Mapping[str, TransitKey] = field(default_factory=dict)


def keeping_of(resources: Sequence[TenantResource], vault: VaultSettings | None) -> Keeping:
    """Read what tenants state, all of them together. Raises ValueError for what this service, with this vault, does not obey."""
    retentions, keys = dict[str, Retention](), dict[str, TransitKey]()
    for resource in resources:
        name, spec = resource.name, resource.spec
        if spec.retention is None and spec.keys is None:
            continue
        if vault is None or (vault.tenants is not None and name not in vault.tenants):
            raise ValueError(f"tenant {name!r} states retention or keys, and payloads of it are not kept here")
        if spec.retention is not None:
            retentions[name] = _retention(spec.retention)
        if spec.keys is not None:
            if vault.transit is None:
                raise ValueError(f"tenant {name!r} states a key of transit, and this service has tenants' keys in files")
            keys[name] = TransitKey(spec.keys.transit.mount or vault.transit.mount, spec.keys.transit.name)
    if vault is not None and vault.transit is not None:
        _refuse_a_key_of_two([resource.name for resource in resources], keys, vault)
    return Keeping(retentions, keys)


def _retention(stated: RetentionSpec) -> Retention:
    names = {each.name: stated_name(each.name, RetentionClass(each.keep_days, each.expire_days)) for each in stated.classes}
    by_purpose = {purpose: names[each.name] for each in stated.classes for purpose in each.purposes or ()}
    return Retention({}, by_purpose, names[stated.default])


def _refuse_a_key_of_two(tenants: Sequence[str], keys: Mapping[str, TransitKey], vault: VaultSettings) -> None:
    """Raise ValueError where one tenant's key would open what another's wraps: the usual keys count too."""
    assert vault.transit is not None
    owners: dict[TransitKey, str] = {}
    for tenant in tenants:
        for key in {usual_key(vault.transit, tenant), keys.get(tenant, usual_key(vault.transit, tenant))}:
            other = owners.setdefault(key, tenant)
            if other != tenant:
                raise ValueError(f"tenants {other!r} and {tenant!r} have the same key {key.name}")
