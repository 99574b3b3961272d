"""A tenant leaves: nothing new is asked, everything that may go is destroyed, the log is sealed, and its proofs are served on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from audit_harness import Place, check_store, copy_files, intent, outcome
from checked_stores import CheckedStore, flaws
from offboarding_harness import ADMIN, ANSWER, BASIS, OFFICER, PROMPT, SUBJECT, Leaving, open_place, person
from records_harness import CLASSES, Clock
from test_records_bytes import assert_absent, files_below

from lionrock.audit import failures
from lionrock.audit.findings import Flaw
from lionrock.audit.keys import KeyDirectory
from lionrock.audit.leaf import Governance
from lionrock.audit.records.holds import RecordScope
from lionrock.audit.records.offboarding import DESTROYED, STEPS, Kept
from lionrock.audit.records.retention import Retention
from lionrock.audit.store import LogStore, StoredLog
from lionrock.audit.store.departures import ENDED, ERASING, LEAVING, SEALED, furthest
from lionrock.audit.store.sqlite_reader import SqliteLogReader
from lionrock.audit.verify import verify_receipt

PROGRAM = Path(__file__).with_name("offboarding_harness.py")
REGULATOR = person("rex", "regulator", "mlro")
KEEPING = Retention(CLASSES, {"advice": "long"}, "free")


async def leaves(place: Leaving, tenant: str = "bank") -> list[dict[str, object]]:
    return [json.loads(leaf.data) async for page in place.opened.logs.leaves(tenant, 0, 10_000) for leaf in page]


async def test_a_tenant_that_leaves_asks_nothing_new_and_what_was_begun_ends(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        logs = place.opened.logs
        asked = intent(prompt=PROMPT)
        first = await logs.append(asked, want_receipt=False)
        begun = await place.offboarding.begin(ADMIN, "bank")
        assert verify_receipt(begun.proof or "", logs.verifier_keys("bank")).fields["operation"] == "tenant.offboarding_begun"
        with pytest.raises(failures.TenantLeaving):
            await logs.append(intent(prompt=PROMPT), want_receipt=False)
        await logs.append(intent("broker", prompt=PROMPT), want_receipt=False)
        await logs.append(outcome(asked, first.leaf_index, answer=ANSWER), want_receipt=False)
        assert (await place.opened.records.read(OFFICER, asked.context.request_id)).payloads[1].payload == ANSWER
        again = await place.offboarding.begin(person("bob", "tenant_admin"), "bank")
        assert again.leaf_index == begun.leaf_index
    async with open_place(tmp_path) as place:
        with pytest.raises(failures.TenantLeaving):
            await place.opened.say()
        await place.offboarding.cancel(ADMIN, "bank")
        await place.opened.say()
        said = await leaves(place)
        assert [leaf["operation"] for leaf in said if leaf["type"] == "governance"] == [
            "tenant.offboarding_begun",
            "tenant.offboarding_cancelled",
        ]
        progress = await place.offboarding.progress(ADMIN)
        assert (progress.stage, progress.begun_by) == (None, "")


async def test_two_people_decide_and_nobody_else(tmp_path: Path) -> None:
    both = person("ann", "tenant_admin", "privacy_officer")
    async with open_place(tmp_path) as place:
        offboarding = place.offboarding
        for who in (OFFICER, person("aud", "auditor"), REGULATOR, person("ops", "platform_operator")):
            with pytest.raises(failures.RoleNotPermitted):
                await offboarding.begin(who, "bank")
        with pytest.raises(failures.RoleNotPermitted):
            await offboarding.begin(person("ann", "tenant_admin", auth_method="api_key"), "bank")
        with pytest.raises(failures.RoleNotPermitted):
            await offboarding.begin(person("ann", "tenant_admin", break_glass_id="01930000-0000-7000-8000-000000000000"), "bank")
        for name in ("broker", "nobody"):
            with pytest.raises(failures.NotThisTenant):
                await offboarding.begin(ADMIN, name)
        with pytest.raises(failures.OffboardingNotBegun):
            await offboarding.erase(OFFICER, "bank", BASIS)
        with pytest.raises(failures.OffboardingNotBegun):
            await offboarding.cancel(ADMIN, "bank")
        await offboarding.begin(both, "bank")
        with pytest.raises(failures.SecondPersonNeeded):
            await offboarding.erase(both, "bank", BASIS)
        with pytest.raises(failures.RoleNotPermitted):
            await offboarding.erase(ADMIN, "bank", BASIS)
        await place.opened.logs.append(intent("broker"), want_receipt=False)
        assert (await offboarding.progress(both)).stage == LEAVING


async def test_what_is_under_way_is_waited_for(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        asked = intent(prompt=PROMPT)
        first = await place.opened.logs.append(asked, want_receipt=False)
        await place.offboarding.begin(ADMIN, "bank")
        with pytest.raises(failures.RequestOpen):
            await place.offboarding.erase(OFFICER, "bank", BASIS)
        await place.opened.logs.append(outcome(asked, first.leaf_index), want_receipt=False)
        assert (await place.offboarding.erase(OFFICER, "bank", BASIS)).stage == ENDED


async def test_a_tenant_of_whom_nothing_is_kept_is_sealed_and_proven(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        logs, records = place.opened.logs, place.opened.records
        said = await place.opened.say(PROMPT, ANSWER, subjects=(SUBJECT,))
        other = await place.opened.say(b"theirs", b"too", tenant="broker")
        keys = list(logs.verifier_keys("bank"))
        done = await place.leave()
        assert (done.stage, done.vault_key, done.records, done.kept) == (ENDED, DESTROYED, {"erased": 1}, ())
        assert done.erased is not None
        last = verify_receipt(done.erased.proof or "", keys)
        assert (last.fields["operation"], last.fields["object_id"]) == ("tenant.erased", "bank")
        assert last.leaf_index == last.tree_size - 1 == logs.size("bank") - 1
        (erasure,) = [leaf for leaf in await leaves(place) if leaf["type"] == "erasure"]
        assert (erasure["scope"], erasure["basis"], erasure["record_count"]) == ("tenant", BASIS, 1)
        assert "scope_commitment" not in erasure
        # The log is sealed, its proofs are not.
        for event in (intent(), outcome(said.events[0], 0)):
            with pytest.raises(failures.LogSealed):
                await logs.append(event, want_receipt=False)
        assert verify_receipt((await logs.receipt("bank", said.leaves[0])).proof or "", keys).leaf_index == said.leaves[0]
        assert await logs.consistency_proof("bank", 1, 0)
        for call in (
            records.read(OFFICER, said.request_id),
            records.search(OFFICER, RecordScope("subject", SUBJECT), 10),
            records.place_hold(REGULATOR, RecordScope("subject", SUBJECT), "late"),
        ):
            with pytest.raises((failures.VaultDisabled, failures.LogSealed)):
                await call
        again = await place.offboarding.erase(OFFICER, "bank", "another word")
        assert (again.stage, again.basis, again.erased) == (ENDED, BASIS, done.erased)
        assert (await records.read(person("pat", "privacy_officer", tenant="broker"), other.request_id)).payloads
        assert not (tmp_path / "keys" / "bank.key").exists()
        assert not (tmp_path / "kek" / "bank.kek").exists()
        assert (tmp_path / "kek" / "broker.kek").exists()
    async with open_place(tmp_path) as place:  # and so it stays
        with pytest.raises(failures.LogSealed):
            await place.opened.say()
        assert (await place.offboarding.progress(ADMIN)).erased == done.erased
        assert place.opened.logs.writable
        await place.opened.say(tenant="broker")
        assert not (tmp_path / "kek" / "bank.kek").exists()
    check_store(tmp_path / "store" / "audit.db")


async def test_what_must_stay_stays_with_its_reason_and_goes_when_its_time_has_come(tmp_path: Path) -> None:
    clock = Clock()
    async with open_place(tmp_path, clock=clock, retention=KEEPING) as place:
        kept = await place.opened.say(b"advice", purpose="advice")
        held = await place.opened.say(b"held", subjects=(SUBJECT,))
        gone = await place.opened.say(b"gone")
        hold_id, _ = await place.opened.records.place_hold(REGULATOR, RecordScope("subject", SUBJECT), "inquiry")
        done = await place.leave()
        assert (done.stage, done.erased, done.holds) == (ERASING, None, 1)
        assert done.records == {"kept": 2, "erased": 1}
        by_reason = {one.reason: one for one in done.kept}
        assert by_reason["LEGAL_HOLD_APPLIES"] == Kept("LEGAL_HOLD_APPLIES", "free", 1, None)
        assert by_reason["RETENTION_APPLIES"].records == 1
        assert (by_reason["RETENTION_APPLIES"].until_us or 0) > clock() + 364 * 86_400_000_000
        with pytest.raises(failures.ErasureDecided):
            await place.offboarding.cancel(ADMIN, "bank")
        # What is kept can be read, which leaves a leaf, and nothing new is asked.
        assert (await place.opened.records.read(REGULATOR, kept.request_id)).payloads
        with pytest.raises(failures.RecordErased):
            await place.opened.records.read(REGULATOR, gone.request_id)
        with pytest.raises(failures.TenantLeaving):
            await place.opened.say()
        await place.opened.records.release_hold(REGULATOR, hold_id)
        clock.advance(366)
        carried_on = await place.offboarding.erase(OFFICER, "bank", BASIS)
        assert (carried_on.stage, carried_on.records) == (ENDED, {"erased": 3})
        assert held.request_id


async def test_what_is_behind_the_wall_goes_too_and_is_counted_for_who_is_cleared(tmp_path: Path) -> None:
    async with open_place(tmp_path, retention=KEEPING) as place:
        await place.opened.say(b"hidden", data_class="suspicion")
        await place.opened.say(b"hidden and kept", data_class="suspicion", purpose="advice")
        await place.opened.say(b"plain")
        done = await place.leave()
        assert (done.stage, done.records, done.kept) == (ERASING, {"erased": 1}, ())
        seen = await place.offboarding.progress(REGULATOR)
        assert seen.records == {"erased": 2, "kept": 1}
        assert [one.records for one in seen.kept] == [1]
        erasures = [(leaf["data_class"], leaf["record_count"]) for leaf in await leaves(place) if leaf["type"] == "erasure"]
        assert erasures == [("personal", 1), ("suspicion", 1)]


async def test_what_was_written_about_a_decision_goes_with_everything_else(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        event = intent()
        decided = type(event)(event.event_id, "", event.context, Governance("review.released", "r-1"), {"statement": PROMPT})
        await place.opened.logs.append(decided, want_receipt=False)
        done = await place.leave()
        assert (done.stage, done.records) == (ENDED, {"erased": 1})
        files = files_below(tmp_path)
    assert_absent(PROMPT, files)


@pytest.mark.parametrize("step", STEPS)
async def test_killed_after_any_step_it_ends_in_the_same_place(tmp_path: Path, step: str) -> None:
    run_until_killed(tmp_path, step)
    async with open_place(tmp_path) as place:
        done = await place.leave()
        assert (done.stage, done.vault_key, done.records) == (ENDED, DESTROYED, {"erased": 2})
        said = await leaves(place)
        assert [leaf.get("operation") for leaf in said[-3:]] == ["tenant.offboarding_begun", None, "tenant.erased"]
        assert said[-2]["record_count"] == 2
        files = files_below(tmp_path)
    for secret in (PROMPT, ANSWER, SUBJECT.encode()):
        assert_absent(secret, files)
    check_store(tmp_path / "store" / "audit.db")


async def test_killed_at_step_after_step_it_ends_in_the_same_place(tmp_path: Path) -> None:
    run_until_killed(tmp_path, STEPS[0])
    for step in STEPS[1:]:
        run_until_killed(tmp_path, step, "again")
    async with open_place(tmp_path) as place:
        assert (await place.offboarding.progress(OFFICER)).stage == ENDED
        assert [leaf.get("operation") for leaf in await leaves(place)][-1] == "tenant.erased"


def run_until_killed(directory: Path, step: str, *more: str) -> None:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(directory), step, *more], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == -9, done.stderr


async def test_nothing_that_was_said_is_left_in_any_file_nor_opens_in_an_old_copy(tmp_path: Path) -> None:
    place_dir, old = tmp_path / "place", tmp_path / "old"
    async with open_place(place_dir) as place:
        said = await place.opened.say(PROMPT, ANSWER, subjects=(SUBJECT,))
        record_key = await place.opened.keys.key_of("bank", said.request_id)
        wrapped = place.opened.key_store.record_key("bank", said.request_id)
        index_key = place.opened.key_store.index_key("bank")
        assert wrapped is not None
        assert index_key is not None
        tenant_key = (place_dir / "kek" / "bank.kek").read_bytes()
        signing_key = (place_dir / "keys" / "bank.key").read_bytes()
        copy_files(place_dir / "store", old)
        await place.leave()
        live = files_below(place_dir)
    secrets = (PROMPT, ANSWER, SUBJECT.encode(), *said.salts, record_key, wrapped.wrapped, index_key)
    for files in (live, files_below(place_dir)):
        for secret in secrets:
            assert_absent(secret, files)
        for key in (tenant_key.split()[-1], signing_key.strip()):
            assert [path for path, content in files.items() if key in content] == []
    assert list(old.iterdir())


async def test_a_store_in_which_a_departure_was_taken_back_is_found(tmp_path: Path) -> None:
    from lionrock.audit.record_check import departure_flaws

    async with open_place(tmp_path) as place:
        await place.opened.say()
        await place.leave()
    with closing(SqliteLogReader.open(tmp_path / "store" / "audit.db")) as reader:
        log = next(one for one in reader.logs() if one.origin.endswith("/bank"))
        stages = reader.departures.stages(log.log_id)
        assert departure_flaws(stages, ["tenant.offboarding_begun", "tenant.erased"]) == []
        assert departure_flaws({}, ["tenant.offboarding_begun", "tenant.erased"])
        assert departure_flaws(stages, [])
        assert departure_flaws({LEAVING: b""}, ["tenant.offboarding_begun", "tenant.offboarding_cancelled"])
        assert departure_flaws({}, ["tenant.offboarding_begun", "tenant.offboarding_cancelled"]) == []


def test_stages_are_kept_by_every_store(store: LogStore, bank: StoredLog) -> None:
    assert store.departures.stages(bank.log_id) == {}
    with store.transaction() as transaction:
        transaction.departures.reach(bank.log_id, LEAVING, b'{"a": 1}')
        assert furthest(transaction.departures.stages(bank.log_id)) == LEAVING
        transaction.keep_retry_salts(bank.log_id, [(0, 1, b"s" * 32)])
    with store.transaction() as transaction:
        transaction.departures.stay(bank.log_id)
        transaction.departures.forget_retry_salts_of(bank.log_id)
    assert store.departures.stages(bank.log_id) == {}
    with store.transaction() as transaction:
        for stage in (LEAVING, ERASING, SEALED):
            transaction.departures.reach(bank.log_id, stage, stage.encode())
        transaction.departures.stay(bank.log_id + 1)
    assert store.departures.stages(bank.log_id) == {LEAVING: b"leaving", ERASING: b"erasing", SEALED: b"sealed"}
    assert store.departures.stages(bank.log_id + 1) == {}


async def test_a_key_of_the_log_that_comes_back_signs_nothing(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        await place.opened.say()
        key = (tmp_path / "keys" / "bank.key").read_bytes()
        await place.leave()
    restored: Callable[[], int] = lambda: (tmp_path / "keys" / "bank.key").write_bytes(key)  # noqa: E731
    restored()
    (tmp_path / "keys" / "bank.key").chmod(0o600)
    assert KeyDirectory(tmp_path / "keys").load("bank", "audit.example.hk/audit/bank") is not None
    async with open_place(tmp_path) as place:
        with pytest.raises(failures.LogSealed):
            await place.opened.say()
    assert Place(tmp_path).store_file.exists()


async def test_a_tenant_leaves_either_kind_of_store_and_the_check_holds_its_rows_against_its_leaves(checked: CheckedStore) -> None:
    directory = checked.place.root
    async with open_place(directory, store=checked.open()) as place:
        await place.opened.say(PROMPT, ANSWER, subjects=(SUBJECT,))
        await place.opened.say(b"theirs", tenant="broker")
        done = await place.leave()
        assert (done.stage, done.records) == (ENDED, {"erased": 1})
    async with open_place(directory, store=checked.open()) as place:
        assert (await place.offboarding.progress(OFFICER)).stage == ENDED
        with pytest.raises(failures.LogSealed):
            await place.opened.say()
    trusted = checked.keys()
    assert checked.check(trusted).findings == []
    for stage in (LEAVING, SEALED):
        changed = checked.edit("UPDATE departures SET stage = ? WHERE stage = ?", "ended " + stage, stage)
        assert changed == 1
        assert checked.check(trusted).findings != []
        assert checked.edit("UPDATE departures SET stage = ? WHERE stage = ?", stage, "ended " + stage) == 1
    checked.edit("DELETE FROM departures WHERE stage = ?", LEAVING)
    assert flaws(checked.check(trusted)) == {Flaw.DEPARTURE_MISMATCH}
