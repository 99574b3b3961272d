"""What the packaged policies decide, exhaustively; and which sets of policies are not followed."""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from access_table import ACTIONS, DATA_CLASSES, ROLES, permitted
from lionrock.gateway.access_policies import PACKAGED, AccessPolicies, DecisionFailedError, PoliciesInvalid, packaged_roles
from lionrock.gateway.authorization import EMERGENCY_ACTIONS, AccessRequest, Action, Authorizer, BreakGlass, Denial
from lionrock.gateway.tenants import Grant, Principal, Tenant, TenantName
from lionrock.tenancy import vocabulary

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
GRANT = Grant(
    ("user",), ("testing",), frozenset({"*"}), frozenset({"public", "personal"}), "default", not_after=NOW + timedelta(days=1)
)
DECISIONS = {Action.DECIDE_REVIEW: Denial.AUTHOR, Action.DECIDE_EMERGENCY: Denial.REQUESTER}
"""What is decided by somebody else than who asked, and the reason otherwise."""
PERMITTED, MET = permitted(ACTIONS), permitted(DATA_CLASSES)


@pytest.fixture(scope="module")
def policies() -> AccessPolicies:
    return AccessPolicies(packaged_roles(), now=lambda: NOW)


def principal(tenant: str = "bank", territory: str = "HK", who: str = "ada", **changes: Any) -> Principal:
    fields = {name: getattr(GRANT, name) for name in Grant.__slots__}
    own = Tenant(TenantName(tenant), territory, 4, {})
    return Principal(f"spiffe://td/tenant/{tenant}/user/{who}", own, Grant(**{**fields, **changes}))


def test_every_role_action_purpose_class_and_model_decides_as_the_table_says(policies: AccessPolicies) -> None:
    purposes, models = ("testing", "marketing", None), ("a", "b", None)
    classes = ("public", "identity", "suspicion", None)
    seen, other = set(), "spiffe://td/tenant/bank/user/other"
    for role in ROLES:
        who = principal(roles=(role,), models=frozenset({"a"}), data_classes=frozenset({"public", "suspicion"}))
        for action, purpose, data_class, model in itertools.product(Action, purposes, classes, models):
            author = {None: None, "a": who.actor, "b": other}[model] if action in DECISIONS else None
            states_all = action is Action.CHAT
            refused_class = data_class == "identity" or (data_class is not None and role not in MET[data_class])
            expected = (
                Denial.ROLE
                if role not in PERMITTED[action]
                else DECISIONS[action]
                if action in DECISIONS and author != other
                else Denial.PURPOSE
                if purpose == "marketing" or (purpose is None and states_all)
                else Denial.DATA_CLASS
                if refused_class or (data_class is None and states_all)
                else Denial.MODEL
                if model == "b"
                else None
            )
            decision = policies.decide(who, AccessRequest(action, purpose, data_class, model, author))
            assert decision.denial is expected, (role, action, purpose, data_class, model)
            assert decision.allowed is (expected is None)
            seen.add(expected)
    assert seen == {None, *Denial}


def test_table_schema_and_vocabulary_speak_of_the_same_roles_actions_and_classes(policies: AccessPolicies) -> None:
    assert set(ROLES) == set(vocabulary.ROLES)
    assert set(PERMITTED) == set(Action)
    assert set(MET) == set(vocabulary.DATA_CLASSES)
    for role in vocabulary.ROLES:
        policies.decide(principal(roles=(role,)), AccessRequest(Action.CHAT))  # a role that the schema lacks would raise
    with pytest.raises(DecisionFailedError):
        policies.decide(principal(roles=("emperor",)), AccessRequest(Action.CHAT))


def test_the_documentation_shows_the_same_table() -> None:
    assert ACTIONS.strip("\n") in (Path(__file__).parents[2] / "docs" / "access.md").read_text(encoding="utf-8")


def test_a_decision_names_the_policies_that_made_it(policies: AccessPolicies) -> None:
    chat = AccessRequest(Action.CHAT, "testing", "public", "a")
    assert policies.decide(principal(), chat).policies == ("user",)
    assert policies.decide(principal(roles=("user", "mlro")), chat).policies == ("mlro", "user")
    assert policies.decide(principal(roles=("auditor",)), chat).policies == ()
    other = AccessRequest(Action.CHAT, "marketing", "identity", "a")
    assert policies.decide(principal(), other).policies == ("purpose-is-granted",)
    assert set(policies.policies) >= {"user", "purpose-is-granted"}


def test_an_emergency_opens_reading_for_who_may_ask_for_one_and_nothing_for_others(policies: AccessPolicies) -> None:
    asking = PERMITTED["request_emergency"]
    for role, action, suspicion in itertools.product(ROLES, sorted(EMERGENCY_ACTIONS), (False, True)):
        decision = policies.decide(principal(roles=(role,)), AccessRequest(action, break_glass=BreakGlass("x", suspicion)))
        assert decision.allowed is (role in PERMITTED[action] | asking), (role, action)
        assert role not in asking or decision.policies == ("emergency-reading",)
    operator = principal(roles=("security", "platform_operator"))
    assert not policies.decide(operator, AccessRequest(Action.READ_RECORD, break_glass=BreakGlass("x", suspicion=True))).allowed


def test_no_policy_opens_anything_else_in_an_emergency() -> None:
    wide = '@id("all") permit (principal, action, resource) when { context has breakGlass };'
    generous = AccessPolicies({"mine.cedar": wide}, now=lambda: NOW)
    for action in set(Action) - EMERGENCY_ACTIONS:
        assert not generous.decide(principal(), AccessRequest(action, "testing", "public")).allowed
        with pytest.raises(DecisionFailedError):  # nobody can even ask
            generous.decide(principal(), AccessRequest(action, "testing", "public", break_glass=BreakGlass("x", suspicion=True)))
    assert generous.decide(principal(), AccessRequest(Action.READ_RECORD, break_glass=BreakGlass("x", suspicion=False))).allowed


@pytest.mark.parametrize(
    ("actor", "is_one"),
    [
        ("spiffe://td/tenant/bank/user/ada", True),
        ("https://login.example/realms/staff#ada", True),
        ("spiffe://td/tenant/bank/workload/ada", False),
        ("api-key:0123456789abcdef", False),
    ],
)
def test_an_emergency_is_for_people(policies: AccessPolicies, actor: str, is_one: bool) -> None:
    generous = AccessPolicies({"mine.cedar": '@id("all") permit (principal, action, resource);'}, now=lambda: NOW)
    who = replace(principal(roles=("security", "privacy_officer")), actor=actor)
    for action in (Action.REQUEST_EMERGENCY, Action.DECIDE_EMERGENCY, Action.END_EMERGENCY):
        for sets in (policies, generous):
            assert sets.decide(who, AccessRequest(action, author="spiffe://td/tenant/bank/user/bob")).allowed is is_one
    assert policies.decide(who, AccessRequest(Action.READ_EMERGENCIES)).allowed


def test_one_role_that_permits_is_enough_and_none_is_not(policies: AccessPolicies) -> None:
    chat = AccessRequest(Action.CHAT, "testing", "public")
    assert policies.decide(principal(roles=("auditor", "user")), chat).allowed
    assert policies.decide(principal(roles=()), chat).denial is Denial.ROLE


def test_an_operator_of_the_platform_meets_no_payload_whatever_other_roles_he_has(policies: AccessPolicies) -> None:
    for role, action in itertools.product(ROLES, Action):
        decision = policies.decide(principal(roles=(role, "platform_operator")), AccessRequest(action, "testing", "public"))
        assert decision.allowed is (action is Action.LIST_MODELS), (role, action)


def test_a_grant_ends_to_the_millisecond(policies: AccessPolicies) -> None:
    chat = AccessRequest(Action.CHAT, "testing", "public")
    assert policies.decide(principal(not_after=NOW + timedelta(milliseconds=1)), chat).allowed
    for ended in (NOW, NOW - timedelta(days=400)):
        decision = policies.decide(principal(not_after=ended), chat)
        assert (decision.denial, decision.policies) == (Denial.ROLE, ("grant-has-ended",))
    assert policies.decide(principal(not_after=None), chat).allowed


def test_a_regulator_without_an_end_is_let_in_nowhere(policies: AccessPolicies) -> None:
    for action in Action:
        assert policies.decide(principal(roles=("regulator",), not_after=None), AccessRequest(action)).denial is Denial.ROLE
    decision = policies.decide(principal(roles=("regulator",), not_after=None), AccessRequest(Action.READ_RECORD))
    assert decision.policies == ("regulator-has-an-end",)


def test_what_is_refused_for_the_role_says_nothing_of_purpose_class_and_model(policies: AccessPolicies) -> None:
    for purpose, data_class, model in itertools.product(("testing", "x"), ("public", "suspicion"), ("a", "b")):
        decision = policies.decide(
            principal(roles=("auditor",), models=frozenset({"a"})), AccessRequest(Action.CHAT, purpose, data_class, model)
        )
        assert (decision.denial, decision.policies) == (Denial.ROLE, ())


def test_behind_the_wall_suspicion_is_refused_like_any_class_that_was_not_granted(policies: AccessPolicies) -> None:
    granted = principal(data_classes=frozenset({"suspicion"}))
    refusals = [
        policies.decide(who, AccessRequest(Action.CHAT, "testing", data_class)).denial
        for who, data_class in ((granted, "suspicion"), (principal(), "suspicion"), (principal(), "identity"))
    ]
    assert refusals == [Denial.DATA_CLASS] * 3


def test_a_question_stays_in_the_tenants_territory() -> None:
    elsewhere = AccessPolicies(packaged_roles(), served_in="SG")
    chat = AccessRequest(Action.CHAT, "testing", "public")
    never_ends = {"not_after": None}
    assert elsewhere.decide(principal(**never_ends), chat).denial is Denial.MODEL
    assert elsewhere.decide(principal(territory="SG", **never_ends), chat).allowed
    assert elsewhere.decide(principal(**never_ends), AccessRequest(Action.GET_RECEIPT)).allowed


@settings(max_examples=150, deadline=None)
@given(
    actor=st.text(min_size=1, max_size=60), purpose=st.text(max_size=40), model=st.text(max_size=40), tenant=st.text(max_size=20)
)
def test_whatever_a_caller_writes_permits_nothing_that_was_not_granted(actor: str, purpose: str, model: str, tenant: str) -> None:
    who = Principal(actor, Tenant(TenantName(tenant), "HK", 1, {}), principal(models=frozenset({"a"})).grant)
    decision = PLAIN.decide(who, AccessRequest(Action.CHAT, purpose, "public", model))
    assert decision.allowed is (purpose == "testing" and model == "a")


PLAIN = AccessPolicies(packaged_roles(), now=lambda: NOW)


# Sets


PERMIT = '@id("mine") permit (principal in Role::"user", action == Action::"chat", resource);'


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("permit (principal, action, resource);", "has no @id"),
        ('@id("user") permit (principal, action', "mine.cedar: "),
        ('@id("x") permit (principal in Role::"emperor", action, resource);', "mine.cedar: x: .*emperor"),
        ('@id("x") permit (principal, action == Action::"fly", resource);', "mine.cedar: x: .*fly"),
        ('@id("x") permit (principal, action, resource) when { context.mood == "good" };', "mine.cedar: x: .*mood"),
        ('@id("x") permit (principal, action, resource) when { context.model == "a" };', "mine.cedar: x: .*model"),
        ('@id("x") permit (principal == ?principal, action, resource);', "templates"),
        ('@id("x") forbid (principal, action, resource);', "x forbids, so it says @denial"),
        ('@id("x") @denial("BECAUSE") forbid (principal, action, resource);', "x forbids, so it says @denial"),
        ('@id("x") @denial("MODEL_NOT_PERMITTED") permit (principal, action, resource);', "x permits"),
        ('@id("tipping-off") permit (principal, action, resource);', "walls.cedar too"),
        (f"{PERMIT}\n{PERMIT}", "mine.cedar too"),
    ],
)
def test_a_set_that_is_not_sound_is_refused_with_the_policy_and_the_reason(text: str, complaint: str) -> None:
    with pytest.raises(PoliciesInvalid, match=complaint):
        AccessPolicies({"mine.cedar": text})


def test_a_set_cannot_be_empty_and_cannot_take_the_place_of_the_walls() -> None:
    for roles in ({}, {"walls.cedar": PERMIT}, {"schema.cedarschema": PERMIT}, {"mine.cedar": "//" + "x" * (1 << 20)}):
        with pytest.raises(PoliciesInvalid):
            AccessPolicies(roles)


def test_no_policy_of_a_site_takes_a_wall_down() -> None:
    generous = AccessPolicies({"mine.cedar": '@id("all") permit (principal, action, resource);'}, now=lambda: NOW)
    assert generous.decide(principal(roles=("auditor",)), AccessRequest(Action.CHAT, "testing", "public")).allowed
    refused = [
        (principal(), AccessRequest(Action.CHAT, "marketing", "public")),
        (principal(data_classes=frozenset({"suspicion"})), AccessRequest(Action.CHAT, "testing", "suspicion")),
        (principal(models=frozenset({"a"})), AccessRequest(Action.CHAT, "testing", "public", "b")),
        (principal(roles=("platform_operator",)), AccessRequest(Action.READ_RECORD)),
        (principal(not_after=NOW), AccessRequest(Action.LIST_MODELS)),
        (principal(roles=("regulator",), not_after=None), AccessRequest(Action.LIST_MODELS)),
    ]
    assert [generous.decide(who, asked).allowed for who, asked in refused] == [False] * len(refused)


def test_a_site_may_forbid_more() -> None:
    forbid = (
        '@id("no-marketing") @denial("PURPOSE_NOT_PERMITTED") forbid (principal, action, resource) '
        'when { context has purpose && context.purpose == "testing" && principal in Role::"user" };'
    )
    stricter = AccessPolicies({**packaged_roles(), "site.cedar": forbid}, now=lambda: NOW)
    decision = stricter.decide(principal(), AccessRequest(Action.CHAT, "testing", "public"))
    assert (decision.denial, decision.policies) == (Denial.PURPOSE, ("no-marketing",))


def test_a_policy_that_cannot_be_evaluated_refuses_everything() -> None:
    overflow = (
        '@id("x") @denial("MODEL_NOT_PERMITTED") forbid (principal, action, resource) '
        "when { context.now.toTime().toMilliseconds() + 9223372036854775807 > 0 };"
    )
    broken = AccessPolicies({**packaged_roles(), "site.cedar": overflow}, now=lambda: NOW)
    with pytest.raises(DecisionFailedError):
        broken.decide(principal(), AccessRequest(Action.CHAT, "testing", "public"))


def test_the_digest_covers_schema_walls_and_roles_and_anyone_can_make_it() -> None:
    parts = {
        name: hashlib.sha256((PACKAGED / name).read_bytes()).hexdigest()
        for name in ("roles.cedar", "schema.cedarschema", "walls.cedar")
    }
    canonical = json.dumps(parts, separators=(",", ":"), sort_keys=True).encode()
    packaged = AccessPolicies(packaged_roles())
    assert packaged.digest == "sha256:" + hashlib.sha256(canonical).hexdigest()
    assert AccessPolicies({"roles.cedar": packaged_roles()["roles.cedar"] + "\n"}).digest != packaged.digest


def test_an_authorizer_changes_its_policies_whole(policies: AccessPolicies) -> None:
    authorizer = Authorizer(policies)
    kept = authorizer.policies
    authorizer.follow(AccessPolicies({"mine.cedar": PERMIT}, now=lambda: NOW))
    receipt = AccessRequest(Action.GET_RECEIPT)
    assert kept.decide(principal(), receipt).allowed
    assert not authorizer.decide(principal(), receipt).allowed
    assert authorizer.digest == authorizer.policies.digest != kept.digest
