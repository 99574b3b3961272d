"""Asking witnesses: real ones of this project over HTTP, and ones that lie, stall, or say that the log forked."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from audit_harness import PLATFORM, TENANTS, Place, intent
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lionrock.audit.failures import LeafNotCovered, LogReadOnly, StoreFailed, WitnessPolicyUnmet
from lionrock.audit.keys import KeyDirectory
from lionrock.audit.log import AuditLogs, Limits, open_logs
from lionrock.audit.platform_log import PlatformLog, open_platform_log
from lionrock.audit.settings import AuditSettings
from lionrock.audit.signed_checkpoints import SignedCheckpoints
from lionrock.audit.store.sqlite import SqliteLogStore
from lionrock.audit.witness_client import ANSWER_MAX_BYTES, WitnessUnreachable, connect_witness
from lionrock.audit.witness_settings import WitnessPeer
from lionrock.audit.witnesses import Witnesses
from lionrock.audit.witnessing import CosignedFile, Policy, Witnessing
from lionrock.chassis.http_server import start_http_server
from lionrock.chassis.http_settings import HttpServerSettings
from lionrock.chassis.settings import ServerSettings, TlsSettings
from lionrock.tlog.checkpoint import Checkpoint
from lionrock.tlog.keys import Cosigner, SignatureType, VerifierKey, signer_from_seed
from lionrock.tlog.note import open_note, signature_line
from lionrock.witness.app import witness_app
from lionrock.witness.keys import load_keys, new_keys
from lionrock.witness.state import open_state
from lionrock.witness.witness import Witness
from mesh_ca import DevCa

ORIGIN = f"{PLATFORM}/audit"


@dataclass(slots=True)
class Clock:
    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def witness(
    root: Path, name: str, log_key: str, *, algorithm: str = "ed25519", http: Any = None
) -> AsyncIterator[WitnessPeer]:
    """A witness of this project over HTTP, which keeps its state in `root` from one life to the next."""
    key_file, state_file = root / name / "key", root / name / "state.db"
    if not key_file.exists():
        new_keys(name, [algorithm], key_file, state_file)
    signers = load_keys(key_file, name)
    with (
        closing(open_state(state_file, [str(signer.verifier_key) for signer in signers])) as state,
        ThreadPoolExecutor(1) as worker,
    ):
        app = witness_app(Witness(state, signers, {ORIGIN: [VerifierKey.parse(log_key)]}), worker)
        server = await start_http_server(app, HttpServerSettings.model_validate(http or {}))
        scheme = "https" if http else "http"
        try:
            yield WitnessPeer(url=f"{scheme}://127.0.0.1:{server.port}", verifier_key=str(signers[0].verifier_key))
        finally:
            await server.stop(0)


@asynccontextmanager
async def scripted(
    answer: Callable[[bytes], Awaitable[bytes]], name: str = "liar.example"
) -> AsyncIterator[tuple[WitnessPeer, Cosigner]]:
    """A server that answers each request's bytes as told, whatever the protocol says."""
    cosigner = Cosigner(name, Ed25519PrivateKey.generate())

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(
                    next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")).split(b":")[1]
                )
                writer.write(await answer(await reader.readexactly(length)))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        yield WitnessPeer(url=f"http://127.0.0.1:{port}/some/prefix/", verifier_key=str(cosigner.verifier_key)), cosigner
    finally:
        server.close()


def http(status: int, body: bytes, content_type: bytes = b"text/plain") -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s" % (status, content_type, len(body), body)


@dataclass(slots=True)
class Service:
    logs: AuditLogs
    platform_log: PlatformLog
    kept: CosignedFile
    clock: Clock

    def witnessing(self, peers: list[WitnessPeer], threshold: int | None = None, **policy: Any) -> tuple[Witnessing, Witnesses]:
        witnesses = Witnesses(peers, self.platform_log.consistency_proof, timeout_s=policy.pop("timeout_s", 10))
        judged = Policy(threshold or len(peers), policy.pop("refresh_s", 3600), policy.pop("require_within_s", None))
        return Witnessing(self.logs, self.platform_log, witnesses, judged, self.kept, clock=self.clock), witnesses

    async def grow(self, leaves: int = 1) -> None:
        for _ in range(leaves):
            await self.logs.append(intent("bank"), want_receipt=False)


@asynccontextmanager
async def service(place: Place) -> AsyncIterator[Service]:
    with closing(SqliteLogStore(place.store_file)) as store, closing(SignedCheckpoints(place.signed_file)) as signed:
        keys = KeyDirectory(place.key_dir)
        opened = open_platform_log(PLATFORM, store, keys, signed)
        logs = open_logs(store, keys, signed, TENANTS, platform=PLATFORM, region="", limits=Limits(256, 64, 60))
        async with logs:
            kept = CosignedFile(place.key_dir / "cosigned-checkpoint")
            yield Service(logs, PlatformLog(opened, logs, store, signed), kept, Clock())


def cosigners(note: str, witnesses: Witnesses) -> list[str]:
    return [signature.key.name for signature in open_note(note, witnesses.keys).signatures]


async def test_enough_witnesses_make_a_checkpoint_count_and_proofs_lead_to_it(place: Place, tmp_path: Path) -> None:
    async with service(place) as running, AsyncExitStack() as stack:
        key = running.platform_log.verifier_key
        peers = [
            await stack.enter_async_context(witness(tmp_path, f"w{number}.example", key, algorithm=algorithm))
            for number, algorithm in enumerate(["ed25519", "ml-dsa-44", "ed25519"])
        ]
        witnessing, witnesses = running.witnessing(peers, threshold=3)
        await witnessing.begin()
        for size in (1, 2, 3, 4):
            await running.grow(size)
            await witnessing.step()
            assert witnessing.cosigned is not None
            head = witnessing.cosigned.head
            assert head.size == size
            assert cosigners(head.checkpoint, witnesses) == ["w0.example", "w1.example", "w2.example"]
            assert running.platform_log.attested is head
        proven = await running.platform_log.prove("bank", 9)
        assert proven.platform_proof.endswith(head.checkpoint)


async def test_a_witness_that_knows_an_older_size_is_caught_up(place: Place, tmp_path: Path) -> None:
    async with service(place) as running, witness(tmp_path, "w.example", running.platform_log.verifier_key) as peer:
        first, _ = running.witnessing([peer])
        await first.begin()
        for _ in range(5):
            await running.grow()
            await first.step()
        second, _ = running.witnessing([peer])  # which believes that the witness knows nothing
        await running.grow(3)
        await second.step()
        assert second.cosigned is not None
        assert second.cosigned.head.size == 6


async def test_fewer_witnesses_than_the_policy_wants_count_for_nothing(place: Place, tmp_path: Path) -> None:
    async with service(place) as running, witness(tmp_path, "w.example", running.platform_log.verifier_key) as peer:
        absent = WitnessPeer(
            url="http://127.0.0.1:1", verifier_key=str(Cosigner("a.example", Ed25519PrivateKey.generate()).verifier_key)
        )
        witnessing, _ = running.witnessing([peer, absent], threshold=2)
        await witnessing.begin()
        await running.grow()
        await witnessing.step()
        assert witnessing.cosigned is None
        assert running.platform_log.attested.size == 0
        one_is_enough, _ = running.witnessing([peer, absent], threshold=1)
        await one_is_enough.step()
        assert one_is_enough.cosigned is not None


async def test_the_cosigned_checkpoint_survives_a_restart_of_everything(place: Place, tmp_path: Path) -> None:
    async with service(place) as running:
        key = running.platform_log.verifier_key
        async with witness(tmp_path, "w.example", key) as peer:
            witnessing, _ = running.witnessing([peer])
            await witnessing.begin()
            await running.grow(3)
            await witnessing.step()
            kept = witnessing.cosigned
            assert kept is not None
        await running.grow()
        await witnessing.step()  # the witness is gone
        assert witnessing.cosigned is kept
    async with service(place) as running, witness(tmp_path, "w.example", key) as peer:
        witnessing, _ = running.witnessing([peer])
        await witnessing.begin()
        assert witnessing.cosigned == kept
        assert (await running.platform_log.prove("bank", 2)).platform_proof.endswith(kept.head.checkpoint)
        await witnessing.step()
        assert witnessing.cosigned is not None
        assert witnessing.cosigned.head.size == 2
        assert await running.platform_log.prove("bank", 3)


async def test_nothing_is_proven_by_a_checkpoint_that_no_witness_has_seen(place: Place) -> None:
    absent = WitnessPeer(url="http://127.0.0.1:1", verifier_key=W1)
    async with service(place) as running:
        witnessing, _ = running.witnessing([absent])
        await witnessing.begin()
        await running.grow()
        await witnessing.step()
        with pytest.raises(LeafNotCovered):
            await running.platform_log.prove("bank", 0)
    async with service(place) as running:
        witnessing, _ = running.witnessing([absent])
        await witnessing.begin()
        with pytest.raises(LeafNotCovered):
            await running.platform_log.prove("bank", 0)
    async with service(place) as running:
        await running.platform_log.begin(None)  # settings without witnesses
        assert await running.platform_log.prove("bank", 0)


async def test_rolling_both_places_back_is_seen_by_what_was_cosigned(place: Place, tmp_path: Path) -> None:
    async with service(place) as running:
        await running.grow()
        await running.platform_log.advance()
    for part in (place.store_file.parent, place.key_dir):
        shutil.copytree(part, tmp_path / "backup" / part.name)
    async with service(place) as running, witness(tmp_path, "w.example", running.platform_log.verifier_key) as peer:
        witnessing, _ = running.witnessing([peer])
        await witnessing.begin()
        for _ in range(3):
            await running.grow()
            await witnessing.step()
    kept = (place.key_dir / "cosigned-checkpoint").read_bytes()
    for part in (place.store_file.parent, place.key_dir):
        shutil.rmtree(part)
        shutil.copytree(tmp_path / "backup" / part.name, part)
    (place.key_dir / "cosigned-checkpoint").write_bytes(kept)
    async with service(place) as running, witness(tmp_path, "w.example", running.platform_log.verifier_key) as peer:
        witnessing, _ = running.witnessing([peer])
        await witnessing.begin()
        assert "rolled back" in (running.platform_log.read_only or "")
        with pytest.raises(LogReadOnly):
            await running.grow()  # the tenants' logs were rolled back with it
        with pytest.raises(LogReadOnly):
            await witnessing.step()
        with pytest.raises(LeafNotCovered):
            await running.platform_log.prove("bank", 0)


async def test_a_witnessing_task_that_fails_does_not_leave_answers_running(place: Place, tmp_path: Path) -> None:
    async with service(place) as running, witness(tmp_path, "w.example", running.platform_log.verifier_key) as peer:
        witnessing, _ = running.witnessing([peer], require_within_s=300)
        await witnessing.begin()
        await witnessing.step()
        assert witnessing.cosigned is not None
        running.clock.now = witnessing.cosigned.since_s
        await running.grow()
        running.clock.now += 301  # and no step comes any more
        with pytest.raises(WitnessPolicyUnmet):
            await running.grow()


async def test_a_kept_checkpoint_that_does_not_meet_todays_policy_does_not_count(place: Place, tmp_path: Path) -> None:
    async with service(place) as running, AsyncExitStack() as stack:
        key = running.platform_log.verifier_key
        one = await stack.enter_async_context(witness(tmp_path, "one.example", key))
        two = await stack.enter_async_context(witness(tmp_path, "two.example", key))
        witnessing, _ = running.witnessing([one])
        await witnessing.begin()
        await running.grow()
        await witnessing.step()
        for peers, threshold, counts in ([one, two], 1, True), ([one, two], 2, False), ([two], 1, False):
            stricter, _ = running.witnessing(peers, threshold=threshold)
            await stricter.begin()
            assert (stricter.cosigned is not None) is counts
        (place.key_dir / "cosigned-checkpoint").write_text("scribbled over\n")
        again, _ = running.witnessing([one])
        await again.begin()
        assert again.cosigned is None


async def test_a_log_that_stands_still_is_cosigned_again_when_its_cosignatures_age(place: Place, tmp_path: Path) -> None:
    async with service(place) as running, witness(tmp_path, "w.example", running.platform_log.verifier_key) as peer:
        witnessing, _ = running.witnessing([peer], refresh_s=60)
        await witnessing.begin()
        await running.grow()
        await witnessing.step()
        first = witnessing.cosigned
        assert first is not None
        running.clock.now = first.since_s + 30
        await witnessing.step()
        assert witnessing.cosigned is first
        running.clock.now = first.since_s + 61
        await witnessing.step()
        assert witnessing.cosigned is not first
        assert witnessing.cosigned.head.size == first.head.size


async def test_appends_stop_only_where_settings_want_it_and_go_on_when_witnesses_are_back(place: Place, tmp_path: Path) -> None:
    async with service(place) as running:
        async with witness(tmp_path, "w.example", running.platform_log.verifier_key) as peer:
            patient, _ = running.witnessing([peer])
            await patient.begin()
            running.clock.now += 10**6
            await patient.step()
            await running.grow()
            strict, _ = running.witnessing([peer], require_within_s=300)
            await strict.begin()
            with pytest.raises(WitnessPolicyUnmet, match="300 s"):
                await running.grow()
            running.clock.now = 0  # the statement is then of today
            await strict.step()
            await running.grow()
            assert strict.cosigned is not None
            running.clock.now = strict.cosigned.since_s + 299
            await strict.step()
            await running.grow()
        running.clock.now = strict.cosigned.since_s + 301
        await strict.step()
        with pytest.raises(WitnessPolicyUnmet):
            await running.grow()


async def test_a_witness_over_tls_is_asked_under_the_authority_that_is_named(place: Place, tmp_path: Path) -> None:
    ca = DevCa(tmp_path / "ca")
    tls = ca.issue("audit")
    async with service(place) as running:
        key = running.platform_log.verifier_key
        async with witness(tmp_path, "w.example", key, http={"tls": tls.model_dump()}) as peer:
            trusting = peer.model_copy(update={"ca_file": tls.ca_file, "url": peer.url.replace("127.0.0.1", "localhost")})
            for candidate, counts in (peer, False), (trusting, True):
                witnessing, _ = running.witnessing([candidate])
                await running.grow()
                await witnessing.step()
                assert (witnessing.cosigned is not None) is counts


@pytest.mark.parametrize("what", ["forked", "ahead"])
async def test_a_witness_that_contradicts_the_log_raises_an_alarm(
    place: Place, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def answer(body: bytes) -> bytes:
        return http(422, b"") if what == "forked" else http(409, b"1000\n", b"text/x.tlog.size")

    async with service(place) as running, scripted(answer) as (peer, _):
        witnessing, witnesses = running.witnessing([peer])
        await running.grow()
        await witnessing.step()
        assert witnessing.cosigned is None
        assert len(witnesses.alarms) == 1
        assert any(record.levelname == "ERROR" and "contradicts" in record.getMessage() for record in caplog.records)


async def never(body: bytes) -> bytes:
    await asyncio.Event().wait()
    raise AssertionError


async def endless(body: bytes) -> bytes:
    return b"HTTP/1.1 200 X\r\nContent-Length: 99999999\r\n\r\n" + bytes(ANSWER_MAX_BYTES + 1)


async def long_headers(body: bytes) -> bytes:
    return b"HTTP/1.1 200 X\r\n" + b"X: y\r\n" * 10_000


def says(*answers: bytes) -> Callable[[bytes], Awaitable[bytes]]:
    left = list(answers)

    async def answer(body: bytes) -> bytes:
        return left.pop(0) if len(left) > 1 else left[0]

    return answer


@pytest.mark.parametrize(
    "answer",
    [
        never,
        endless,
        long_headers,
        says(b"not HTTP at all\r\n\r\n"),
        says(b""),
        says(http(200, b"")),
        says(http(200, b"\xff\xfe")),
        says(http(200, "— liar.example AAAAAAAA\n".encode())),
        says(http(409, b"", b"text/x.tlog.size")),
        says(http(409, b"0\n", b"text/plain")),
        says(http(409, b"0\n", b"text/x.tlog.size")),
        says(http(409, b"99999999999999999999\n", b"text/x.tlog.size")),
        says(http(404, b"")),
        says(http(500, b"")),
        says(b"HTTP/1.1 302 X\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"),
    ],
)
async def test_a_witness_that_misbehaves_costs_its_time_and_no_more(answer: Any, place: Place) -> None:
    async with service(place) as running, scripted(answer) as (peer, _):
        witnessing, witnesses = running.witnessing([peer], timeout_s=0.5)
        await running.grow()
        await asyncio.wait_for(witnessing.step(), 10)
        assert witnessing.cosigned is None
        assert witnesses.alarms == []


@pytest.mark.parametrize("fault", ["other tree", "future", "no time", "bad signature"])
async def test_a_cosignature_that_is_not_over_this_checkpoint_now_does_not_count(place: Place, fault: str) -> None:
    made: list[Cosigner] = []

    async def answer(body: bytes) -> bytes:
        text = body.decode().partition("\n\n")[2].rpartition("\n\n")[0] + "\n"
        checkpoint = Checkpoint.parse(text)
        cosigner = made[0]
        match fault:
            case "other tree":
                text = Checkpoint(checkpoint.origin, checkpoint.size, os.urandom(32)).text()
            case "future":
                cosigner = Cosigner(cosigner.verifier_key.name, cosigner._private_key, clock=lambda: 2**40)
            case "no time":
                cosigner = Cosigner(cosigner.verifier_key.name, cosigner._private_key, clock=lambda: 0)
            case _:
                line = signature_line(text, cosigner)
                return http(200, (line[:-9] + ("A" if line[-9] != "A" else "B") + line[-8:]).encode())
        return http(200, signature_line(text, cosigner).encode())

    async with service(place) as running, scripted(answer) as (peer, cosigner):
        made.append(cosigner)
        witnessing, _ = running.witnessing([peer])
        await running.grow()
        await witnessing.step()
        assert witnessing.cosigned is None


async def test_a_witness_that_fails_is_left_alone_for_a_while(place: Place) -> None:
    asked = 0

    async def answer(body: bytes) -> bytes:
        nonlocal asked
        asked += 1
        return http(500, b"")

    async with service(place) as running, scripted(answer) as (peer, _):
        witnessing, _ = running.witnessing([peer])
        for _ in range(5):
            await running.grow()
            await witnessing.step()
        assert asked == 1


async def test_a_cosigned_checkpoint_that_cannot_be_kept_is_not_shown(place: Place, tmp_path: Path) -> None:
    async with service(place) as running, witness(tmp_path, "w.example", running.platform_log.verifier_key) as peer:
        witnessing, _ = running.witnessing([peer])
        await running.grow()
        (place.key_dir / ".cosigned-checkpoint.new").mkdir()
        with pytest.raises(StoreFailed):
            await witnessing.step()
        assert witnessing.cosigned is None


W1, W1_TOO, W2 = (
    str(signer_from_seed(name, type_, bytes([seed]) * 32).verifier_key)
    for name, type_, seed in (
        ("w1.example", SignatureType.ED25519_COSIGNATURE, 1),
        ("w1.example", SignatureType.ML_DSA_44_COSIGNATURE, 2),
        ("w2.example", SignatureType.ED25519_COSIGNATURE, 3),
    )
)
LOG_KEY = str(signer_from_seed("w3.example", SignatureType.ED25519, bytes(32)).verifier_key)


def audit_settings(tmp_path: Path, **changes: Any) -> AuditSettings:
    server = ServerSettings(tls=TlsSettings(cert_file=tmp_path, key_file=tmp_path, ca_file=tmp_path), trust_domain="td")
    return AuditSettings(
        server=server, platform=PLATFORM, tenants=("bank",), store_file=tmp_path / "s", key_dir=tmp_path, **changes
    )


def peers(*keys: str) -> list[dict[str, str]]:
    return [{"url": f"https://w{number}.example/prefix", "verifier_key": key} for number, key in enumerate(keys)]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"witnesses": peers(LOG_KEY)}, "key of a log"),
        ({"witnesses": peers("nonsense")}, "verifier_key"),
        ({"witnesses": [{"url": "ftp://w.example", "verifier_key": W1}]}, "url"),
        ({"witnesses": [{"url": "https://w.example/?q=1", "verifier_key": W1}]}, "url"),
        ({"witnesses": peers(W1, W1_TOO)}, "names one twice"),
        ({"witnesses": peers(W1, W2), "witness_policy": {"threshold": 3}}, "exceeds the number"),
        ({"witnesses": peers(W1), "witness_policy": {"threshold": 0}}, "threshold"),
        ({"witness_policy": {"require_within_s": 60}}, "needs witnesses"),
        ({"signature": "rsa"}, "signature"),
    ],
)
def test_a_policy_that_cannot_be_met_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    assert audit_settings(tmp_path, witnesses=peers(W1, W2), witness_policy={"threshold": 2, "require_within_s": 60}).witnesses
    with pytest.raises(ValidationError, match=why):
        audit_settings(tmp_path, **changes)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.binary(max_size=300) | st.sampled_from([b"HTTP/1.1 200 X\r\n", b"Content-Length: 3\r\n", b"\r\n", b"\r\n\r\n"]),
        max_size=8,
    )
)
def test_random_answers_are_unreachable_and_nothing_worse(pieces: list[bytes]) -> None:
    async def converse() -> None:
        async def answer(body: bytes) -> bytes:
            return b"".join(pieces)

        async with scripted(answer) as (peer, _):
            try:
                async with asyncio.timeout(0.2), connect_witness(peer.url, None) as connection:
                    await connection.add_checkpoint(0, [], "note")
            except (WitnessUnreachable, TimeoutError):
                pass

    asyncio.run(converse())
