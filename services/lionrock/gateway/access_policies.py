"""One set of access policies, in Cedar: what makes it acceptable, its digest, and its decisions.

A set is the packaged schema and walls (policies/walls.cedar), which no site can take away, and the policies of roles: the packaged
ones or a site's own. It is accepted only when every policy is valid for the schema and has an @id of its own, and every forbid says
by @denial what a refused caller may learn.

Knows Cedar; does not know when files change (policy_directory.py). A decision is a pure function of the set, the principal, the
request and the clock. Cedar skips a policy whose evaluation fails; here that is an error of the whole decision, because a skipped
forbid would permit.

Source: Cutler et al., "Cedar: A New Language for Expressive, Fast, Safe, and Analyzable Authorization", OOPSLA 2024.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import cedarpy

from lionrock.gateway.authorization import AccessRequest, Decision, Denial
from lionrock.gateway.tenants import ANY_MODEL, Grant, Principal, TenantName, is_person

PACKAGED: Final = Path(__file__).parent / "policies"
SCHEMA_FILE, WALLS_FILE, ROLES_FILE = "schema.cedarschema", "walls.cedar", "roles.cedar"
MAX_POLICY_BYTES: Final = 1 << 20
"""Of all files of a set together."""
MAX_POLICIES: Final = 500
_REMEMBERED_CALLERS: Final = 1024
_DENIALS: Final = tuple(Denial)


class PoliciesInvalid(ValueError):
    """A set of policies cannot be followed. The message names the policy or the file, and the reason."""


class DecisionFailedError(Exception):
    """A policy could not be evaluated: nothing is permitted. The message names the policies."""


@dataclass(frozen=True, slots=True)
class PolicyInfo:
    """What is known of a policy beside its conditions. `denial` is None exactly for what permits."""

    id: str
    file: str
    denial: Denial | None
    text: str


def utc_now() -> datetime:
    """Tell the time."""
    return datetime.now(UTC)


class AccessPolicies:
    """A validated set. Safe for concurrent use; holds what it last needed to know of up to 1,024 callers."""

    def __init__(self, roles: Mapping[str, str], *, served_in: str | None = None, now: Callable[[], datetime] = utc_now) -> None:
        """`roles`: Cedar text by file name. `served_in`: territory of the gateway, None when not stated. Raises PoliciesInvalid."""
        if taken := sorted({SCHEMA_FILE, WALLS_FILE} & roles.keys()):
            raise PoliciesInvalid(f"{taken[0]}: this name is the product's own, and always in force")
        if not roles:
            raise PoliciesInvalid("there is no file *.cedar: nobody would be permitted anything")
        self._served_in = served_in
        self._now = now
        files = {SCHEMA_FILE: _packaged(SCHEMA_FILE), WALLS_FILE: _packaged(WALLS_FILE), **roles}
        if sum(len(text.encode()) for text in files.values()) > MAX_POLICY_BYTES:
            raise PoliciesInvalid(f"the files have more than {MAX_POLICY_BYTES} bytes")
        self.digest: Final = _digest(files)
        """SHA-256 over the canonical JSON of {file name: SHA-256 of its bytes, hexadecimal}, "sha256:…"."""
        schema = files.pop(SCHEMA_FILE)
        self.policies: Final[Mapping[str, PolicyInfo]] = MappingProxyType(_read(files))
        """By id."""
        _validate(files, schema)
        self._schema = cedarpy.Schema.from_str(schema)
        self._all = _cedar(self.policies.values())
        self._permits = _cedar(policy for policy in self.policies.values() if policy.denial is None)
        self._caller = lru_cache(maxsize=_REMEMBERED_CALLERS)(self._entities)

    def decide(self, principal: Principal, request: AccessRequest) -> Decision:
        """Decide: permitted by a role's policy, and forbidden by none. Raises DecisionFailedError."""
        tenant = principal.tenant
        entities = self._caller(principal.actor, tenant.name, tenant.territory, principal.grant)
        asked = self._asked(principal, request)
        allowed, decided = self._evaluate(asked, self._all, entities)
        if allowed:
            return Decision(None, decided)
        # Cedar names what forbids, not what is missing: whether any policy permits is asked alone.
        permitted = bool(decided) and self._evaluate(asked, self._permits, entities)[0]
        forbids = {policy: self.policies[policy].denial for policy in decided}
        denial = min((one for one in forbids.values() if one), key=_DENIALS.index) if permitted else Denial.ROLE
        return Decision(denial, tuple(policy for policy, why in forbids.items() if why is denial))

    def placed(self, *, served_in: str | None, now: Callable[[], datetime] = utc_now) -> AccessPolicies:
        """Return the same set for a gateway elsewhere, or at another time."""
        other = copy(self)
        other._served_in, other._now = served_in, now
        return other

    def _evaluate(
        self, asked: dict[str, Any], policies: cedarpy.PolicySet, entities: cedarpy.Entities
    ) -> tuple[bool, tuple[str, ...]]:
        """Return whether it is allowed, and the sorted ids of what determined it."""
        result = cedarpy.is_authorized(asked, policies, entities, self._schema)
        diagnostics = result.diagnostics
        if diagnostics.errors or result.decision is cedarpy.Decision.NoDecision:
            raise DecisionFailedError(f"access policies cannot be evaluated: {len(diagnostics.errors)} errors")
        return result.allowed, tuple(sorted(diagnostics.reasons))

    def _asked(self, principal: Principal, request: AccessRequest) -> dict[str, Any]:
        facts = {
            "purpose": request.purpose,
            "dataClass": request.data_class,
            "model": request.model,
            "servedIn": self._served_in,
        }
        context: dict[str, object] = {name: value for name, value in facts.items() if value is not None}
        if request.author is not None:
            context["author"] = {"__entity": _uid("Caller", request.author)}
        if request.break_glass is not None:
            context["breakGlass"] = {"suspicion": request.break_glass.suspicion}
        context["now"] = _datetime(self._now())
        return {
            "principal": _uid("Caller", principal.actor),
            "action": _uid("Action", request.action.value),
            "resource": _uid("Tenant", principal.tenant.name),
            "context": context,
        }

    def _entities(self, actor: str, tenant: TenantName, territory: str, grant: Grant) -> cedarpy.Entities:
        attributes: dict[str, object] = {
            "purposes": sorted(set(grant.purposes)),
            "dataClasses": sorted(grant.data_classes),
            "models": sorted(grant.models - {ANY_MODEL}),
            "anyModel": ANY_MODEL in grant.models,
            "person": is_person(actor),
        }
        if grant.not_after is not None:
            attributes["notAfter"] = _datetime(grant.not_after)
        parents = [_uid("Role", role) for role in sorted(set(grant.roles))] + [_uid("Tenant", tenant)]
        entities = [
            {"uid": _uid("Caller", actor), "attrs": attributes, "parents": parents},
            {"uid": _uid("Tenant", tenant), "attrs": {"territory": territory}, "parents": []},
        ]
        try:
            return cedarpy.Entities.from_json_str(json.dumps(entities), self._schema)
        except ValueError as error:  # a role that the schema does not know
            raise DecisionFailedError("the grant does not fit the schema of access policies") from error


def packaged_roles() -> Mapping[str, str]:
    """Return the policies of roles that come with the product, by file name."""
    return {ROLES_FILE: _packaged(ROLES_FILE)}


def read_policy_files(directory: Path) -> Mapping[str, str]:
    """Return the texts of a directory's *.cedar files by name; hidden ones are skipped. Raises PoliciesInvalid, OSError."""
    texts: dict[str, str] = {}
    room = MAX_POLICY_BYTES
    for path in sorted(directory.iterdir()):
        if path.suffix != ".cedar" or path.name.startswith("."):
            continue
        with path.open("rb") as file:
            data = file.read(room + 1)
        room -= len(data)
        if room < 0:
            raise PoliciesInvalid(f"the files have more than {MAX_POLICY_BYTES} bytes")
        try:
            texts[path.name] = data.decode()
        except UnicodeDecodeError:
            raise PoliciesInvalid(f"{path.name}: it is not UTF-8") from None
    return texts


def _read(files: Mapping[str, str]) -> dict[str, PolicyInfo]:
    """Return the policies of all files by id. Raises PoliciesInvalid."""
    found: dict[str, PolicyInfo] = {}
    for name, text in files.items():
        try:
            document = json.loads(cedarpy.policies_to_json_str(text))
        except (ValueError, RecursionError) as error:
            raise PoliciesInvalid(f"{name}: {error}") from None
        if document["templates"]:
            raise PoliciesInvalid(f"{name}: templates are not supported")
        for policy in document["staticPolicies"].values():
            info = _info(name, policy)
            if (other := found.get(info.id)) is not None:
                raise PoliciesInvalid(f'{name}: the @id("{info.id}") is that of a policy in {other.file} too')
            found[info.id] = info
    if len(found) > MAX_POLICIES:
        raise PoliciesInvalid(f"there are more than {MAX_POLICIES} policies")
    return found


def _info(file: str, policy: dict[str, Any]) -> PolicyInfo:
    annotations = policy.get("annotations", {})
    identity, denial = annotations.get("id") or "", annotations.get("denial")
    if not identity:
        raise PoliciesInvalid(f"{file}: a policy has no @id")
    if policy["effect"] == "permit":
        if denial is not None:
            raise PoliciesInvalid(f"{file}: {identity} permits, so it has no @denial")
    elif denial not in _DENIALS:
        raise PoliciesInvalid(f'{file}: {identity} forbids, so it says @denial("…") with one of {", ".join(_DENIALS)}')
    text = cedarpy.policies_from_json_str(json.dumps({"templates": {}, "staticPolicies": {identity: policy}, "templateLinks": []}))
    return PolicyInfo(identity, file, None if denial is None else Denial(denial), text)


def _validate(files: Mapping[str, str], schema: str) -> None:
    for name, text in files.items():
        result = cedarpy.validate_policies(text, schema)
        if not result.validation_passed:
            ids = result.id_annotations_by_policy_id  # Cedar numbers policies, people name them
            why = [f"{ids[one.policy_id]}: {_bare(one)}" for one in result.errors]
            raise PoliciesInvalid(f"{name}: {'; '.join(why[:8])}")


def _bare(error: cedarpy.ValidationError) -> str:
    return error.error.removeprefix(f"for policy `{error.policy_id}`").lstrip(":, ")


def _cedar(policies: Any) -> cedarpy.PolicySet:
    """Return the parsed set; each policy has its own @id as id there."""
    merged: dict[str, Any] = {}
    for policy in policies:
        document = json.loads(cedarpy.policies_to_json_str(policy.text))
        (merged[policy.id],) = document["staticPolicies"].values()
    return cedarpy.PolicySet.from_json_str(json.dumps({"templates": {}, "staticPolicies": merged, "templateLinks": []}))


def _digest(files: Mapping[str, str]) -> str:
    parts = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()}
    canonical = json.dumps(parts, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()


def _packaged(name: str) -> str:
    return (PACKAGED / name).read_text(encoding="utf-8")


def _uid(kind: str, name: str) -> dict[str, str]:
    return {"type": kind, "id": name}


def _datetime(at: datetime) -> dict[str, object]:
    text = at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{at.microsecond // 1000:03d}Z"
    return {"__extn": {"fn": "datetime", "arg": text}}
