"""SPIFFE ids: what is one, whose it is, and whom a rule lets in."""

from __future__ import annotations

import re
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lionrock.chassis.errors import CallerNotPermitted
from lionrock.chassis.identity import AnyMember, AnyTenant, Callers, SpiffeId, permits, verified_identity
from lionrock.chassis.ids import uuid7

SEGMENT = st.from_regex(re.compile(r"[a-zA-Z0-9_-][a-zA-Z0-9._-]{0,20}", re.ASCII), fullmatch=True)
GATEWAY = SpiffeId.parse("spiffe://lionrock.local/service/gateway")
ADA = SpiffeId.parse("spiffe://lionrock.local/tenant/acme/user/ada")
OTHER = SpiffeId.parse("spiffe://lionrock.local/something/else")


@given(
    trust_domain=st.from_regex(re.compile(r"[a-z0-9._-]{1,30}", re.ASCII), fullmatch=True),
    path=st.lists(SEGMENT, min_size=1, max_size=6),
)
def test_a_valid_id_is_read_back_as_it_was_written(trust_domain: str, path: list[str]) -> None:
    text = f"spiffe://{trust_domain}/{'/'.join(path)}"
    assert str(SpiffeId.parse(text)) == text


@given(text=st.text(max_size=60) | st.text(max_size=40).map(lambda rest: f"spiffe://lionrock.local/{rest}"))
def test_whatever_parses_is_canonical(text: str) -> None:
    try:
        identity = SpiffeId.parse(text)
    except ValueError:
        return
    assert str(identity) == text
    assert re.fullmatch(r"spiffe://[a-z0-9._-]+(/[a-zA-Z0-9._-]+)+", text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "spiffe://",
        "spiffe://lionrock.local",
        "spiffe://lionrock.local/",
        "spiffe://lionrock.local//service/gateway",
        "spiffe://lionrock.local/service/gateway/",
        "spiffe://lionrock.local/service/../gateway",
        "spiffe://lionrock.local/./gateway",
        "spiffe://Lionrock.local/service/gateway",
        "spiffe://user@lionrock.local/service/gateway",
        "spiffe://lionrock.local:1/service/gateway",
        "spiffe://lionrock.local/service/gate%77ay",
        "spiffe://lionrock.local/service/gateway?x",
        "spiffe://lionrock.local/service/gateway#x",
        "spiffe://lionrock.local/service/gateway\n",
        "SPIFFE://lionrock.local/service/gateway",
        "https://lionrock.local/service/gateway",
        "spiffe://lionrock.local/" + "a" * 2048,
    ],
)
def test_what_the_standard_forbids_is_no_id(text: str) -> None:
    with pytest.raises(ValueError, match="SPIFFE"):
        SpiffeId.parse(text)


@pytest.mark.parametrize(
    ("text", "service", "tenant"),
    [
        ("spiffe://t/service/audit", "audit", None),
        ("spiffe://t/service/audit/x", None, None),
        ("spiffe://t/tenant/acme/user/ada", None, "acme"),
        ("spiffe://t/tenant/acme/workload/batch", None, "acme"),
        ("spiffe://t/tenant/acme/service/gateway", None, None),
        ("spiffe://t/tenant/acme", None, None),
        ("spiffe://t/x/service/audit", None, None),
    ],
)
def test_an_id_says_whose_it_is_by_its_whole_path(text: str, service: str | None, tenant: str | None) -> None:
    identity = SpiffeId.parse(text)
    assert (identity.service, identity.tenant) == (service, tenant)


@pytest.mark.parametrize(
    ("callers", "let_in"),
    [
        (frozenset(), set()),
        (frozenset({"gateway"}), {GATEWAY}),
        (frozenset({"acme", "ada", "user"}), set()),
        (AnyTenant(), {ADA}),
        (AnyMember(), {GATEWAY, ADA}),
    ],
)
def test_a_rule_lets_in_exactly_whom_it_names(callers: Callers, let_in: set[SpiffeId]) -> None:
    assert {identity for identity in (GATEWAY, ADA, OTHER) if permits(callers, identity)} == let_in


@pytest.mark.parametrize(
    "names",
    [
        [],
        [b"spiffe://lionrock.local/service/gateway", b"spiffe://lionrock.local/service/audit"],
        [b"spiffe://other.local/service/gateway"],
        [b"\xff\xfe"],
        [b"gateway"],
    ],
)
def test_a_certificate_without_exactly_one_id_of_our_domain_identifies_nobody(names: list[bytes]) -> None:
    with pytest.raises(CallerNotPermitted):
        verified_identity({"peer_spiffe_id": names}, "lionrock.local")


def test_ids_are_uuids_of_version_7_that_sort_by_time() -> None:
    ids = [uuid7() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert {(uuid.UUID(text).version, uuid.UUID(text).variant) for text in ids} == {(7, uuid.RFC_4122)}
    assert [text[:13] for text in ids] == sorted(text[:13] for text in ids)
