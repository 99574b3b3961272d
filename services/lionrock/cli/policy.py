"""`lionrock policy`: what the gateway's access policies are, decide, change and promise.

It asks the code that the gateway asks, so both say the same; nothing is contacted and nothing is changed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import cedarpy

from lionrock.chassis.settings import load_settings
from lionrock.cli.errors import EXIT_FAILED, EXIT_REFUSED, EXIT_USAGE, CommandError
from lionrock.cli.state import StateDir
from lionrock.gateway.access_policies import (
    PACKAGED,
    AccessPolicies,
    DecisionFailedError,
    PoliciesInvalid,
    packaged_roles,
    read_policy_files,
    utc_now,
)
from lionrock.gateway.authorization import EMERGENCY_ACTIONS, AccessRequest, Action, BreakGlass
from lionrock.gateway.granting import GatewayLacksState
from lionrock.gateway.policy_comparison import compare
from lionrock.gateway.policy_tests import PolicyTestsInvalid, read_tests, run_tests
from lionrock.gateway.settings import GatewaySettings
from lionrock.gateway.tenants import ANY_MODEL, Grant, Principal, Tenant, TenantName, UnknownPrincipalError
from lionrock.gateway.tenants_dir import TenantsDir
from lionrock.tenancy.vocabulary import DATA_CLASSES, ROLES

_PACKAGED_NAME = "packaged"


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line said of a question."""

    action: str
    purpose: str | None
    data_class: str | None
    model: str | None
    author: str | None
    at: datetime | None
    emergency: bool = False
    """Whether emergency access of the caller is in force."""

    def request(self, default_purpose: str | None) -> AccessRequest:
        """Return the question as the gateway would put it. Raises CommandError."""
        action = Action(_one_of(self.action, "action", [action.value for action in Action]))
        purpose, data_class = self.purpose, self.data_class
        if action is Action.CHAT:
            purpose, data_class = purpose or default_purpose, data_class or "personal"
        if data_class is not None:
            _one_of(data_class, "class of data", DATA_CLASSES)
        if self.emergency and action not in EMERGENCY_ACTIONS:
            opened = ", ".join(sorted(EMERGENCY_ACTIONS))
            raise CommandError(f"no emergency opens {action}", fix=f"one of: {opened}", exit_code=EXIT_USAGE)
        emergency = BreakGlass("asked", suspicion=False) if self.emergency else None
        return AccessRequest(action, purpose, data_class, self.model, self.author, emergency)

    @property
    def now(self) -> Callable[[], datetime]:
        """The clock of the decision."""
        at = self.at
        return utc_now if at is None else lambda: at.replace(tzinfo=UTC)


def check(directory: Path | None, *, as_json: bool) -> int:
    """Validate a set."""
    policies = _read(directory)
    files = Counter(policy.file for policy in policies.policies.values())
    if as_json:
        print(json.dumps({"digest": policies.digest, "policies": dict(sorted(files.items()))}))
    else:
        for name, count in sorted(files.items()):
            print(f"{name:<24} {count:>4} policies")
        print(policies.digest)
    return 0


def explain_role(roles: Sequence[str], not_after: datetime | None, asked: Asked, directory: Path | None, *, as_json: bool) -> int:
    """Decide for somebody with roles, who was granted all that is asked."""
    for role in roles:
        _one_of(role, "role", ROLES)
    request = asked.request(asked.purpose or "any_purpose")
    grant = Grant(
        tuple(roles),
        () if request.purpose is None else (request.purpose,),
        frozenset({ANY_MODEL}),
        frozenset(DATA_CLASSES),
        "default",
        not_after=None if not_after is None else not_after.replace(tzinfo=UTC),
    )
    who = Principal("spiffe://any/tenant/any/user/any", Tenant(TenantName("any"), "HK", 1, {}), grant)
    return _explain(_read(directory).placed(served_in=None, now=asked.now), who, request, as_json=as_json)


def explain_caller(
    caller: str, asked: Asked, directory: Path | None, config: Path | None, state_dir: Path | None, *, as_json: bool
) -> int:
    """Decide for a caller whom a gateway's settings know, as that gateway would."""
    path = config or StateDir.at(state_dir).config("gateway")
    if not path.is_file():
        raise CommandError(f"there are no settings of a gateway at {path}", fix="--config FILE, or --role instead of a caller")
    settings = load_settings(GatewaySettings, ["--config", str(path)])
    known = settings.directory()
    if settings.tenants_dir is not None:
        files = TenantsDir(
            settings.tenants_dir,
            settings.named_tenants(),
            known,
            trust_domain=settings.server.trust_domain,
            divides_engines=settings.routes_file is not None,
            counts_quotas=settings.state is not None,
            keeps_consents=settings.consents is not None,
            refused=lambda: None,
        )
        try:
            files.start()
        except GatewayLacksState as lacking:
            raise CommandError(f"this gateway would not start: {lacking}", fix=f"set it in {path}") from None
    try:
        who = known.principal(caller)
    except UnknownPrincipalError as unknown:
        raise CommandError(f"{unknown}: {caller}", fix="see its Tenant's principals", exit_code=EXIT_REFUSED) from None
    policies = _read(directory or settings.policy_dir).placed(served_in=settings.served_in, now=asked.now)
    return _explain(policies, who, asked.request(who.grant.purposes[0]), as_json=as_json)


def diff(before: str, after: str, purposes: Sequence[str], models: Sequence[str], *, as_json: bool) -> int:
    """Compare two sets."""
    old, new = (_read(None if name == _PACKAGED_NAME else Path(name)) for name in (before, after))
    try:
        found = compare(old, new, purposes=purposes, models=models)
    except DecisionFailedError as error:
        raise CommandError(str(error)) from None
    if as_json:
        for kind, names in (("added", found.added), ("removed", found.removed), ("changed", found.changed)):
            for name in names:
                print(json.dumps({"policy": name, "is": kind}))
        for change in found.decisions:
            decided = {
                when: {"decision": _verdict(decision.denial), "by": decision.policies}
                for when, decision in (("before", change.before), ("after", change.after))
            }
            print(json.dumps({"role": change.role, **_said(change.asked), **decided}))
    else:
        for sign, names in (("+", found.added), ("-", found.removed), ("~", found.changed)):
            for name in names:
                print(f"{sign} policy {name}")
        for change in found.decisions:
            said = " ".join(_said(change.asked).values())
            by = ", ".join(change.after.policies) or "default"
            print(f"{change.role}: {said}: {_verdict(change.before.denial)} -> {_verdict(change.after.denial)} (by {by})")
        print(f"{len(found.decisions)} of {found.compared} decisions differ")
    return EXIT_FAILED if found.decisions else 0


def run_all_tests(directory: Path | None, *, as_json: bool) -> int:
    """Run the tests of a set and of the walls."""
    policies = _read(directory)
    files = [PACKAGED / "tests" / "walls.yaml"]
    if directory is None:
        files.append(PACKAGED / "tests" / "roles.yaml")
    else:
        files += sorted([*directory.glob("*.yaml"), *directory.glob("tests/*.yaml")])
    failed = ran = 0
    for path in files:
        try:
            results = run_tests(read_tests(path), policies)
        except (PolicyTestsInvalid, DecisionFailedError) as error:
            raise CommandError(str(error)) from None
        for result in results:
            ran += 1
            failed += not result.passed
            if as_json:
                print(json.dumps({"file": path.name, "it": result.it, "passed": result.passed, "why": result.why}))
            elif not result.passed:
                print(f"FAILED {path.name}: it {result.it}\n  {result.why}")
    if not as_json:
        print(f"{ran - failed} of {ran} tests pass, by {policies.digest}")
    return EXIT_FAILED if failed else 0


def _explain(policies: AccessPolicies, who: Principal, request: AccessRequest, *, as_json: bool) -> int:
    try:
        decision = policies.decide(who, request)
    except DecisionFailedError as error:
        raise CommandError(str(error)) from None
    deciding = [policies.policies[name] for name in decision.policies]
    if as_json:
        by = [{"id": policy.id, "file": policy.file} for policy in deciding]
        told = {"decision": _verdict(decision.denial), "by": by, "digest": policies.digest}
        print(json.dumps({**told, "roles": sorted(who.grant.roles), **_said(request)}))
    else:
        print(_verdict(decision.denial))
        if not deciding:
            print(f"  by default: no policy permits {request.action} to {', '.join(sorted(who.grant.roles)) or 'nobody'}")
        for policy in deciding:
            print(f"  by {policy.id} in {policy.file}:")
            print("".join(f"    {line}\n" for line in cedarpy.format_policies(policy.text, 100, 2).strip().splitlines()), end="")
        print(f"  of {policies.digest}")
    return 0 if decision.allowed else EXIT_REFUSED


def _said(request: AccessRequest) -> Mapping[str, str]:
    said = {
        "action": request.action.value,
        "purpose": request.purpose,
        "data_class": request.data_class,
        "model": request.model,
        "author": request.author,
        "emergency": None if request.break_glass is None else "suspicion" if request.break_glass.suspicion else "records",
    }
    return {name: value for name, value in said.items() if value is not None}


def _verdict(denial: object) -> str:
    return "permitted" if denial is None else str(denial)


def _read(directory: Path | None) -> AccessPolicies:
    """Read a set as the gateway does. Raises CommandError."""
    if directory is None:
        return AccessPolicies(packaged_roles())
    try:
        return AccessPolicies(read_policy_files(directory))
    except PoliciesInvalid as error:
        raise CommandError(f"a gateway would not follow {directory}: {error}") from None
    except OSError as error:
        raise CommandError(f"{directory} cannot be read: {error.strerror}", exit_code=EXIT_USAGE) from None


def _one_of(value: str, what: str, known: Sequence[str]) -> str:
    if value not in known:
        raise CommandError(f"there is no {what} {value}", fix=f"one of: {', '.join(sorted(known))}", exit_code=EXIT_USAGE)
    return value
