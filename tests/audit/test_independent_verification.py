"""Logs that the service wrote, judged by code that is not ours: golang.org/x/mod, transparency-dev/merkle, Tessera's fsck."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
from contextlib import AsyncExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from audit_harness import PLATFORM, Place, intent
from tile_harness import ORIGIN, GrowingLog, signer

from lionrock.audit.publisher import LogPublisher
from lionrock.audit.publishing import TilePublishing, tenant_logs
from lionrock.audit.store.sqlite import SqliteLogStore
from lionrock.audit.tile_sinks import DirectorySink
from lionrock.tlog.checkpoint import Checkpoint
from lionrock.tlog.keys import SignatureType, signer_from_seed
from lionrock.tlog.merkle import consistency_proof, root_at
from lionrock.tlog.note import VerifierKey, add_signatures, sign_note, signature_line
from lionrock.tlog.tiles import tiles_of

BANK = f"{PLATFORM}/audit/bank"


def run(program: Path, directory: Path, origin: str, key: str | VerifierKey, *options: str) -> subprocess.CompletedProcess[str]:
    command = [str(program), "-dir", str(directory), "-origin", origin, "-key", str(key), *options]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=100)


def verified(program: Path, directory: Path, origin: str, key: str | VerifierKey, *options: str) -> dict[str, Any]:
    done = run(program, directory, origin, key, *options)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["fsck_finished"]
    return found


async def test_receipts_proofs_and_tiles_of_a_growing_log_verify(log_verifier: Path, place: Place, tmp_path: Path) -> None:
    directory = tmp_path / "tiles"
    store = SqliteLogStore(place.store_file)
    proofs: dict[str, list[Any]] = {"receipts": [], "consistency": []}
    earlier: list[Checkpoint] = []
    async with place.open(store) as logs:
        (key,) = logs.verifier_keys("bank")
        publishing = TilePublishing(tenant_logs(logs, store, PLATFORM), store, lambda: DirectorySink(directory), interval_s=60)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(publishing.close)
            for size in (0, 1, 2, 3, 255, 256, 257, 511, 512, 700):
                events = [intent(prompt=b"prompt") for _ in range(size - logs.size("bank"))]
                appended = await asyncio.gather(*(logs.append(event, want_receipt=True) for event in events))
                proofs["receipts"] += [each.proof for each in appended[:3]]
                await publishing.publish()
                head = Checkpoint.parse(logs.checkpoint("bank").rpartition("\n\n")[0] + "\n")
                assert head.size == size
                for first in (one for one in earlier if one.size):
                    hashes, _ = await logs.consistency_proof("bank", first.size, size)
                    roots = {"first_root": first.root, "second_root": head.root}
                    encoded = {name: base64.b64encode(root).decode() for name, root in roots.items()}
                    path = [base64.b64encode(hash_).decode() for hash_ in hashes]
                    proofs["consistency"].append({"first": first.size, "second": size, "proof": path, **encoded})
                earlier.append(head)
                (tmp_path / "proofs.json").write_text(json.dumps(proofs), encoding="utf-8")
                found = verified(log_verifier, directory / BANK, BANK, key, "-proofs", str(tmp_path / "proofs.json"))
                assert found["size"] == size
                assert found["bundles"] == (size + 255) // 256
                assert found["tiles"] == sum(tile.level is not None for tile in tiles_of(size))
                assert found["given_proofs"] == len(proofs["receipts"]) + len(proofs["consistency"])
            proofs["receipts"] += [(await logs.receipt("bank", index)).proof for index in range(0, 700, 23)]
    (tmp_path / "proofs.json").write_text(json.dumps(proofs), encoding="utf-8")
    found = verified(log_verifier, directory / BANK, BANK, key, "-proofs", str(tmp_path / "proofs.json"))
    assert found["given_proofs"] > 70
    assert found["made_proofs"] > 50


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, VerifierKey]:
    """A published log with three levels of tiles, and its key."""
    directory = tmp_path_factory.mktemp("large")
    with closing(SqliteLogStore(directory / "audit.db")) as store, closing(DirectorySink(directory / "tiles")) as sink:
        log = GrowingLog(store)
        for growth in (300, 65_236, 400, 65):
            log.grow(growth)
            publisher = LogPublisher(log.published(), store, sink)
            while publisher.step():
                pass
        return directory / "tiles" / ORIGIN, log.key


def test_a_log_with_three_levels_of_tiles_verifies(log_verifier: Path, large: tuple[Path, VerifierKey]) -> None:
    found = verified(log_verifier, large[0], ORIGIN, large[1])
    assert (found["size"], found["bundles"], found["earlier_partials"]) == (66_001, 258, 2)
    assert found["tiles"] == 258 + 2 + 1


@pytest.fixture
def damaged(large: tuple[Path, VerifierKey], tmp_path: Path) -> Path:
    shutil.copytree(large[0], tmp_path / "log")
    for path in (tmp_path / "log").rglob("*"):
        path.chmod(0o700)
    return tmp_path / "log"


@pytest.mark.parametrize(
    "name", ["checkpoint", "tile/0/007", "tile/1/000", "tile/1/001.p/1", "tile/2/000.p/1", "tile/0/257.p/209", "tile/entries/200"]
)
def test_the_verifier_finds_a_changed_byte(log_verifier: Path, large: tuple[Path, VerifierKey], damaged: Path, name: str) -> None:
    content = bytearray((damaged / name).read_bytes())
    content[len(content) // 2] ^= 1
    (damaged / name).write_bytes(bytes(content))
    done = run(log_verifier, damaged, ORIGIN, large[1])
    assert done.returncode == 1
    assert done.stderr.startswith("log-verifier: ")


@pytest.mark.parametrize("name", ["tile/0/007", "tile/2/000.p/1", "tile/entries/257.p/209", "checkpoint"])
def test_the_verifier_misses_a_missing_file(log_verifier: Path, large: tuple[Path, VerifierKey], damaged: Path, name: str) -> None:
    (damaged / name).unlink()
    assert run(log_verifier, damaged, ORIGIN, large[1]).returncode == 1


@pytest.mark.parametrize(
    "name", ["tile/0/258", "tile/3/000.p/1", "tile/0/007.p/9", "tile/entries/257.p/210", "tile/x", "notes.txt"]
)
def test_the_verifier_refuses_a_file_too_many(
    log_verifier: Path, large: tuple[Path, VerifierKey], damaged: Path, name: str
) -> None:
    (damaged / name).parent.mkdir(parents=True, exist_ok=True)
    (damaged / name).write_bytes(b"\x00" * 32)
    assert run(log_verifier, damaged, ORIGIN, large[1]).returncode == 1


def test_the_verifier_refuses_another_key_another_origin_and_a_wrong_proof(log_verifier: Path, tmp_path: Path) -> None:
    with closing(SqliteLogStore(tmp_path / "audit.db")) as store, closing(DirectorySink(tmp_path / "tiles")) as sink:
        log = GrowingLog(store)
        log.grow(300)
        publisher = LogPublisher(log.published(), store, sink)
        while publisher.step():
            pass
        directory, read = tmp_path / "tiles" / ORIGIN, partial(store.subtree_hashes, log.log_id)
        proof, first_root = consistency_proof(100, 300, read), root_at(100, read)
    assert "checkpoint" in run(log_verifier, directory, ORIGIN, signer(ORIGIN, 9).verifier_key).stderr
    assert "checkpoint" in run(log_verifier, directory, f"{PLATFORM}/audit/broker", log.key).stderr
    for spoilt in range(len(proof) + 1):
        path = [bytes(32) if position == spoilt else hash_ for position, hash_ in enumerate(proof)]
        one = {
            "first": 100,
            "second": 300,
            "first_root": base64.b64encode(first_root).decode(),
            "second_root": base64.b64encode(log.head.root).decode(),
            "proof": [base64.b64encode(hash_).decode() for hash_ in path],
        }
        (tmp_path / "proofs.json").write_text(json.dumps({"consistency": [one]}), encoding="utf-8")
        done = run(log_verifier, directory, ORIGIN, log.key, "-proofs", str(tmp_path / "proofs.json"))
        assert done.returncode == (0 if spoilt == len(proof) else 1), done.stderr


ED25519, ML_DSA_44 = SignatureType.ED25519_COSIGNATURE, SignatureType.ML_DSA_44_COSIGNATURE


@pytest.mark.parametrize("types", [(ED25519, ED25519, ED25519), (ML_DSA_44, ML_DSA_44, ML_DSA_44), (ED25519, ML_DSA_44, ML_DSA_44)])
def test_cosignatures_verify_and_a_missing_one_is_found(
    log_verifier: Path, tmp_path: Path, types: tuple[SignatureType, ...]
) -> None:
    names = [f"witness.example/w{number}" for number in (1, 2, 3)]
    witnesses = [signer_from_seed(name, kind, name.encode().ljust(32)) for name, kind in zip(names, types, strict=True)]
    with closing(SqliteLogStore(tmp_path / "audit.db")) as store, closing(DirectorySink(tmp_path / "tiles")) as sink:
        log = GrowingLog(store)
        log.grow(300)
        text = log.head.checkpoint.rpartition("\n\n")[0] + "\n"
        cosigned = add_signatures(log.head.checkpoint, [signature_line(text, witness) for witness in witnesses[:2]])
        log.head = type(log.head)(log.head.size, log.head.root, cosigned)
        publisher = LogPublisher(log.published(), store, sink)
        while publisher.step():
            pass
    keys = [str(witness.verifier_key) for witness in witnesses]
    found = verified(log_verifier, tmp_path / "tiles" / ORIGIN, ORIGIN, log.key, "-witnesses", ",".join(keys[:2]))
    assert found["witnesses"] == 2
    done = run(log_verifier, tmp_path / "tiles" / ORIGIN, ORIGIN, log.key, "-witnesses", ",".join(keys))
    assert "w3 has not cosigned it" in done.stderr
    other = signer_from_seed(names[1], types[1], b"another key".ljust(32))  # of the same name
    done = run(log_verifier, tmp_path / "tiles" / ORIGIN, ORIGIN, log.key, "-witnesses", f"{keys[0]},{other.verifier_key}")
    assert "w2 has not cosigned it" in done.stderr


def test_a_log_that_signs_with_ml_dsa_44_verifies(log_verifier: Path, tmp_path: Path) -> None:
    with closing(SqliteLogStore(tmp_path / "audit.db")) as store, closing(DirectorySink(tmp_path / "tiles")) as sink:
        log = GrowingLog(store)
        log.grow(20)
        key = signer_from_seed(ORIGIN, ML_DSA_44, b"ml-dsa".ljust(32))
        text = log.head.checkpoint.rpartition("\n\n")[0] + "\n"
        log.head = type(log.head)(log.head.size, log.head.root, sign_note(text, key))
        publisher = LogPublisher(log.published(), store, sink)
        while publisher.step():
            pass
    assert verified(log_verifier, tmp_path / "tiles" / ORIGIN, ORIGIN, key.verifier_key)["size"] == 20
    done = run(log_verifier, tmp_path / "tiles" / ORIGIN, ORIGIN, log.key)
    assert done.returncode == 1
