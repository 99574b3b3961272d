"""What tenants state of retention and keys: obeyed for what is recorded from then on, and refused where nothing would obey."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from audit_harness import Place, intent
from records_harness import CLASSES, RETENTION, Clock, RecordsPlace, who
from transit_server import TransitServer, transit_server

from lionrock.audit import failures
from lionrock.audit.keeping import Keeping, keeping_of
from lionrock.audit.records.holds import RecordScope
from lionrock.audit.records.opening import open_records
from lionrock.audit.records.records import Records
from lionrock.audit.records.retention import DAY_US, Retention, RetentionClass, stated_name
from lionrock.audit.tenants_dir import TenantsDir
from lionrock.audit.vault.key_store import KeyStore, StoredKey
from lionrock.audit.vault.settings import VaultSettings
from lionrock.audit.vault.transit import TransitKey, TransitKeyManagement
from lionrock.tenancy.documents import parse_resource
from lionrock.tenancy.spec import TenantResource
from mesh_ca import DevCa

TOKEN = "hvs.test-token"
OFFICER = who("privacy_officer")


def tenant(name: str = "bank", **spec: Any) -> TenantResource:
    principal = {"spiffeId": f"spiffe://lionrock.local/tenant/{name}/user/*", "purposes": ["advice"]}
    stated = {"territory": "HK", "principals": [principal], **spec}
    return parse_resource({"apiVersion": "lionrock.io/v1alpha1", "kind": "Tenant", "metadata": {"name": name}, "spec": stated})


def keeps(days: int, expire: int | None = None, *, name: str = "own", purposes: tuple[str, ...] = ()) -> dict[str, Any]:
    each: dict[str, Any] = {"name": name, "keepDays": days}
    if expire is not None:
        each["expireDays"] = expire
    if purposes:
        each["purposes"] = list(purposes)
    return {"classes": [each, {"name": "rest", "expireDays": 10}] if purposes else [each], "default": "rest" if purposes else name}


def local(tmp_path: Path, **changes: Any) -> VaultSettings:
    settings = {"key_store_file": tmp_path / "vault" / "keys.db", "local_key_dir": tmp_path / "kek"}
    return VaultSettings.model_validate(settings | changes)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[TransitServer]:
    with transit_server(TOKEN, DevCa(tmp_path / "ca").issue("audit")) as server:
        server.keys = {name: os.urandom(32) for name in ("lionrock-bank", "lionrock-broker", "bank-2026", "bank-2027")}
        yield server


def in_transit(engine: TransitServer, tmp_path: Path) -> VaultSettings:
    token_file = tmp_path / "token"
    token_file.write_text(TOKEN)
    transit = {
        "address": f"https://localhost:{engine.server_port}",
        "token_file": token_file,
        "ca_file": DevCa(tmp_path / "ca").issue("gateway").ca_file,
    }
    (tmp_path / "vault").mkdir(exist_ok=True)
    return VaultSettings.model_validate({"key_store_file": tmp_path / "vault" / "keys.db", "transit": transit, "cached_keys": 0})


class Stated:
    """What documents say now, changed by the test."""

    def __init__(self, vault: VaultSettings) -> None:
        self.vault = vault
        self.keeping = Keeping()

    def say(self, *resources: TenantResource) -> None:
        self.keeping = keeping_of(resources, self.vault)

    def __call__(self) -> Keeping:
        return self.keeping


def test_the_days_of_a_class_that_a_tenant_states_are_in_its_name() -> None:
    for days in (RetentionClass(0, None), RetentionClass(2557, None), RetentionClass(0, 1), RetentionClass(36_500, 36_500)):
        name = stated_name("advice", days)
        assert RETENTION.kept_until_us(name, 7) == 7 + days.keep_days * DAY_US
        assert RETENTION.expires_at_us(name, 7) == (None if days.expire_days is None else 7 + days.expire_days * DAY_US)


@pytest.mark.parametrize("name", ["", "gone", "own/1", "own/-1/never", "own/1/0", "own/1/2/3", "/1/2", "own/1/ 2", "own/١/2"])
def test_a_class_that_says_no_days_is_kept_for_ever(name: str) -> None:
    assert RETENTION.kept_until_us(name, 0) is None
    assert RETENTION.expires_at_us(name, 0) is None


def test_no_class_of_the_settings_can_look_like_one_that_a_tenant_states() -> None:
    assert not [name for name in CLASSES if "/" in name]
    with pytest.raises(ValueError, match="pattern"):
        VaultSettings.model_validate(
            {"key_store_file": "k", "local_key_dir": "d", "retention": {"classes": {"own/0/1": {}}, "default": "own/0/1"}}
        )


async def test_a_change_of_retention_concerns_the_records_that_begin_after_it(place: Place, clock: Clock) -> None:
    vault = local(place.root)
    stated = Stated(vault)
    async with place.open(clock_us=clock) as logs, open_records(vault, logs, ("bank", "broker"), stated) as records:

        async def said(**context: Any) -> tuple[str, str]:
            asked = intent(prompt=b"a question", **context)
            index = (await logs.append(asked, want_receipt=False)).leaf_index
            leaf = json.loads((await logs.leaf_at(asked.context.tenant, index)).data)
            return asked.context.request_id, leaf["retention_class"]

        before, of_settings = await said()
        stated.say(tenant(retention=keeps(20)))
        kept, of_tenant = await said()
        stated.say(tenant(retention=keeps(0, 5)))
        brief, of_change = await said()
        stated.say(tenant())
        _, of_settings_again = await said()
        _, of_another = await said(tenant="broker")
        assert (of_settings, of_tenant, of_change) == ("standard", "own/20/never", "own/0/5")
        assert of_settings_again == of_another == "standard"

        async def kept_until_day(request_id: str) -> int | None:
            (found,) = await records.search(OFFICER, RecordScope("request", request_id), 1)
            assert found.kept_until_us is not None
            return (found.kept_until_us - found.record.recorded_at_us) // DAY_US

        assert [await kept_until_day(each) for each in (before, kept, brief)] == [0, 20, 0]


async def test_what_a_tenant_wants_kept_is_kept_and_what_it_wants_gone_goes(place: Place, clock: Clock) -> None:
    stated = keeping_of([tenant(retention=keeps(20, purposes=("advice",)))], local(place.root)).retentions
    async with RecordsPlace(place).open(clock=clock) as opened:
        opened.records._vault.recorder._own_retention = stated.get  # type: ignore[union-attr]
        advice, chat = await opened.say(purpose="advice", subjects=("c-1",)), await opened.say(purpose="chit_chat")
        officer = OFFICER
        with pytest.raises(failures.RetentionApplies):
            await opened.records.erase(officer, RecordScope("subject", "c-1"), basis="asked", allow_partial=False)
        assert await opened.upkeep.expire("bank") == 0
        clock.advance(11)
        assert await opened.upkeep.expire("bank") == 1
        with pytest.raises(failures.RecordErased):
            await opened.records.read(officer, chat.request_id)
        clock.advance(10)
        assert await opened.upkeep.expire("bank") == 0
        assert (await opened.records.read(officer, advice.request_id)).payloads
        erased = await opened.records.erase(officer, RecordScope("subject", "c-1"), basis="asked", allow_partial=False)
        assert erased.records == 1


async def test_what_nothing_would_obey_is_refused(tmp_path: Path, engine: TransitServer) -> None:
    retains, keyed = tenant(retention=keeps(1)), tenant(keys={"transit": {"name": "bank-2026"}})
    for resource in (retains, keyed):
        with pytest.raises(ValueError, match="not kept here"):
            keeping_of([resource], None)
        with pytest.raises(ValueError, match="not kept here"):
            keeping_of([resource], local(tmp_path, tenants=("broker",)))
    with pytest.raises(ValueError, match="in files"):
        keeping_of([keyed], local(tmp_path))
    assert keeping_of([retains], local(tmp_path)).retentions.keys() == {"bank"}
    assert keeping_of([keyed], in_transit(engine, tmp_path)).keys == {"bank": TransitKey("transit", "bank-2026")}
    assert keeping_of([tenant()], None) == Keeping()


def test_no_two_tenants_have_one_key(tmp_path: Path, engine: TransitServer) -> None:
    vault = in_transit(engine, tmp_path)
    of_another = tenant("broker", keys={"transit": {"name": "lionrock-bank"}})
    same = tenant("broker", keys={"transit": {"name": "bank-2026"}}), tenant(keys={"transit": {"name": "bank-2026"}})
    for resources in ((tenant(), of_another), same):
        with pytest.raises(ValueError, match="same key"):
            keeping_of(resources, vault)
    elsewhere = tenant("broker", keys={"transit": {"name": "lionrock-bank", "mount": "other"}})
    assert keeping_of((tenant(), elsewhere), vault).keys["broker"].mount == "other"


async def test_the_key_that_a_tenant_names_wraps_what_is_made_from_then_on(
    place: Place, engine: TransitServer, clock: Clock
) -> None:
    vault = in_transit(engine, place.root)
    stated = Stated(vault)
    texts: list[str] = []
    async with place.open(clock_us=clock) as logs, open_records(vault, logs, ("bank", "broker"), stated) as records:
        for name in (None, "bank-2026", "bank-2027"):
            stated.say(tenant() if name is None else tenant(keys={"transit": {"name": name}}))
            texts.append(await one_record(records, logs.append))
        for request_id in texts:
            (part,) = (await records.read(OFFICER, request_id)).payloads
            assert part.payload == b"a question"
        del engine.keys["bank-2026"]
        with pytest.raises(failures.KeysUnavailable):
            await records.read(OFFICER, texts[1])
        assert (await records.read(OFFICER, texts[2])).payloads
    with closing(KeyStore(vault.key_store_file)) as keys:
        wrapped = [found.wrapped for request_id in texts if (found := keys.record_key("bank", request_id)) is not None]
    assert wrapped[0].startswith(b"vault:v1:")
    assert wrapped[1].startswith(b"key:transit/bank-2026:vault:v1:")
    assert wrapped[2].startswith(b"key:transit/bank-2027:vault:v1:")


async def test_a_former_key_is_not_needed_once_what_it_wrapped_is_wrapped_anew(
    place: Place, engine: TransitServer, clock: Clock
) -> None:
    transit = in_transit(engine, place.root).transit
    assert transit is not None
    named: dict[str, TransitKey] = {}
    management = TransitKeyManagement(transit, named.get)
    async with RecordsPlace(place).open(clock=clock, management=management, cached_keys=0) as opened:
        of_person = await opened.say(subjects=("c-1",))
        of_nobody = await opened.say()
        erased = await opened.say(subjects=("c-2",))
        assert await opened.upkeep.rewrap_keys("bank") == 0
        named["bank"] = TransitKey("transit", "bank-2026")
        of_case = await opened.say(case_id="CASE-1")
        await opened.records.erase(OFFICER, RecordScope("subject", "c-2"), basis="asked", allow_partial=False)
        assert await opened.upkeep.rewrap_keys("bank") == 3  # of the index, of a person, of a record that concerns nobody
        assert await opened.upkeep.rewrap_keys("bank") == 0
        del engine.keys["lionrock-bank"]
        for said in (of_person, of_nobody, of_case):
            assert (await opened.records.read(OFFICER, said.request_id)).payloads[0].payload == said.prompt
        (found,) = await opened.records.search(OFFICER, RecordScope("subject", "c-1"), 10)
        assert found.record.request_id == of_person.request_id
        with pytest.raises(failures.RecordErased):
            await opened.records.read(OFFICER, erased.request_id)
        later = await opened.say(subjects=("c-1",))
        assert (await opened.records.read(OFFICER, later.request_id)).payloads


async def test_wrapping_anew_goes_on_after_a_failure_and_comes_back_to_the_usual_key_where_it_is_named(
    place: Place, engine: TransitServer, clock: Clock
) -> None:
    transit = in_transit(engine, place.root).transit
    assert transit is not None
    named = {"bank": TransitKey("transit", "bank-2026")}
    management = TransitKeyManagement(transit, named.get)
    async with RecordsPlace(place).open(clock=clock, management=management, cached_keys=0) as opened:
        said = [await opened.say() for _ in range(3)]
        del named["bank"]  # as when the tenant's file is removed
        assert await opened.upkeep.rewrap_keys("bank") == 0
        assert (await opened.records.read(OFFICER, said[0].request_id)).payloads
        engine.answer = 503, b"{}"
        named["bank"] = TransitKey("transit", "lionrock-bank")
        with pytest.raises(failures.KeysUnavailable):
            await opened.upkeep.rewrap_keys("bank")
        engine.answer = None
        assert await opened.upkeep.rewrap_keys("bank") == 4
        assert await opened.upkeep.rewrap_keys("bank") == 0
        engine.keys.pop("bank-2026")
        for each in said:
            assert (await opened.records.read(OFFICER, each.request_id)).payloads


def test_a_key_that_was_destroyed_meanwhile_does_not_come_back(tmp_path: Path) -> None:
    with closing(KeyStore(tmp_path / "keys.db")) as keys:
        keys.add_keys([StoredKey("bank", "r-1", b"by the old", (), 0), StoredKey("bank", "r-2", b"by the old", (), 0)])
        found = keys.wrapped_otherwise("bank", b"by the new", 10)
        assert [each.name for each in found] == ["r-1", "r-2"]
        keys.destroy("bank", ["r-1"])
        keys.exchange("bank", [(each, b"by the new") for each in found])
        assert keys.record_key("bank", "r-1") is None
        assert keys.wrapped_otherwise("bank", b"by the new", 10) == []


async def one_record(records: Records, append: Callable[..., Any]) -> str:
    asked = intent(prompt=b"a question")
    await append(asked, want_receipt=False)
    return asked.context.request_id


def test_files_are_followed_and_one_that_cannot_be_obeyed_changes_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "tenants"
    directory.mkdir()

    def write(resource: TenantResource) -> None:
        file = directory / ".new"
        file.write_text(resource.model_dump_json(by_alias=True, exclude_none=True))
        file.rename(directory / f"{resource.name}.json")

    write(tenant(retention=keeps(20)))
    files = TenantsDir(directory, frozenset(), local(tmp_path))
    assert files.start(()) == ("bank",)
    assert files.keeping.retentions["bank"].class_of("advice") == "own/20/never"
    write(tenant("broker", keys={"transit": {"name": "b"}}))
    files._tell(files._files.settle(files._files.read(), files._accept))
    assert files.keeping.retentions.keys() == {"bank"}
    assert files.keeping.keys == {}
    (directory / "bank.json").unlink()
    files._tell(files._files.settle(files._files.read(), files._accept))
    assert files.keeping == Keeping()


def test_a_tenant_that_states_no_purposes_for_a_class_has_it_as_default_alone() -> None:
    retention = keeping_of(
        [tenant(retention=keeps(3, purposes=("advice",)))],
        VaultSettings.model_validate({"key_store_file": "k", "local_key_dir": "d"}),
    ).retentions["bank"]
    assert isinstance(retention, Retention)
    assert (retention.class_of("advice"), retention.class_of("anything")) == ("own/3/never", "rest/0/10")
