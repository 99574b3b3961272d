"""The rows of API keys, over SQLite and PostgreSQL alike, as two gateways share them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from lionrock.gateway.identity import api_key_rows as rows
from lionrock.gateway.identity.api_key_rows import KeyNotFoundError, KeyRow, TooManyKeysError
from lionrock.gateway.identity.api_keys import ApiKey, KeyId, Marks, make_key_id, make_secret
from lionrock.gateway.identity.failures import TokenInvalidError
from lionrock.gateway.identity.live_keys import LiveKeys
from lionrock.gateway.state.opening import StateSettings, open_state
from lionrock.gateway.state.store import StateConflict, StateStore
from lionrock.gateway.tenants import Grant
from postgres_server import PostgresServer, running_postgres

MARKS = Marks(b"x" * 32)
GRANT = Grant(("user", "mlro"), ("testing", "drafting"), frozenset({"b", "a"}), frozenset({"public"}), "strict")
END_US = 4_000_000_000_000_000


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
async def stores(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[StateStore, StateStore]]:
    """Two gateways' views of one database."""
    settings = StateSettings(sqlite_file=tmp_path / "gateway.sqlite")
    if request.param == "postgres":
        dsn = tmp_path / "dsn"
        dsn.write_text(request.getfixturevalue("postgres").new_database())
        dsn.chmod(0o600)
        settings = StateSettings(postgres_dsn_file=dsn)
    async with AsyncExitStack() as stack:
        yield await stack.enter_async_context(open_state(settings)), await stack.enter_async_context(open_state(settings))


def made(tenant: str = "bank", key_id: KeyId | None = None) -> tuple[KeyRow, str]:
    key, secret = ApiKey(key_id or make_key_id(), tenant, "d", GRANT, "somebody", 1, END_US), make_secret()
    return KeyRow(key, MARKS.of(key, secret)), secret


async def test_a_key_comes_back_as_it_was_kept(stores: tuple[StateStore, StateStore]) -> None:
    row, _ = made()
    await rows.insert(stores[0], row)
    assert await rows.accepted(stores[1]) == (1, [row])
    assert await rows.without_successor(stores[1], "bank", row.key.key_id) == row.key
    with pytest.raises(StateConflict):
        await rows.insert(stores[1], row)


async def test_what_one_gateway_revokes_the_other_refuses_at_its_next_look(stores: tuple[StateStore, StateStore]) -> None:
    here, there = stores
    row, secret = made()
    await rows.insert(here, row)
    live = LiveKeys(there, MARKS)
    await live.look()
    assert live.key(row.key.key_id, secret, 1.0) == row.key
    await rows.revoke(here, "bank", row.key.key_id)
    await rows.revoke(here, "bank", row.key.key_id)
    await live.look()
    with pytest.raises(TokenInvalidError):
        live.key(row.key.key_id, secret, 1.0)
    with pytest.raises(KeyNotFoundError):
        await rows.without_successor(there, "bank", row.key.key_id)


async def test_a_key_has_one_successor_and_no_tenant_reaches_anothers(stores: tuple[StateStore, StateStore]) -> None:
    here, there = stores
    old, _ = made()
    await rows.insert(here, old)
    for tenant in ("broker", ""):
        with pytest.raises(KeyNotFoundError):
            await rows.revoke(there, tenant, old.key.key_id)
        with pytest.raises(KeyNotFoundError):
            await rows.rotate(there, old.key.key_id, END_US, made(tenant)[0])
    await rows.rotate(here, old.key.key_id, END_US - 1, made()[0])
    with pytest.raises(KeyNotFoundError):
        await rows.rotate(there, old.key.key_id, END_US - 1, made()[0])
    kept = {key.key_id: key for key in await rows.page(there, "bank", "", 10)}
    assert len(kept) == 2
    assert kept[old.key.key_id].retires_at_us == END_US - 1


async def test_a_tenant_has_so_many_keys_and_another_tenant_has_its_own(
    stores: tuple[StateStore, StateStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "MAX_KEYS_PER_TENANT", 2)
    first, _ = made()
    await rows.insert(stores[0], first)
    await rows.insert(stores[1], made()[0])
    with pytest.raises(TooManyKeysError):
        await rows.insert(stores[0], made()[0])
    await rows.insert(stores[0], made("broker")[0])
    await rows.revoke(stores[0], "bank", first.key.key_id)
    await rows.insert(stores[0], made()[0])
