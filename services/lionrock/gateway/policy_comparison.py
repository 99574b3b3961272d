"""What changes between two sets of access policies: which policies, and which decisions.

Decisions are compared over every role and action, for a caller who was granted all that is asked; a chat is asked with every class
of data. Purposes and models are open sets: those that a policy may single out are given by whoever compares. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from lionrock.gateway.access_policies import AccessPolicies
from lionrock.gateway.authorization import EMERGENCY_ACTIONS, AccessRequest, Action, BreakGlass, Decision
from lionrock.gateway.tenants import ANY_MODEL, Grant, Principal, Tenant, TenantName
from lionrock.tenancy.vocabulary import DATA_CLASSES, ROLES

_SOME_PURPOSE, _SOME_MODEL = "some_purpose", "some-model"


@dataclass(frozen=True, slots=True)
class DecisionChange:
    """A question that the two sets decide differently."""

    role: str
    asked: AccessRequest
    before: Decision
    after: Decision


@dataclass(frozen=True, slots=True)
class Difference:
    """Ids of policies that came, went, or say something else; and the decisions that changed."""

    added: Sequence[str]
    removed: Sequence[str]
    changed: Sequence[str]
    decisions: Sequence[DecisionChange]
    compared: int
    """Questions that both sets were asked."""


def compare(
    before: AccessPolicies, after: AccessPolicies, *, purposes: Sequence[str] = (), models: Sequence[str] = ()
) -> Difference:
    """Compare two sets. Raises DecisionFailedError."""
    old, new = before.policies, after.policies
    questions = list(_questions((*purposes, _SOME_PURPOSE), (*models, _SOME_MODEL)))
    changes = []
    for role, who, asked in questions:
        was, now = before.decide(who, asked), after.decide(who, asked)
        if was.denial is not now.denial:
            changes.append(DecisionChange(role, asked, was, now))
    return Difference(
        added=sorted(new.keys() - old.keys()),
        removed=sorted(old.keys() - new.keys()),
        changed=sorted(name for name in old.keys() & new.keys() if old[name].text != new[name].text),
        decisions=changes,
        compared=len(questions),
    )


def _questions(purposes: Sequence[str], models: Sequence[str]) -> Iterator[tuple[str, Principal, AccessRequest]]:
    tenant = Tenant(TenantName("compared"), "HK", 1, {})
    for role in ROLES:
        end = datetime.now(UTC) + timedelta(days=1)
        grant = Grant((role,), tuple(purposes), frozenset({ANY_MODEL}), frozenset(DATA_CLASSES), "default", not_after=end)
        who = Principal("spiffe://compared/tenant/compared/user/caller", tenant, grant)
        for action in Action:
            match action:
                case Action.CHAT:
                    for purpose in purposes:
                        for data_class in DATA_CLASSES:
                            for model in models:
                                yield role, who, AccessRequest(action, purpose, data_class, model)
                case Action.COUNT_TOKENS | Action.LIST_MODELS:
                    for model in models:
                        yield role, who, AccessRequest(action, model=model)
                case Action.DECIDE_REVIEW | Action.DECIDE_EMERGENCY:
                    yield role, who, AccessRequest(action, author="spiffe://compared/tenant/compared/user/somebody-else")
                case _:
                    yield role, who, AccessRequest(action)
                    if action in EMERGENCY_ACTIONS:
                        for suspicion in (False, True):
                            yield role, who, AccessRequest(action, break_glass=BreakGlass("compared", suspicion))
