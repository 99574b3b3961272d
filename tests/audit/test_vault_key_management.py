"""What every KeyManagement does, and what each does when it cannot."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from transit_server import TransitServer, transit_server

from lionrock.audit.failures import KeysUnavailable
from lionrock.audit.vault.key_management import KeyManagement, LocalKeyManagement
from lionrock.audit.vault.settings import TransitSettings
from lionrock.audit.vault.transit import TransitKeyManagement
from mesh_ca import DevCa

KEY = bytes(range(32))
TOKEN = "hvs.test-token"


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[TransitServer]:
    with transit_server(TOKEN, DevCa(tmp_path / "ca").issue("audit")) as server:
        server.keys = {f"lionrock-{tenant}": os.urandom(32) for tenant in ("bank", "broker")}
        yield server


def transit(engine: TransitServer, tmp_path: Path, **changes: object) -> TransitKeyManagement:
    token_file = tmp_path / "token"
    token_file.write_text(TOKEN + "\n")
    authority = DevCa(tmp_path / "ca").issue("gateway").ca_file
    settings = {
        "address": f"https://localhost:{engine.server_port}",
        "token_file": token_file,
        "ca_file": authority,
        "timeout_s": 2.0,
    }
    return TransitKeyManagement(TransitSettings.model_validate(settings | changes))


@pytest.fixture(params=["local", "transit"])
async def management(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[KeyManagement]:
    opened: KeyManagement
    if request.param == "local":
        opened = LocalKeyManagement(tmp_path / "kek")
    else:
        opened = transit(request.getfixturevalue("engine"), tmp_path)
    for tenant in ("bank", "broker"):
        await opened.prepare(tenant)
    yield opened
    await opened.close()


async def test_what_was_wrapped_is_unwrapped_and_never_wrapped_alike_twice(management: KeyManagement) -> None:
    wrapped = await management.wrap("bank", KEY, b"place")
    assert KEY not in wrapped
    assert await management.unwrap("bank", wrapped, b"place") == KEY
    assert await management.wrap("bank", KEY, b"place") != wrapped


async def test_nothing_else_is_unwrapped(management: KeyManagement) -> None:
    wrapped = await management.wrap("bank", KEY, b"place")
    for tenant, sealed, aad in (
        ("broker", wrapped, b"place"),
        ("bank", wrapped, b"elsewhere"),
        ("bank", wrapped[:-1] + bytes([wrapped[-1] ^ 1]), b"place"),
        ("bank", wrapped[:-8], b"place"),
        ("bank", b"", b"place"),
        ("bank", os.urandom(60), b"place"),
        ("nobody", wrapped, b"place"),
    ):
        with pytest.raises(KeysUnavailable):
            await management.unwrap(tenant, sealed, aad)


async def test_preparing_twice_keeps_the_key(management: KeyManagement) -> None:
    wrapped = await management.wrap("bank", KEY, b"")
    await management.prepare("bank")
    assert await management.unwrap("bank", wrapped, b"") == KEY


# Files


async def test_a_key_file_is_private_and_outlives_the_process(tmp_path: Path) -> None:
    first = LocalKeyManagement(tmp_path)
    await first.prepare("bank")
    wrapped = await first.wrap("bank", KEY, b"")
    assert first.path("bank").stat().st_mode & 0o777 == 0o600
    assert await LocalKeyManagement(tmp_path).unwrap("bank", wrapped, b"") == KEY


@pytest.mark.parametrize("content", ["", "lionrock-tenant-key-v1 00", "0" * 64, "lionrock-tenant-key-v1 " + "zz" * 32, "\xff"])
async def test_a_file_that_is_no_key_is_refused_without_quoting_it(tmp_path: Path, content: str) -> None:
    management = LocalKeyManagement(tmp_path)
    management.path("bank").write_text(content, encoding="latin-1")
    management.path("bank").chmod(0o600)
    with pytest.raises(KeysUnavailable) as refused:
        await management.wrap("bank", KEY, b"")
    assert not content or content not in str(refused.value)


async def test_a_key_that_others_can_read_or_that_is_gone_is_refused(tmp_path: Path) -> None:
    management = LocalKeyManagement(tmp_path)
    await management.prepare("bank")
    management.path("bank").chmod(0o604)
    with pytest.raises(KeysUnavailable, match="chmod 600"):
        await management.wrap("bank", KEY, b"")
    management.path("bank").unlink()
    with pytest.raises(KeysUnavailable, match="restore"):
        await management.wrap("bank", KEY, b"")


# The engine over HTTPS


async def test_calls_carry_the_token_of_the_moment_and_a_namespace(engine: TransitServer, tmp_path: Path) -> None:
    management = transit(engine, tmp_path, namespace="team/audit")
    await management.wrap("bank", KEY, b"")
    path, headers = engine.calls[-1]
    assert path == "/v1/transit/encrypt/lionrock-bank"
    assert (headers["X-Vault-Token"], headers["X-Vault-Namespace"]) == (TOKEN, "team/audit")
    engine.token = "hvs.renewed"
    with pytest.raises(KeysUnavailable, match="403"):
        await management.wrap("bank", KEY, b"")
    (tmp_path / "token").write_text("hvs.renewed")
    await management.wrap("bank", KEY, b"")
    (tmp_path / "token").unlink()
    with pytest.raises(KeysUnavailable, match="token"):
        await management.wrap("bank", KEY, b"")
    await management.close()


@pytest.mark.parametrize(
    "answer",
    [
        (500, b"{}"),
        (200, b"not json"),
        (200, b"[]"),
        (200, b'{"data": 1}'),
        (200, b'{"data": {}}'),
        (200, b'{"data": {"ciphertext": 7, "plaintext": 7}}'),
        (200, b'{"data": {"ciphertext": "plain", "plaintext": "AAAA"}}'),
        (200, b'{"data": {"plaintext": "' + b"A" * 70_000 + b'"}}'),
        (307, b""),
    ],
)
async def test_a_nonsensical_answer_is_no_key(engine: TransitServer, tmp_path: Path, answer: tuple[int, bytes]) -> None:
    management = transit(engine, tmp_path)
    wrapped = await management.wrap("bank", KEY, b"")
    engine.answer = answer
    with pytest.raises(KeysUnavailable):
        await management.wrap("bank", KEY, b"")
    with pytest.raises(KeysUnavailable):
        await management.unwrap("bank", wrapped, b"")
    engine.answer = None
    assert await management.unwrap("bank", wrapped, b"") == KEY
    await management.close()


async def test_an_engine_that_hangs_is_given_up_by_the_deadline(engine: TransitServer, tmp_path: Path) -> None:
    engine.hanging = threading.Event()
    management = transit(engine, tmp_path, timeout_s=0.2)
    with pytest.raises(KeysUnavailable):
        await management.wrap("bank", KEY, b"")
    engine.hanging.set()
    engine.hanging = None
    await management.close()


async def test_an_engine_with_another_authority_is_not_spoken_to(engine: TransitServer, tmp_path: Path) -> None:
    stranger = DevCa(tmp_path / "stranger").issue("gateway").ca_file
    management = transit(engine, tmp_path, ca_file=stranger)
    with pytest.raises(KeysUnavailable):
        await management.wrap("bank", KEY, b"")
    assert engine.calls == []
    await management.close()


async def test_what_is_wrapped_begins_with_the_mark_where_there_is_one(management: KeyManagement) -> None:
    mark = management.mark("bank")
    assert mark is None or (await management.wrap("bank", KEY, b"place")).startswith(mark)


@pytest.mark.parametrize(
    "wrapped",
    [b"", b"vault:v1:", b"key:transit:vault:v1:AAAA", b"key:transit/../sys/k:vault:v1:AAAA", b"key:a/b c:vault:v1:AAAA", b"x" * 40],
)
async def test_transit_is_asked_nothing_about_what_no_key_wrapped(engine: TransitServer, tmp_path: Path, wrapped: bytes) -> None:
    management = transit(engine, tmp_path)
    with pytest.raises(KeysUnavailable):
        await management.unwrap("bank", wrapped, b"place")
    assert engine.calls == [] or wrapped == b"vault:v1:"
    await management.close()


async def test_a_destroyed_key_opens_nothing_and_the_others_do(management: KeyManagement) -> None:
    wrapped, other = await management.wrap("bank", KEY, b"place"), await management.wrap("broker", KEY, b"place")
    destroyed = await management.destroy("bank")
    assert await management.destroy("bank") is destroyed
    assert destroyed is isinstance(management, LocalKeyManagement), "whoever manages the keys of an engine destroys them"
    if destroyed:
        with pytest.raises(KeysUnavailable):
            await management.unwrap("bank", wrapped, b"place")
    assert await management.unwrap("broker", other, b"place") == KEY


async def test_the_file_of_a_destroyed_key_is_overwritten_before_its_name_goes(tmp_path: Path) -> None:
    management = LocalKeyManagement(tmp_path / "kek")
    await management.prepare("bank")
    kept = tmp_path / "another-name"
    os.link(management.path("bank"), kept)
    await management.destroy("bank")
    assert not management.path("bank").exists()
    assert set(kept.read_bytes()) == {0}
    await management.close()
