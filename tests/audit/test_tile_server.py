"""Tiles over HTTP: to whom, in which form; by the real server with mutual TLS, and read back by the tile client."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from audit_harness import Place
from kill_rounds import audit_process, write_config
from pydantic import ValidationError
from starlette.testclient import TestClient
from tile_harness import GrowingLog

from lionrock.audit.publisher import LogPublisher
from lionrock.audit.store.sqlite import SqliteLogStore
from lionrock.audit.tile_server import ReaderPolicy, tile_app
from lionrock.audit.tile_settings import TileSettings
from lionrock.audit.tile_sinks import DirectorySink
from lionrock.audit.tile_sources import DirectorySource, HttpSource
from lionrock.chassis.http_server import start_http_server
from lionrock.chassis.http_settings import HttpServerSettings
from lionrock.chassis.identity import SpiffeId
from lionrock.chassis.settings import TlsSettings
from lionrock.chassis.tls import WatchedClientContext
from lionrock.tlog.tile_client import SourceFailed, TreeReader, open_checkpoint, read_checkpoint
from lionrock.tlog.tiles import split_bundle
from mesh_ca import TRUST_DOMAIN, DevCa

PLATFORM = "audit.example.hk"
AUDITOR = f"spiffe://{TRUST_DOMAIN}/tenant/bank/user/auditor"
REGULATOR = f"spiffe://{TRUST_DOMAIN}/tenant/regulator/workload/crawler"
CLERK = f"spiffe://{TRUST_DOMAIN}/tenant/bank/user/clerk"
READERS = {"bank": (AUDITOR, f"spiffe://{TRUST_DOMAIN}/tenant/regulator/workload/*"), "broker": (REGULATOR,)}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, GrowingLog]]:
    directory = tmp_path_factory.mktemp("published")
    logs = {}
    with closing(SqliteLogStore(directory / "audit.db")) as store, closing(DirectorySink(directory / "tiles")) as sink:
        for number, origin in enumerate((f"{PLATFORM}/audit", f"{PLATFORM}/audit/bank", f"{PLATFORM}/audit/broker")):
            log = logs[origin] = GrowingLog(store, origin, seed=number + 1)
            log.grow(600 + number)
            publisher = LogPublisher(log.published(), store, sink)
            while publisher.step():
                pass
    return directory / "tiles", logs


def application(directory: Path) -> Any:
    policy = ReaderPolicy(PLATFORM, TRUST_DOMAIN, READERS)
    origins = [f"{PLATFORM}/audit", f"{PLATFORM}/audit/bank", f"{PLATFORM}/audit/broker"]
    return tile_app(DirectorySource(directory), origins, policy.may_read)


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> DevCa:
    return DevCa(tmp_path_factory.mktemp("ca"))


def client(directory: Path, ca: DevCa, spiffe_id: str | None) -> TestClient:
    """A client of the application whose certificate TLS has verified."""
    chain = [] if spiffe_id is None else [ca.issue(spiffe_id=spiffe_id).cert_file.read_text(encoding="ascii")]
    app = application(directory)

    async def with_certificate(scope: Any, receive: Any, send: Any) -> None:
        scope["extensions"] = {**scope.get("extensions", {}), "tls": {"client_cert_chain": chain, "client_cert_error": None}}
        await app(scope, receive, send)

    return TestClient(with_certificate)


def test_files_have_the_types_and_cache_headers_of_the_specification(published: Any, ca: DevCa) -> None:
    directory, logs = published
    bank = client(directory, ca, AUDITOR)
    checkpoint = bank.get(f"/{PLATFORM}/audit/bank/checkpoint")
    assert checkpoint.status_code == 200
    assert checkpoint.text == logs[f"{PLATFORM}/audit/bank"].head.checkpoint
    assert checkpoint.headers["content-type"] == "text/plain; charset=utf-8"
    assert checkpoint.headers["cache-control"] == "no-cache"
    for name in ("tile/0/000", "tile/0/002.p/89", "tile/1/000.p/2", "tile/entries/001"):
        answer = bank.get(f"/{PLATFORM}/audit/bank/{name}", headers={"accept-encoding": "identity"})
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/octet-stream")
        assert answer.headers["cache-control"] == "private, max-age=31536000, immutable"
        assert answer.content == (directory / f"{PLATFORM}/audit/bank/{name}").read_bytes()
        assert "content-encoding" not in answer.headers
        assert bank.head(f"/{PLATFORM}/audit/bank/{name}").status_code == 200


def test_bundles_are_compressed_for_whoever_takes_it(published: Any, ca: DevCa) -> None:
    bank = client(published[0], ca, AUDITOR)
    path = f"/{PLATFORM}/audit/bank/tile/entries/000"
    answer = bank.get(path, headers={"accept-encoding": "gzip"})
    assert (answer.headers["content-encoding"], answer.headers["vary"]) == ("gzip", "Accept-Encoding")
    assert len(split_bundle(answer.content, 256)) == 256
    assert int(answer.headers["content-length"]) < len(answer.content) / 4
    assert "content-encoding" not in bank.get(path, headers={"accept-encoding": "gzip;q=0, br"}).headers
    assert "content-encoding" not in bank.get(f"/{PLATFORM}/audit/bank/tile/0/000", headers={"accept-encoding": "gzip"}).headers


@pytest.mark.parametrize(
    ("who", "readable"),
    [
        (AUDITOR, {"", "/bank"}),
        (REGULATOR, {"", "/bank", "/broker"}),
        (CLERK, {""}),
        (f"spiffe://{TRUST_DOMAIN}/service/gateway", {""}),
        (None, set()),
    ],
)
def test_a_log_is_read_by_those_who_may(published: Any, ca: DevCa, who: str | None, readable: set[str]) -> None:
    caller = client(published[0], ca, who)
    for log in ("", "/bank", "/broker", "/nobody"):
        for name in ("checkpoint", "tile/0/000", "tile/9/000", "tile/x"):
            status = caller.get(f"/{PLATFORM}/audit{log}/{name}").status_code
            if log in readable:
                assert status == (200 if name in {"checkpoint", "tile/0/000"} else 404)
            else:
                assert status == 403, "whether the log or the file is there must not be told"


def test_identities_of_another_domain_and_prefixes_of_names_are_nobody(published: Any) -> None:
    policy = ReaderPolicy(PLATFORM, TRUST_DOMAIN, READERS)
    bank = f"{PLATFORM}/audit/bank"
    for wrong in (
        "spiffe://elsewhere/tenant/bank/user/auditor",
        AUDITOR + "2",
        AUDITOR + "/x",
        f"spiffe://{TRUST_DOMAIN}/tenant/bank",
    ):
        assert not policy.may_read(SpiffeId.parse(wrong), bank)
    assert not policy.may_read(SpiffeId.parse("spiffe://elsewhere/service/gateway"), f"{PLATFORM}/audit")
    assert policy.may_read(SpiffeId.parse(AUDITOR), bank)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        f"/{PLATFORM}/audit/bank/",
        f"/{PLATFORM}/audit/bank/.lock",
        f"/{PLATFORM}/audit/bank/checkpoint/",
        f"/{PLATFORM}/audit/bank/tile/../../broker/checkpoint",
        f"/{PLATFORM}/audit/bank/tile/%2e%2e/%2e%2e/broker/checkpoint",
        f"/{PLATFORM}/audit/bank/tile/0/%2e%2e/0/000",
        f"/{PLATFORM}/audit/bank/tile/0/000%00",
        "/.drafts/1",
    ],
)
def test_nothing_but_the_files_of_a_log_is_served(published: Any, ca: DevCa, path: str) -> None:
    assert client(published[0], ca, AUDITOR).get(path).status_code in {403, 404}


def test_nothing_is_written(published: Any, ca: DevCa) -> None:
    bank = client(published[0], ca, AUDITOR)
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert bank.request(method, f"/{PLATFORM}/audit/bank/checkpoint").status_code == 405


def shown(tls: TlsSettings) -> Callable[[], ssl.SSLContext]:
    """What a reader shows to a server whose address is not in its certificate."""
    made = ssl.create_default_context(cafile=tls.ca_file)
    made.check_hostname = False
    made.load_cert_chain(tls.cert_file, tls.key_file)
    return lambda: made


async def test_the_tile_client_reads_a_log_through_the_real_server(published: Any, ca: DevCa) -> None:
    directory, logs = published
    settings = HttpServerSettings(tls=ca.issue("audit"), client_certificates="required")
    server = await start_http_server(application(directory), settings)
    origin = f"{PLATFORM}/audit/bank"
    try:
        for prefix in (origin, "audit/bank"):  # the second for a host that is called as the origin's first part

            def read(prefix: str = prefix) -> int:
                source = HttpSource(f"https://127.0.0.1:{server.port}/{prefix}", tls=shown(ca.issue(spiffe_id=AUDITOR)))
                signed = open_checkpoint(read_checkpoint(source), origin, [logs[origin].key])
                tree = TreeReader(source, signed.checkpoint)
                tree.verify_tiles()
                return sum(len(leaves) for _, leaves in tree.entries(0, signed.checkpoint.size))

            assert await asyncio.to_thread(read) == 601
        named = WatchedClientContext(ca.issue(spiffe_id=AUDITOR)).latest
        address = f"https://127.0.0.1:{server.port}/{origin}"
        checked = HttpSource(address, tls=named, server_name="audit.lionrock.internal")
        assert await asyncio.to_thread(checked.read, "checkpoint", 1000) is not None
        with pytest.raises(SourceFailed, match="SSLError"):
            await asyncio.to_thread(
                HttpSource(address, tls=named, server_name="gateway.lionrock.internal").read, "checkpoint", 1000
            )
        clerk = HttpSource(f"https://127.0.0.1:{server.port}/{origin}", tls=shown(ca.issue(spiffe_id=CLERK)))
        with pytest.raises(SourceFailed, match="status 403"):
            await asyncio.to_thread(clerk.read, "checkpoint", 1000)
    finally:
        await server.stop()


async def test_a_reader_whose_certificate_is_renewed_shows_the_new_one_without_a_restart(
    published: Any, ca: DevCa, tmp_path: Path
) -> None:
    directory, _ = published
    now_s = 0.0
    server = await start_http_server(
        application(directory), HttpServerSettings(tls=ca.issue("audit"), client_certificates="required")
    )
    own = ca.issue(spiffe_id=CLERK, directory=tmp_path / "own")
    try:
        context = WatchedClientContext(own, clock=lambda: now_s).latest
        address = f"https://127.0.0.1:{server.port}/{PLATFORM}/audit/bank"
        source = HttpSource(address, tls=context, server_name="audit.lionrock.internal")
        with pytest.raises(SourceFailed, match="status 403"):
            await asyncio.to_thread(source.read, "checkpoint", 1000)
        (tmp_path / "own" / "tls.key").write_text("half of a renewal")
        now_s += 2
        assert context() is context()
        with pytest.raises(SourceFailed, match="status 403"):  # the last good one
            await asyncio.to_thread(source.read, "checkpoint", 1000)
        ca.issue(spiffe_id=AUDITOR, directory=tmp_path / "own")
        now_s += 2
        assert await asyncio.to_thread(source.read, "checkpoint", 1000) is not None
    finally:
        await server.stop()


async def test_the_service_publishes_and_serves_its_own_log_of_logs(place: Place, tmp_path: Path) -> None:
    ca = DevCa(place.root / "mesh")
    config = write_config(place, ca.issue("audit"))
    server_tls = {name: str(path) for name, path in ca.issue("audit").model_dump().items()}
    tiles = {
        "directory": str(tmp_path / "tiles"),
        "interval_s": 0.05,
        "http": {
            "listen": "127.0.0.1:0",
            "tls": server_tls,
            "client_certificates": "required",
            "ready_file": str(tmp_path / "http-port"),
        },
        "http_readers": {"bank": [AUDITOR]},
    }
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tiles": tiles}), encoding="utf-8")
    async with audit_process(place, config) as (process, _):
        port = int((tmp_path / "http-port").read_text(encoding="ascii"))
        source = HttpSource(f"https://127.0.0.1:{port}/{PLATFORM}/audit/bank", tls=shown(ca.issue(spiffe_id=AUDITOR)))
        async with asyncio.timeout(20):
            while (note := await asyncio.to_thread(source.read, "checkpoint", 10_000)) is None:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert note.decode().startswith(f"{PLATFORM}/audit/bank\n0\n")
        process.terminate()
        assert await process.wait() == 0


@pytest.mark.parametrize(
    ("http", "said"),
    [
        ({"listen": "127.0.0.1:0"}, "must be set"),
        ({"tls": {"cert_file": "c", "key_file": "k", "ca_file": "a"}, "client_certificates": "optional"}, "must be set"),
    ],
)
def test_tiles_are_never_served_without_certificates(http: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=said):
        TileSettings.model_validate({"directory": str(tmp_path), "http": http})
    required = {"tls": {"cert_file": "c", "key_file": "k", "ca_file": "a"}, "client_certificates": "required"}
    with pytest.raises(ValidationError, match="none is set"):
        TileSettings.model_validate({"http": required})
