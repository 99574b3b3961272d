"""Consents and opt-outs: recorded, asked before a chat goes on, and withdrawn, at a real gateway over a real store."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from http_calls import body, raw
from lionrock.audit.v1 import audit_pb2 as audit
from lionrock.chassis.channel import open_channel
from lionrock.chassis.settings import PeerSettings
from lionrock.gateway.consents import rows
from lionrock.gateway.consents.gate import ConsentGate, ConsentMissingError, OptedOutError
from lionrock.gateway.consents.purposes import Notice, PurposeRule, notice_digest
from lionrock.gateway.consents.subjects import SubjectHashes
from lionrock.gateway.granting import ConsentsUnkept
from lionrock.gateway.state.opening import StateSettings, open_state
from lionrock.gateway.state.store import StateStore, StateUnavailable
from lionrock.gateway.tenants import Tenant, TenantName
from lionrock.gateway.v1 import consent_pb2 as pb
from lionrock.gateway.v1.consent_pb2_grpc import ConsentServiceStub
from lionrock.gateway.v1.gateway_pb2_grpc import GatewayServiceStub
from mesh_ca import TRUST_DOMAIN
from postgres_server import running_postgres
from scripted_mesh import ScriptedMesh, Trouble, raising, tenant
from tenant_files import write

SUBJECT = "customer-17"
TEXTS = [{"language": "en", "text": "We show you offers."}, {"language": "zh-Hant", "text": "我們會向你推介服務。"}]
RULES = [
    {"purpose": "marketing", "requires_consent": True, "notice": {"version": 3, "consent_since": 2, "texts": TEXTS}},
    {"purpose": "screening", "exempt_from_opt_out": True},
    {"purpose": "testing", "notice": {"version": 1, "texts": TEXTS}},
]
PURPOSES = ["testing", "marketing", "screening"]

Ask, Hear, Failure = Callable[..., Any], Callable[..., Any], Callable[..., Any]


def consenting(name: str, rules: list[dict[str, Any]] = RULES, **changes: Any) -> dict[str, Any]:
    """A tenant with rules for its purposes, and a workload for each role that matters here."""
    stated = tenant(name, purposes=PURPOSES)
    for role in ("privacy_officer", "auditor", "security"):
        who = f"spiffe://{TRUST_DOMAIN}/tenant/{name}/workload/{role.replace('_', '-')}"
        stated["principals"].append({"spiffe_id": who, "roles": [role], "purposes": ["testing"]})
    return {**stated, "purposes": PURPOSES, "purpose_rules": rules, **changes}


class ConsentMesh(ScriptedMesh):
    """Its gateway keeps consents."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory / "mesh")
        self.secret_file = directory / "consents.secret"
        self.secret_file.write_text("c" * 40)
        self.secret_file.chmod(0o600)
        self.state_file = directory / "state" / "gateway.db"
        self.tenants = [consenting("bank"), consenting("broker")]
        self.gateway_changes = {
            "state": StateSettings(sqlite_file=self.state_file),
            "consents": {"secret_file": self.secret_file},
        }

    @asynccontextmanager
    async def as_(self, role: str, name: str = "bank") -> AsyncIterator[ConsentServiceStub]:
        """The service, for a workload in a role."""
        peer = PeerSettings(target=self.targets["gateway"], service="gateway", timeout_s=20)
        async with open_channel(peer, self.identity(name, role.replace("_", "-"), "workload"), name="test") as channel:
            yield ConsentServiceStub(channel)

    @property
    def decisions(self) -> list[audit.AppendRequest]:
        """The leaves of decisions."""
        return [leaf for leaf in self.log.leaves if leaf.HasField("governance")]


@pytest.fixture
def idle(tmp_path: Path) -> ConsentMesh:
    return ConsentMesh(tmp_path)


@pytest.fixture
async def mesh(idle: ConsentMesh) -> AsyncIterator[ConsentMesh]:
    async with idle.running():
        yield idle


@pytest.fixture
async def user(mesh: ConsentMesh) -> AsyncIterator[GatewayServiceStub]:
    async with mesh.calling() as stub:
        yield stub


@pytest.fixture
async def officer(mesh: ConsentMesh) -> AsyncIterator[ConsentServiceStub]:
    async with mesh.as_("privacy_officer") as stub:
        yield stub


def agreed(subject: str = SUBJECT, **changes: Any) -> pb.RecordConsentRequest:
    usual: dict[str, Any] = {"purpose": "marketing", "notice_version": 3, "statement": "form 88"}
    return pb.RecordConsentRequest(subject_id=subject, **{**usual, **changes})


async def test_a_purpose_that_needs_consent_is_answered_from_its_recording_to_its_withdrawal(
    mesh: ConsentMesh, user: Any, officer: Any, ask: Ask, hear: Hear, failure: Failure
) -> None:
    about = ask(purpose="marketing", subject_ids=[SUBJECT])
    refused = await failure(user.Chat(about))
    assert (refused.status.name, refused.reason) == ("PERMISSION_DENIED", "CONSENT_MISSING")
    assert refused.field_violations == (("subject_ids[0]", "no consent to this purpose holds"),)
    assert mesh.guardrails.requests == [], "nobody saw the prompt"

    made = await officer.RecordConsent(agreed(language="en"))
    assert made.consent.holds
    assert (await hear(user.Chat(about))).text

    ended = await officer.WithdrawConsent(pb.WithdrawConsentRequest(subject_id=SUBJECT, purpose="marketing"))
    assert (ended.consent.consent_id, ended.consent.holds) == (made.consent.consent_id, False)
    assert (await failure(user.Chat(about))).reason == "CONSENT_MISSING"
    assert (await failure(officer.WithdrawConsent(pb.WithdrawConsentRequest(subject_id=SUBJECT, purpose="marketing")))).reason == (
        "CONSENT_NOT_FOUND"
    )
    assert [(await mesh.log.outcome(n)).outcome.reason for n in range(3)] == ["CONSENT_MISSING", "", "CONSENT_MISSING"]


async def test_every_subject_of_a_request_must_have_consented(
    user: Any, officer: Any, ask: Ask, hear: Hear, failure: Failure
) -> None:
    await officer.RecordConsent(agreed())
    both = ask(purpose="marketing", subject_ids=[SUBJECT, "customer-18"])
    assert (await failure(user.Chat(both))).field_violations == (("subject_ids[1]", "no consent to this purpose holds"),)
    await officer.RecordConsent(agreed("customer-18"))
    assert (await hear(user.Chat(both))).text
    nobody = await failure(user.Chat(ask(purpose="marketing")))
    assert (nobody.status.name, nobody.reason) == ("INVALID_ARGUMENT", "CONSENT_SUBJECT_MISSING")
    assert nobody.field_violations[0][0] == "subject_ids"


async def test_an_opt_out_is_heeded_whatever_the_purpose_but_one_that_is_exempt(
    user: Any, officer: Any, ask: Ask, hear: Hear, failure: Failure
) -> None:
    await officer.RecordConsent(agreed())
    out = await officer.SetOptOut(pb.SetOptOutRequest(subject_id=SUBJECT))
    for purpose in ("testing", "marketing"):
        refused = await failure(user.Chat(ask(purpose=purpose, subject_ids=["customer-18", SUBJECT])))
        assert (refused.status.name, refused.reason) == ("PERMISSION_DENIED", "OPTED_OUT")
        assert refused.field_violations == (("subject_ids[1]", "opted out of answers by AI"),)
    assert (await hear(user.Chat(ask(purpose="screening", subject_ids=[SUBJECT])))).text
    assert (await hear(user.Chat(ask(subject_ids=["customer-18"])))).text
    listed = await officer.ListOptOuts(pb.ListOptOutsRequest(page_size=10))
    assert [each.opt_out_id for each in listed.opt_outs] == [out.opt_out.opt_out_id]
    known = await officer.ListConsents(pb.ListConsentsRequest(subject_id=SUBJECT))
    assert (known.opt_out, known.consents[0].holds) == (out.opt_out, True)

    await officer.ClearOptOut(pb.ClearOptOutRequest(subject_id=SUBJECT, statement="letter"))
    assert (await hear(user.Chat(ask(subject_ids=[SUBJECT])))).text
    again = pb.ClearOptOutRequest(subject_id=SUBJECT, statement="letter")
    assert (await failure(officer.ClearOptOut(again))).reason == "CONSENT_NOT_FOUND"
    assert not (await officer.ListOptOuts(pb.ListOptOutsRequest(page_size=10))).opt_outs


async def test_a_consent_ends_with_its_time(mesh: ConsentMesh, user: Any, officer: Any, ask: Ask, failure: Failure) -> None:
    request = agreed()
    request.expires_at.FromDatetime(datetime.now(UTC) + timedelta(seconds=3600))
    assert (await officer.RecordConsent(request)).consent.holds
    with sqlite3.connect(mesh.state_file) as state:  # an hour later
        state.execute("UPDATE consents SET expires_at_us = 1")
    assert (await failure(user.Chat(ask(purpose="marketing", subject_ids=[SUBJECT])))).reason == "CONSENT_MISSING"
    request.expires_at.FromDatetime(datetime.now(UTC) - timedelta(seconds=1))
    assert (await failure(officer.RecordConsent(request))).field_violations[0][0] == "expires_at"


async def test_consents_to_notices_that_no_longer_count_are_neither_taken_nor_believed(
    mesh: ConsentMesh, user: Any, officer: Any, ask: Ask, hear: Hear, failure: Failure
) -> None:
    for version in (1, 4):
        wrong = await failure(officer.RecordConsent(agreed(notice_version=version)))
        assert (wrong.reason, wrong.field_violations) == ("INVALID_FIELD", (("notice_version", "2 to 3"),))
    for purpose in ("screening", "unheard_of"):
        assert (await failure(officer.RecordConsent(agreed(purpose=purpose)))).reason == "NOTICE_NOT_FOUND"
    older = await officer.RecordConsent(agreed(notice_version=2))
    assert "notice_digest" not in mesh.decisions[-1].governance.details, "only the text in force is known"
    assert older.consent.holds
    assert (await hear(user.Chat(ask(purpose="marketing", subject_ids=[SUBJECT])))).text
    with sqlite3.connect(mesh.state_file) as state:
        state.execute("UPDATE consents SET notice_version = 1")
    assert (await failure(user.Chat(ask(purpose="marketing", subject_ids=[SUBJECT])))).reason == "CONSENT_MISSING"
    assert not (await officer.ListConsents(pb.ListConsentsRequest(subject_id=SUBJECT))).consents[0].holds


async def test_a_consent_to_the_notice_in_force_is_to_its_very_text(
    mesh: ConsentMesh, tmp_path: Path, officer: Any, ask: Ask, hear: Hear, failure: Failure
) -> None:
    await officer.RecordConsent(agreed())
    about = ask(purpose="marketing", subject_ids=[SUBJECT])
    for changes, said in (
        ({"texts": [{"language": "en", "text": "We may do what we like."}]}, "CONSENT_MISSING"),
        ({"version": 4}, None),
        ({"version": 4, "consent_since": 4}, "CONSENT_MISSING"),
    ):
        later = ConsentMesh(tmp_path / repr(changes)[:20])
        later.gateway_changes["state"] = mesh.gateway_changes["state"]
        rule = {**RULES[0], "notice": {**RULES[0]["notice"], **changes}}
        later.tenants = [consenting("bank", [rule])]
        async with later.running(), later.calling() as user:
            if said is None:
                assert (await hear(user.Chat(about))).text
            else:
                assert (await failure(user.Chat(about))).reason == said


async def test_both_doors_refuse_alike_and_show_the_statement(idle: ConsentMesh) -> None:
    idle.http = {}
    async with idle.running(), idle.as_("privacy_officer") as officer, raw(idle) as http:
        await officer.SetOptOut(pb.SetOptOutRequest(subject_id=SUBJECT))
        for headers, status, code, param in (
            ({"lionrock-subjects": f"other, {SUBJECT}"}, 403, "OPTED_OUT", "lionrock.subject_ids[1]"),
            ({"lionrock-subjects": "other", "lionrock-purpose": "marketing"}, 403, "CONSENT_MISSING", "lionrock.subject_ids[0]"),
            ({"lionrock-purpose": "marketing"}, 400, "CONSENT_SUBJECT_MISSING", "lionrock.subject_ids"),
        ):
            refused = await http.post("/chat/completions", json=body(), headers=headers)
            error = refused.json()["error"]
            assert (refused.status_code, error["code"], error["param"]) == (status, code, param)
        told = (await http.get("/lionrock/notices")).json()
        whole = await officer.ListNotices(pb.ListNoticesRequest())
        assert (told["tenant"], told["territory"], told["ai_disclosure"]) == ("bank", "HK", dict(whole.ai_disclosure))
        assert [each["purpose"] for each in told["purposes"]] == [each.purpose for each in whole.notices]
        marketing = told["purposes"][0]
        texts = {each["language"]: each["text"] for each in TEXTS}
        digest = notice_digest("marketing", 3, texts)
        assert marketing["notice"] == {"version": 3, "digest": digest, "consent_since": 2, "texts": texts}


async def test_each_change_is_a_leaf_with_its_facts_and_names_nobody(mesh: ConsentMesh, officer: Any) -> None:
    made = await officer.RecordConsent(agreed(language="zh-Hant"))
    await officer.WithdrawConsent(pb.WithdrawConsentRequest(subject_id=SUBJECT, purpose="marketing", statement="by phone"))
    out = await officer.SetOptOut(pb.SetOptOutRequest(subject_id=SUBJECT))
    await officer.ClearOptOut(pb.ClearOptOutRequest(subject_id=SUBJECT, statement="letter"))
    leaves = [leaf.governance for leaf in mesh.decisions]
    consent_id, opt_out_id = made.consent.consent_id, out.opt_out.opt_out_id
    assert [(leaf.operation, leaf.object_id, leaf.statement) for leaf in leaves] == [
        ("consent.recorded", consent_id, b"form 88"),
        ("consent.withdrawn", consent_id, b"by phone"),
        ("opt_out.set", opt_out_id, b""),
        ("opt_out.cleared", opt_out_id, b"letter"),
    ]
    assert dict(leaves[0].details) == {
        "purpose": "marketing",
        "notice_version": "3",
        "notice_digest": notice_digest("marketing", 3, {text["language"]: text["text"] for text in TEXTS}),
        "language": "zh-Hant",
    }
    assert {tuple(leaf.subject_ids) for leaf in leaves} == {(SUBJECT,)}
    assert made.receipt.position.leaf_index == made.consent.leaf_index == mesh.log.leaves.index(mesh.decisions[0])


async def test_nothing_changes_when_the_log_cannot_say_it(mesh: ConsentMesh, officer: Any, failure: Failure) -> None:
    mesh.log.faults["Append.governance"] = raising(Trouble("no"))
    for refused in (officer.RecordConsent(agreed()), officer.SetOptOut(pb.SetOptOutRequest(subject_id=SUBJECT))):
        assert (await failure(refused)).reason == "AUDIT_UNAVAILABLE"
    known = await officer.ListConsents(pb.ListConsentsRequest(subject_id=SUBJECT))
    assert known == pb.ListConsentsResponse()


async def test_the_state_holds_no_subject_and_no_statement(mesh: ConsentMesh, officer: Any) -> None:
    await officer.RecordConsent(agreed(statement="said to Miss Chan"))
    await officer.SetOptOut(pb.SetOptOutRequest(subject_id=SUBJECT))
    for file in mesh.state_file.parent.iterdir():
        content = file.read_bytes()
        for secret in (SUBJECT.encode(), b"Miss Chan", b"c" * 40):
            assert secret not in content, file.name


async def test_nobody_is_let_through_unread_when_the_state_cannot_be_reached(
    user: Any, officer: Any, ask: Ask, hear: Hear, failure: Failure, monkeypatch: pytest.MonkeyPatch
) -> None:
    await officer.RecordConsent(agreed())

    async def cut_off(*arguments: object, **named: object) -> None:
        raise StateUnavailable("no")

    monkeypatch.setattr(StateStore, "read", cut_off)
    for purpose in ("testing", "marketing"):
        refused = await failure(user.Chat(ask(purpose=purpose, subject_ids=[SUBJECT])))
        assert (refused.status.name, refused.reason) == ("UNAVAILABLE", "STATE_UNAVAILABLE")
        assert refused.retry_after_s == 1.0
    assert (await hear(user.Chat(ask()))).text, "what concerns nobody goes on"
    assert (await hear(user.Chat(ask(purpose="screening", subject_ids=[SUBJECT])))).text


async def test_a_user_takes_back_and_only_an_officer_or_administrator_gives(
    mesh: ConsentMesh, officer: Any, failure: Failure
) -> None:
    await officer.RecordConsent(agreed())
    peer = PeerSettings(target=mesh.targets["gateway"], service="gateway", timeout_s=20)
    async with open_channel(peer, mesh.identity(), name="test") as channel, mesh.as_("auditor") as auditor:
        user = ConsentServiceStub(channel)
        await user.SetOptOut(pb.SetOptOutRequest(subject_id=SUBJECT))
        await user.WithdrawConsent(pb.WithdrawConsentRequest(subject_id=SUBJECT, purpose="marketing"))
        cleared = pb.ClearOptOutRequest(subject_id=SUBJECT, statement="x")
        listing = pb.ListConsentsRequest(subject_id=SUBJECT)
        for refused in (user.RecordConsent(agreed()), user.ClearOptOut(cleared), user.ListConsents(listing)):
            assert (await failure(refused)).reason == "ROLE_NOT_PERMITTED"
        assert (await auditor.ListConsents(listing)).HasField("opt_out")
        assert (await failure(auditor.WithdrawConsent(pb.WithdrawConsentRequest(subject_id="x", purpose="marketing")))).reason == (
            "ROLE_NOT_PERMITTED"
        )


async def test_a_subject_of_one_tenant_is_nobody_at_another(
    mesh: ConsentMesh, officer: Any, ask: Ask, hear: Hear, failure: Failure
) -> None:
    await officer.RecordConsent(agreed())
    await officer.SetOptOut(pb.SetOptOutRequest(subject_id=SUBJECT))
    async with mesh.calling(mesh.identity("broker")) as other, mesh.as_("privacy_officer", "broker") as theirs:
        assert (await hear(other.Chat(ask(subject_ids=[SUBJECT])))).text
        assert (await failure(other.Chat(ask(purpose="marketing", subject_ids=[SUBJECT])))).reason == "CONSENT_MISSING"
        assert await theirs.ListConsents(pb.ListConsentsRequest(subject_id=SUBJECT)) == pb.ListConsentsResponse()
        assert not (await theirs.ListOptOuts(pb.ListOptOutsRequest(page_size=10))).opt_outs


async def test_the_notice_in_force_stands_in_the_intent_leaf_and_in_the_statement(
    mesh: ConsentMesh, user: Any, officer: Any, ask: Ask, hear: Hear, failure: Failure
) -> None:
    await hear(user.Chat(ask()))
    await hear(user.Chat(ask(purpose="screening")))
    told = (await officer.GetNotice(pb.GetNoticeRequest(purpose="testing"))).notice
    stated = {"purpose": "testing", "texts": dict(told.texts), "version": 1}
    canonical = json.dumps(stated, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    assert told.digest == f"sha256:{sha256(canonical.encode()).hexdigest()}"
    with_notice, without = (leaf.intent for leaf in mesh.log.intents)
    assert (with_notice.notice_version, with_notice.notice_digest) == (1, told.digest)
    assert (without.notice_version, without.notice_digest) == (0, "")

    whole = await officer.ListNotices(pb.ListNoticesRequest())
    assert [notice.purpose for notice in whole.notices] == sorted(PURPOSES)
    marketing = whole.notices[0]
    assert (marketing.requires_consent, marketing.version, marketing.consent_since, dict(marketing.texts)) == (True, 3, 2, {})
    assert list(marketing.data_classes) == ["internal", "personal", "public"]
    assert (await failure(officer.GetNotice(pb.GetNoticeRequest(purpose="unheard_of")))).reason == "NOTICE_NOT_FOUND"


async def test_an_answer_carries_what_its_tenant_says_about_machines(idle: ConsentMesh, ask: Ask, hear: Hear) -> None:
    own = [{"language": "en", "text": "Harbour Bank's assistant is a machine."}, {"language": "pt", "text": "Escrito por IA."}]
    idle.tenants = [consenting("bank", disclosure=own), consenting("broker")]
    async with idle.running(), idle.calling() as bank, idle.calling(idle.identity("broker")) as broker:
        said = dict((await hear(bank.Chat(ask()))).started.ai_disclosure)
        usual = dict((await hear(broker.Chat(ask()))).started.ai_disclosure)
    assert usual.keys() == {"en", "zh-Hant", "zh-Hans"}
    assert said == usual | {"en": own[0]["text"], "pt": own[1]["text"]}


async def test_a_gateway_that_keeps_no_consents_serves_notices_and_nothing_else(idle: ConsentMesh, failure: Failure) -> None:
    idle.gateway_changes = {}
    idle.tenants = [consenting("bank", RULES[1:])]
    async with idle.running(), idle.as_("privacy_officer") as officer:
        assert len((await officer.ListNotices(pb.ListNoticesRequest())).notices) == len(PURPOSES)
        error = await failure(officer.SetOptOut(pb.SetOptOutRequest(subject_id=SUBJECT)))
        assert (error.status.name, error.reason) == ("UNIMPLEMENTED", "METHOD_NOT_FOUND")


async def test_a_tenant_that_asks_for_consent_is_refused_where_none_is_kept(idle: ConsentMesh, tmp_path: Path) -> None:
    idle.gateway_changes = {}
    with pytest.raises(ValidationError, match=r"tenant bank has purposes that need consent.*set consents"):
        async with idle.running():
            pass
    idle.tenants = [tenant("broker")]
    idle.tenants_directory = tmp_path / "tenants"
    idle.tenants_directory.mkdir()
    rule = {"purpose": "testing", "requiresConsent": True, "notice": {"version": 1, "texts": TEXTS}}
    write(idle.tenants_directory, "fund", purposes=["testing"], purposeRules=[rule])
    with pytest.raises(ConsentsUnkept, match="tenant fund"):
        async with idle.running():
            pass


async def test_a_gateway_with_another_secret_does_not_start(mesh: ConsentMesh, tmp_path: Path) -> None:
    other = ConsentMesh(tmp_path / "other")
    other.gateway_changes["state"] = StateSettings(sqlite_file=mesh.state_file)
    other.secret_file.chmod(0o600)
    other.secret_file.write_text("d" * 40)
    with pytest.raises(ValueError, match="holds another secret") as refused:
        async with other.running():
            pass
    assert "dddd" not in str(refused.value)


async def test_two_gateways_agree_at_once(idle: ConsentMesh, tmp_path: Path, ask: Ask, hear: Hear, failure: Failure) -> None:
    second = ConsentMesh(tmp_path / "second")
    second.gateway_changes["state"] = idle.gateway_changes["state"]
    async with idle.running(), second.running(), idle.as_("privacy_officer") as officer, second.calling() as user:
        await hear(user.Chat(ask(subject_ids=[SUBJECT])))
        await officer.SetOptOut(pb.SetOptOutRequest(subject_id=SUBJECT))
        assert (await failure(user.Chat(ask(subject_ids=[SUBJECT])))).reason == "OPTED_OUT"


async def test_the_pages_of_opt_outs_hold_each_once(officer: Any) -> None:
    made = {(await officer.SetOptOut(pb.SetOptOutRequest(subject_id=f"c-{n}"))).opt_out.opt_out_id for n in range(5)}
    seen: list[str] = []
    request = pb.ListOptOutsRequest(page_size=2)
    while True:
        page = await officer.ListOptOuts(request)
        seen += [each.opt_out_id for each in page.opt_outs]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert (len(seen), set(seen)) == (5, made)


# Without a gateway

HASHES = SubjectHashes(b"x" * 32)
NOTICE = Notice(1, 1, {"en": "n"}, "sha256:" + "0" * 64)
OWNER = Tenant(TenantName("bank"), "HK", 1, {}, purpose_rules={"p": PurposeRule(True, False, NOTICE)})

LATER_US = 4_000_000_000_000_000
Change = tuple[str, int, str]
changes = st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 50), st.sampled_from(["give", "end", "out", "in"])), max_size=12)


def choice_of(change: Change) -> rows.Choice:
    subject, leaf_index, what = change
    purpose = "p" if what in ("give", "end") else rows.OPT_OUT
    ended_at_us = LATER_US if what in ("end", "in") else None
    return rows.Choice(HASHES.of("bank", subject), purpose, what, 1, "", leaf_index, 0, None, ended_at_us)


def literally(made: list[Change], subject: str) -> str:
    """What the log says when it is read from its beginning to its end."""
    given = opted_out = False
    for name, _, what in sorted(made, key=lambda change: change[1]):
        if name == subject:
            given = {"give": True, "end": False}.get(what, given)
            opted_out = {"out": True, "in": False}.get(what, opted_out)
    return "opted out" if opted_out else "ok" if given else "missing"


@settings(max_examples=60, deadline=None)
@given(changes)
def test_the_order_of_the_log_decides_in_whatever_order_gateways_write(made: list[Change]) -> None:
    made = [change for place, change in enumerate(made) if change[1] not in {other[1] for other in made[:place]}]
    found = asyncio.run(_found(made))
    assert found == {subject: literally(made, subject) for subject in "ab"}


async def _found(made: list[Change]) -> dict[str, str]:
    said: dict[str, str] = {}
    async with contextlib.AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        store = await stack.enter_async_context(open_state(StateSettings(sqlite_file=directory / "state.db")))
        for change in made:
            await rows.put(store, "bank", choice_of(change))
        gate = ConsentGate(store, HASHES)
        for subject in "ab":
            try:
                await gate.check(OWNER, "p", [subject])
                said[subject] = "ok"
            except OptedOutError:
                said[subject] = "opted out"
            except ConsentMissingError:
                said[subject] = "missing"
    return said


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StateSettings]:
    """Both kinds of state."""
    if request.param == "sqlite":
        yield StateSettings(sqlite_file=tmp_path / "state.db")
        return
    with running_postgres() as server:
        file = tmp_path / "dsn"
        file.write_text(server.new_database())
        file.chmod(0o600)
        yield StateSettings(postgres_dsn_file=file)


async def test_what_has_ended_is_forgotten_and_the_rows_of_a_tenant_are_counted(
    place: StateSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "MAX_CHOICES_PER_TENANT", 2)
    async with open_state(place) as store:
        await rows.adopt_secret(store, HASHES.check)
        await rows.adopt_secret(store, HASHES.check)
        with pytest.raises(rows.OtherSecretError):
            await rows.adopt_secret(store, SubjectHashes(b"y" * 32).check)
        for leaf_index, subject in enumerate("ab"):
            assert await rows.has_room(store, "bank")
            await rows.put(store, "bank", choice_of((subject, leaf_index, "give")))
        await rows.put(store, "bank", choice_of(("a", 7, "give")))
        assert not await rows.has_room(store, "bank")
        assert await rows.has_room(store, "broker")
        monkeypatch.setattr(rows, "KEPT_US", 0)
        await rows.put(store, "bank", replace(choice_of(("b", 8, "end")), ended_at_us=1))  # forgotten by the next change
        await rows.put(store, "bank", choice_of(("a", 9, "give")))
        assert await rows.has_room(store, "bank")
        known = await rows.known(store, "bank", [HASHES.of("bank", "a"), HASHES.of("bank", "b")], "p")
        assert [subject for subject, _ in known.choices] == [HASHES.of("bank", "a")]
        kept = choice_of(("a", 9, "give"))
        assert (await rows.put(store, "bank", choice_of(("a", 5, "end")))) == kept, "its leaf is earlier"
        out = [choice_of((subject, 20 + place, "out")) for place, subject in enumerate("abc")]
        for each in out:
            await rows.put(store, "bank", each)
        assert (await rows.all_of(store, "bank", kept.subject)).choices.keys() == {(kept.subject, "p"), (kept.subject, "")}
        first = await rows.opt_outs(store, "bank", b"", 2)
        rest = await rows.opt_outs(store, "bank", first[-1].subject, 2)
        assert [*first, *rest] == sorted(out, key=lambda each: each.subject)


def test_a_subject_is_another_under_another_tenant_or_secret() -> None:
    hashes = {HASHES.of("bank", "a"), HASHES.of("bank", "b"), HASHES.of("broker", "a"), SubjectHashes(b"y" * 32).of("bank", "a")}
    assert {len(each) for each in hashes} == {32}
    assert len(hashes) == 4
    with pytest.raises(ValueError, match="fewer than 32"):
        SubjectHashes(b"short")
