"""What is cosigned and what is not, by the statuses of c2sp.org/tlog-witness."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from witness_harness import NAME, ORIGIN, GrowingLog, Reply, WitnessPlace, call, request

from lionrock.chassis.http_server import start_http_server
from lionrock.chassis.http_settings import HttpServerSettings
from lionrock.tlog.checkpoint import Checkpoint
from lionrock.tlog.keys import SignatureType, VerifierKey
from lionrock.tlog.merkle import EMPTY_ROOT
from lionrock.tlog.note import open_note, sign_note
from lionrock.witness.app import WAITING_MAX, witness_app
from lionrock.witness.failures import (
    CannotStart,
    Inconsistent,
    MalformedRequest,
    OtherSize,
    StateFailed,
    UnknownLog,
    UntrustedLog,
    WitnessError,
)
from lionrock.witness.keys import load_keys
from lionrock.witness.state import NEVER, Cosigned, WitnessState, _connect, open_state
from lionrock.witness.witness import Witness


@pytest.fixture
def place(tmp_path: Path) -> WitnessPlace:
    place = WitnessPlace(tmp_path)
    place.make_keys()
    return place


def keys_of(place: WitnessPlace) -> list[VerifierKey]:
    return [signer.verifier_key for signer in load_keys(place.key_file, place.name)]


async def test_a_growing_log_is_cosigned_by_every_key_of_the_witness(place: WitnessPlace) -> None:
    log = GrowingLog()
    async with place.serve() as port:
        old = 0
        for size in (0, 1, 1, 5, 8, 300):
            reply = await call(port, log.request(old, size))
            assert (reply.status, reply.content_type) == (200, "text/plain; charset=utf-8")
            opened = open_note(log.note(size) + reply.body, [log.key, *keys_of(place)])
            assert [signature.key for signature in opened.signatures] == [log.key, *keys_of(place)]
            assert [signature.key.type for signature in opened.signatures[1:]] == [
                SignatureType.ML_DSA_44_COSIGNATURE,
                SignatureType.ED25519_COSIGNATURE,
            ]
            assert all(signature.time_s for signature in opened.signatures[1:])
            old = size


async def test_a_wrong_old_size_gets_409_with_the_right_one(place: WitnessPlace) -> None:
    log = GrowingLog()
    async with place.serve() as port:
        await call(port, log.request(0, 5))
        for old, size in ((0, 8), (4, 8), (6, 8), (0, 3)):
            reply = await call(port, log.request(old, size))
            assert (reply.status, reply.content_type, reply.body) == (409, "text/x.tlog.size", "5\n")


async def test_every_refusal_has_the_status_of_the_specification(place: WitnessPlace) -> None:
    log, fork, stranger = GrowingLog(), GrowingLog(branch="fork"), GrowingLog(seed=9)
    broken = log.note(8).replace("\n8\n", "\n9\n")
    async with place.serve() as port:
        assert (await call(port, GrowingLog("unknown.example").request(0, 5))).status == 404
        assert (await call(port, stranger.request(0, 5))).status == 403
        assert (await call(port, request(0, [], broken))).status == 403
        assert (await call(port, request(9, [], log.note(8)))).status == 400
        assert (await call(port, request(0, [bytes(32)], log.note(8)))).status == 422
        assert (await call(port, request(0, [], sign_note(Checkpoint(ORIGIN, 0, bytes(32)).text(), log.signer)))).status == 422
        assert (await call(port, log.request(0, 5))).status == 200
        assert (await call(port, fork.request(5, 5))).status == 422
        assert (await call(port, fork.request(5, 8))).status == 422
        assert (await call(port, request(5, [], log.note(8)))).status == 422
        assert (await call(port, request(5, [bytes(32)], log.note(5)))).status == 422
        assert (await call(port, request(5, log.proof(5, 8)[::-1], log.note(8)))).status == 422
        assert (await call(port, log.request(5, 8))).status == 200
        assert (await call(port, None)).status == 405
        assert (await call(port, b"", "/somewhere")).status == 404


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\n\n",
        b"old 0",
        b"old 0\n",
        b"old 00\n\n{note}",
        b"old -1\n\n{note}",
        b"old  0\n\n{note}",
        b"Old 0\n\n{note}",
        b"old 0\r\n\r\n{note}",
        "old ٠\n\n{note}".encode(),
        b"old 0\n!!!\n\n{note}",
        b"old 0\nAAAA\n\n{note}",
        b"old 0\n" + b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n" * 64 + b"\n{note}",
        b"old 0\n\n\xff{note}",
    ],
)
def test_a_body_that_is_not_the_format_is_malformed(body: bytes, place: WitnessPlace) -> None:
    body = body.replace(b"{note}", GrowingLog().note(1).encode())
    with place.open() as witness, pytest.raises((MalformedRequest, UnknownLog)):
        witness.add_checkpoint(body)


def test_a_size_that_no_tree_has_is_refused(place: WitnessPlace) -> None:
    log = GrowingLog()
    note = sign_note(Checkpoint(ORIGIN, 2**63, bytes(32)).text(), log.signer)
    with place.open() as witness:
        with pytest.raises(MalformedRequest):
            witness.add_checkpoint(request(0, [], note))
        assert witness.add_checkpoint(log.request(0, 1))


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110 - nothing tells us
            await asyncio.sleep(0.01)


async def test_requests_that_wait_are_bounded_also_when_their_clients_have_left(place: WitnessPlace) -> None:
    log, held, half = GrowingLog(), threading.Event(), WAITING_MAX // 2
    limits = HttpServerSettings(max_connections=2 * WAITING_MAX, max_concurrent_requests=2 * WAITING_MAX)
    with place.open() as witness, ThreadPoolExecutor(1) as worker:
        worker.submit(held.wait)
        server = await start_http_server(witness_app(witness, worker), limits)

        def ask() -> list[asyncio.Task[Reply]]:
            return [asyncio.create_task(call(server.port, log.request(0, 1))) for _ in range(half)]

        try:
            leaving = ask()
            await until(lambda: worker._work_queue.qsize() == half)
            for task in leaving:
                task.cancel()
            await until(lambda: server.running_requests == 0)
            staying = ask()
            await until(lambda: worker._work_queue.qsize() == WAITING_MAX)
            assert (await call(server.port, log.request(0, 1))).status == 503
            held.set()
            assert {reply.status for reply in await asyncio.gather(*staying)} == {409}
            assert (await call(server.port, log.request(1, 2))).status == 200
        finally:
            held.set()
            await server.stop(0)


async def test_a_body_beyond_the_bound_is_not_read(place: WitnessPlace) -> None:
    async with place.serve(max_body_bytes=64 * 1024) as port:
        with suppress(ConnectionError, EOFError):
            assert (await call(port, b"old 0\n\n" + b"x" * 100_000)).status == 413
        assert (await call(port, GrowingLog().request(0, 1))).status == 200


async def test_the_latest_checkpoint_can_be_fetched_by_the_hash_of_its_origin(place: WitnessPlace) -> None:
    log = GrowingLog()
    path = f"/{sha256(ORIGIN.encode()).hexdigest()}/checkpoint"
    async with place.serve() as port:
        assert (await call(port, None, path)).status == 404
        note = log.note(5) + "— stranger.example AAAAAAAA\n"
        await call(port, request(0, [], note))
        reply = await call(port, None, path)
        opened = open_note(reply.body, [log.key, *keys_of(place)])
        assert len(opened.signatures) == 3
        assert "stranger" not in reply.body
        assert (await call(port, None, f"/{'0' * 64}/checkpoint")).status == 404
        assert (await call(port, None, "/../witness.db/checkpoint")).status == 404


def test_each_log_is_remembered_by_itself(tmp_path: Path) -> None:
    one, two = GrowingLog("one.example"), GrowingLog("two.example", seed=2)
    place = WitnessPlace(tmp_path, {log.origin: (log.key,) for log in (one, two)})
    place.make_keys()
    with place.open() as witness:
        witness.add_checkpoint(one.request(0, 5))
        witness.add_checkpoint(two.request(0, 3))
        witness.add_checkpoint(one.request(5, 6))
        with pytest.raises(OtherSize) as conflict:
            witness.add_checkpoint(two.request(5, 6))
        assert conflict.value.size == 3
        impostor = GrowingLog("one.example", seed=2)
        with pytest.raises(UntrustedLog):
            witness.add_checkpoint(impostor.request(6, 7))


def test_a_restarted_witness_remembers(place: WitnessPlace) -> None:
    log, fork = GrowingLog(), GrowingLog(branch="fork")
    with place.open() as witness:
        witness.add_checkpoint(log.request(0, 5))
    with place.open() as witness:
        with pytest.raises(OtherSize):
            witness.add_checkpoint(fork.request(0, 8))
        with pytest.raises(Inconsistent):
            witness.add_checkpoint(fork.request(5, 8))
        assert witness.add_checkpoint(log.request(5, 8))


async def test_of_concurrent_extensions_of_one_size_one_is_cosigned(place: WitnessPlace) -> None:
    branches = [GrowingLog(branch=f"branch {number} ", fork_at=5) for number in range(8)]
    async with place.serve(max_concurrent_requests=64) as port:
        assert (await call(port, branches[0].request(0, 5))).status == 200
        replies = await asyncio.gather(*(call(port, branch.request(5, 8)) for branch in branches))
        assert sorted(reply.status for reply in replies) == [200] + [409] * 7


def test_a_state_belongs_to_one_process(place: WitnessPlace) -> None:
    with place.open(), pytest.raises(CannotStart, match="used by another process"):
        place.open().__enter__()
    with place.open() as witness:
        assert witness.add_checkpoint(GrowingLog().request(0, 1))


def test_of_two_who_write_one_state_one_succeeds(place: WitnessPlace) -> None:
    """Also without the lock, which is advisory: the state compares and swaps."""
    barrier = threading.Barrier(8)

    def extend(number: int) -> bool:
        with closing(WitnessState(_connect(place.state_file), BytesIO())) as state:
            old = state.last(ORIGIN)
            assert old == NEVER
            barrier.wait()
            try:
                state.advance(ORIGIN, old, Cosigned(5, bytes([number]) * 32, f"note {number}"))
            except OtherSize:
                return False
            return True

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(extend, range(8))) == 1


def test_a_state_that_fails_once_cosigns_no_more(place: WitnessPlace) -> None:
    log = GrowingLog()
    signers = load_keys(place.key_file, place.name)
    with closing(open_state(place.state_file, [str(signer.verifier_key) for signer in signers])) as state:
        witness = Witness(state, signers, place.logs)
        witness.add_checkpoint(log.request(0, 5))
        blocker = sqlite3.connect(place.state_file, isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        state._connection.execute("PRAGMA busy_timeout = 10")
        with pytest.raises(StateFailed):
            witness.add_checkpoint(log.request(5, 8))
        blocker.execute("ROLLBACK")
        blocker.close()
        with pytest.raises(StateFailed):
            witness.add_checkpoint(log.request(5, 8))
    with place.open() as witness:
        assert witness.add_checkpoint(log.request(5, 8))


def test_key_and_state_start_together_or_not_at_all(tmp_path: Path) -> None:
    place = WitnessPlace(tmp_path / "one")
    with pytest.raises(CannotStart, match="new-key"):
        place.open().__enter__()
    place.make_keys()
    assert stat.S_IMODE(place.key_file.stat().st_mode) == 0o600
    with pytest.raises(CannotStart, match="made once"):
        place.make_keys()
    other = WitnessPlace(tmp_path / "two")
    other.make_keys()
    other.key_file.unlink()
    os.link(place.key_file, other.key_file)
    with pytest.raises(CannotStart, match="state of other keys"):
        other.open().__enter__()
    place.state_file.unlink()
    with pytest.raises(CannotStart, match="forgot"):
        place.open().__enter__()


def test_a_state_that_has_cosigned_gets_no_new_keys(place: WitnessPlace) -> None:
    with place.open() as witness:
        witness.add_checkpoint(GrowingLog().request(0, 5))
    place.key_file.unlink()
    with pytest.raises(CannotStart, match="backup"):
        place.make_keys()


def test_a_key_that_others_can_read_is_not_used(place: WitnessPlace) -> None:
    place.key_file.chmod(0o644)
    with pytest.raises(CannotStart, match="open to others"):
        load_keys(place.key_file, NAME)


def test_the_command_makes_keys_and_prints_what_verifies_them(tmp_path: Path) -> None:
    place = WitnessPlace(tmp_path)
    config = str(place.write_config())

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "lionrock.witness", *arguments, "--config", config],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    refused = run()
    assert refused.returncode == 1
    assert "new-key" in refused.stderr
    assert "Traceback" not in refused.stderr
    made = run("new-key")
    assert made.returncode == 0, made.stderr
    assert [VerifierKey.parse(line) for line in made.stdout.splitlines()] == keys_of(place)
    assert run("keys").stdout == made.stdout
    assert run("new-key").returncode == 1


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_edit_of_a_request_is_cosigned_for_another_tree(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    place = WitnessPlace(tmp_path_factory.mktemp("w"))
    place.make_keys("ed25519")
    log = GrowingLog()
    with place.open() as witness:
        witness.add_checkpoint(log.request(0, 5))
        body = bytearray(log.request(5, 13))
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, len(body) - 1))
            match data.draw(st.sampled_from(["flip", "delete", "double"])):
                case "flip":
                    body[at] ^= data.draw(st.integers(1, 255))
                case "delete":
                    del body[at : at + data.draw(st.integers(1, 50))]
                case _:
                    body[at:at] = body[at : at + data.draw(st.integers(1, 50))]
            if not body:
                break
        try:
            lines = witness.add_checkpoint(bytes(body))
        except WitnessError:
            return
        assert open_note(log.note(13) + lines, keys_of(place)).text == Checkpoint(ORIGIN, 13, log.root(13)).text()


def test_the_empty_tree_can_be_cosigned_and_grows_from_there(place: WitnessPlace) -> None:
    log = GrowingLog()
    assert log.root(0) == EMPTY_ROOT
    with place.open() as witness:
        witness.add_checkpoint(log.request(0, 0))
        witness.add_checkpoint(log.request(0, 0))
        assert witness.add_checkpoint(log.request(0, 7))
