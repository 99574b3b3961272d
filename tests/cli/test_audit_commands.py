"""`lionrock audit`, from the command line through a real gateway to a real audit service with a vault."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit_process import AuditProcess
from lionrock.audit.v1.records_pb2 import ExportRequest, ReadRecordRequest, StreamRecordRequest
from lionrock.audit.v1.records_pb2_grpc import RecordsServiceStub
from lionrock.audit.verify import check_opening, follow_links, verify_platform_proof, verify_receipt
from lionrock.chassis.channel import open_channel
from lionrock.chassis.settings import PeerSettings
from lionrock.cli import audit_reading
from lionrock.cli.audit import app
from lionrock.cli.errors import EXIT_REFUSED, EXIT_UNAVAILABLE, EXIT_USAGE, CommandError, report
from lionrock.common.v1 import chat_pb2
from lionrock.gateway.v1 import gateway_pb2 as gw
from lionrock.tenancy.vocabulary import ROLES
from lionrock.tlog.keys import Cosigner
from lionrock.tlog.proof import TlogProof
from mesh_ca import TRUST_DOMAIN, DevCa
from scripted_mesh import ScriptedMesh, tenant

_TIMEOUT_S = 60


def spiffe_id(role: str) -> str:
    return f"spiffe://{TRUST_DOMAIN}/tenant/bank/workload/{role.replace('_', '-')}"


def principals() -> dict[str, Any]:
    settings = tenant("bank", data_classes=["personal", "suspicion"])
    for role in ROLES:
        granted = {"roles": [role], "purposes": ["oversight"], "data_classes": ["personal", "suspicion"]}
        end = {"not_after": "2100-01-01T00:00:00Z"}
        settings["principals"].append({"spiffe_id": spiffe_id(role), **granted, **end})
    return settings


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, AuditProcess]]:
    directory = tmp_path_factory.mktemp("audit-commands")
    process = AuditProcess(directory, DevCa(directory))
    yield directory, process
    process.stop()


@dataclass(frozen=True, slots=True)
class Done:
    status: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


@dataclass(frozen=True, slots=True)
class Desk:
    """Where people sit who call `lionrock audit`."""

    mesh: ScriptedMesh
    state: Path
    capsys: pytest.CaptureFixture[str]
    audit: AuditProcess
    request_id: str
    answer: str

    async def run(self, role: str, *arguments: str) -> Done:
        """Run a command with the certificate of somebody with this role."""
        certificates = self.mesh.ca.issue(spiffe_id=spiffe_id(role)).cert_file.parent
        door = ["--gateway", self.mesh.targets["gateway"], "--certificates", str(certificates), "--state-dir", str(self.state)]
        return await self.locally(*arguments, *door)

    async def locally(self, *arguments: str) -> Done:
        self.capsys.readouterr()
        status = await asyncio.wait_for(asyncio.to_thread(_call, arguments), _TIMEOUT_S)
        out, err = self.capsys.readouterr()
        return Done(status, out, err)


def read(path: str) -> str:
    return Path(path).read_text(encoding="utf-8")


def _call(arguments: tuple[str, ...]) -> int:
    try:
        status = app(list(arguments), prog_name="lionrock audit", standalone_mode=False)
    except CommandError as error:
        return report(error)
    return int(status or 0)


async def chat(gateway: Any, text: str, **fields: Any) -> tuple[str, str]:
    """Ask one question. Returns the request id and the answer."""
    message = chat_pb2.ChatMessage(role=chat_pb2.CHAT_ROLE_USER, content=text)
    responses = [response async for response in gateway.Chat(gw.ChatRequest(messages=[message], **fields))]
    return responses[0].started.request_id, "".join(response.delta.text for response in responses)


@pytest.fixture
async def desk(service: tuple[Path, AuditProcess], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Desk]:
    directory, process = service
    mesh = ScriptedMesh(directory)
    mesh.targets = {"audit": process.target}
    mesh.tenants = [principals()]
    async with mesh.running(), mesh.calling() as gateway:
        said = await chat(gateway, "What is my balance?", subject_ids=["c-77"], case_id="case-1")
        yield Desk(mesh, tmp_path / "state", capsys, process, *said)


async def test_an_auditor_exports_and_checks_everything_offline(desk: Desk, tmp_path: Path) -> None:
    archive = tmp_path / "export.zip"
    exported = await desk.run("auditor", "export", "--payloads", "--tenant", "bank", "--output", str(archive), "--json")
    assert exported.status == 0, exported.err
    assert exported.rows[0]["payload_records"] >= 1
    keys = tmp_path / "keys.txt"
    keys.write_text((await desk.run("auditor", "keys")).out)
    checked = await desk.locally("verify", str(archive), "--keys-file", str(keys), "--json")
    assert checked.status == 0, checked.err
    told = checked.rows[0]
    assert (told["verified"], told["without_gap"], told["whole_time"]) == (True, True, True)
    assert told["payloads_opened"] >= 2
    assert told["platform"]["origin"] == "test/audit"
    witness = tmp_path / "witnesses.txt"
    witness.write_text(f"{Cosigner('w1.example', Ed25519PrivateKey.from_private_bytes(bytes(32))).verifier_key}\n")
    missed = await desk.locally("verify", str(archive), "--keys-file", str(keys), "--witnesses-file", str(witness), "--json")
    assert (missed.status, missed.rows[0]["reason"]) == (1, "WITNESSES_TOO_FEW")
    alone = tmp_path / "alone"
    alone.mkdir()
    with zipfile.ZipFile(archive) as opened:
        opened.extract("verify.py", alone)
    given = [option for key in keys.read_text().splitlines() if not key.startswith("#") for option in ("--key", key)]
    command = [sys.executable, "-I", str(alone / "verify.py"), str(archive), *given]
    proven = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, cwd=alone, env={})
    out, _ = await asyncio.wait_for(proven.communicate(), _TIMEOUT_S)
    assert proven.returncode == 0
    assert out.startswith(b"PROVEN ")


async def begun(records: Any, asked: ExportRequest) -> tuple[Any, bytes]:
    """Begin an export, as soon as there is room for it: what was cancelled takes a moment to end. Returns call and first piece."""
    while True:
        call = records.Export(asked)
        try:
            return call, (await anext(aiter(call))).data
        except grpc.aio.AioRpcError as refusal:
            if refusal.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise


async def test_exports_that_are_given_up_in_the_middle_leave_room_for_others(desk: Desk, tmp_path: Path) -> None:
    identity = desk.mesh.ca.issue(spiffe_id=spiffe_id("auditor"))
    async with desk.mesh.calling() as gateway:
        for number in range(20):
            await chat(gateway, f"question {number}")
    peer = PeerSettings(target=desk.mesh.targets["gateway"], service="gateway", timeout_s=30)
    async with open_channel(peer, identity, name="test") as channel:
        records = RecordsServiceStub(channel)
        for _ in range(6):  # two more than run at a time
            call, first = await begun(records, ExportRequest(with_payloads=True))
            assert first
            call.cancel()
        call, last = await begun(records, ExportRequest())
        async for piece in call:
            last = piece.data
    assert last.endswith(b"\0\0")  # the end of an archive: its comment has no bytes


async def test_an_export_is_refused_to_other_roles_and_leaves_no_file(desk: Desk, tmp_path: Path) -> None:
    for role in ("tenant_admin", "mlro", "platform_operator"):
        refused = await desk.run(role, "export", "--output", str(tmp_path / "export.zip"))
        assert refused.status == EXIT_REFUSED
        assert "ROLE_NOT_PERMITTED" in refused.err
        assert "docs/audit.md" in refused.err
    wrong = await desk.run("auditor", "export", "--tenant", "broker", "--output", str(tmp_path / "export.zip"))
    assert wrong.status == EXIT_USAGE
    assert not any(name.endswith((".zip", ".part")) for name in os.listdir(tmp_path))


async def test_a_leaf_is_proven_by_two_files_that_other_programs_read(desk: Desk, tmp_path: Path) -> None:
    keys = (await desk.run("auditor", "keys", "--json")).rows[0]
    rows = (await desk.run("auditor", "tail", "--lines", "100", "--json")).rows
    mine = next(row for row in rows if row["leaf"].get("request_id") == desk.request_id and row["leaf"]["type"] == "outcome")
    proven = await desk.run("auditor", "prove", str(mine["leaf_index"]), "--output", str(tmp_path), "--json")
    assert proven.status == 0, proven.err
    receipt = read(proven.rows[0]["receipt"])
    leaf = verify_receipt(receipt, keys["verifier_keys"])
    assert leaf.fields == mine["leaf"]
    platform = read(proven.rows[0]["platform_proof"])
    assert verify_platform_proof(platform, leaf, keys["platform_verifier_keys"], [], 0).origin == "test/audit"
    assert TlogProof.parse(receipt).leaf_index == mine["leaf_index"]
    again = await desk.run("user", "prove", proven.rows[0]["receipt"], "--output", str(tmp_path / "again"), "--json")
    assert again.status == 0, again.err
    by_index = await desk.run("user", "prove", str(mine["leaf_index"]), "--output", str(tmp_path / "again"))
    assert by_index.status == EXIT_REFUSED


async def test_what_was_said_is_shown_with_what_opens_the_leaves(desk: Desk) -> None:
    shown = await desk.run("reviewer", "show", desk.request_id, "--json")
    assert shown.status == 0, shown.err
    record = shown.rows[0]
    assert json.loads(record["prompt"])["messages"][0]["content"] == "What is my balance?"
    assert record["answer"] == desk.answer
    opening = next(one for one in record["openings"] if one["kind"] == "answer")
    leaf = (await desk.run("auditor", "show", str(opening["leaf_index"]), "--json")).rows[0]["leaf"]
    assert leaf["commitments"]["answer"]
    assert (await desk.run("reviewer", "show", "nonsense")).status == EXIT_USAGE
    people = await desk.run("reviewer", "show", desk.request_id)
    assert "What is my balance?" in people.out


async def test_a_record_in_pieces_is_shown_like_one_in_a_message(desk: Desk) -> None:
    await desk.run("privacy_officer", "correct", desk.request_id, "It is another sum.")
    certificates = desk.mesh.ca.issue(spiffe_id=spiffe_id("reviewer"))
    peer = PeerSettings(target=desk.mesh.targets["gateway"], service="gateway", timeout_s=10)
    async with open_channel(peer, certificates, name="test") as channel:
        records = RecordsServiceStub(channel)
        whole = await records.ReadRecord(ReadRecordRequest(request_id=desk.request_id))
        pieces = [piece async for piece in records.StreamRecord(StreamRecordRequest(request_id=desk.request_id))]
    gathered = audit_reading.gathered(pieces)
    assert gathered.position.leaf_index == whole.position.leaf_index + 1
    gathered.position.CopyFrom(whole.position)
    assert gathered == whole
    with pytest.raises(CommandError, match="not the whole record"):
        audit_reading.gathered(pieces[:-1])


async def test_holds_corrections_and_erasure_from_the_command_line(desk: Desk, tmp_path: Path) -> None:
    found = await desk.run("privacy_officer", "search", "--request", desk.request_id, "--json")
    assert [row["request_id"] for row in found.rows] == [desk.request_id]
    corrected = await desk.run("privacy_officer", "correct", desk.request_id, "It is another sum.", "--json")
    assert corrected.status == 0, corrected.err
    assert "It is another sum." in (await desk.run("reviewer", "show", desk.request_id)).out
    placed = (await desk.run("mlro", "hold", "place", "--request", desk.request_id, "--reason", "HCA 1/2026", "--json")).rows[0]
    listed = (await desk.run("mlro", "hold", "list", "--json")).rows
    assert [row["reason"] for row in listed if row["hold_id"] == placed["hold_id"]] == ["HCA 1/2026"]
    erasing = ("erase", "--request", desk.request_id, "--basis", "PDPO s.26", "--receipt", str(tmp_path / "erasure"), "--json")
    unasked = await desk.run("privacy_officer", *erasing)
    assert unasked.status == EXIT_USAGE
    assert "--yes" in unasked.err
    held = await desk.run("privacy_officer", *erasing, "--yes")
    assert held.status == 1
    assert "LEGAL_HOLD_APPLIES" in held.err
    assert (await desk.run("mlro", "hold", "release", placed["hold_id"], "--yes")).status == 0
    erased = await desk.run("privacy_officer", *erasing, "--yes")
    assert erased.status == 0, erased.err
    keys = (await desk.run("privacy_officer", "keys", "--json")).rows[0]
    leaf = verify_receipt((tmp_path / "erasure").read_text(), keys["verifier_keys"])
    assert leaf.fields["type"] == "erasure"
    salt = bytes.fromhex(erased.rows[0]["scope_salt"])
    with pytest.raises(Exception, match="commits to nothing"):
        check_opening(leaf, "scope", salt, b"")  # it is no payload's commitment
    gone = await desk.run("reviewer", "show", desk.request_id)
    assert (gone.status, "RECORD_ERASED" in gone.err) == (1, True)


async def test_the_log_book_is_written_and_read(desk: Desk) -> None:
    ground = "PDPO s.20(3)(d)"
    adding = ("refusals", "add", "access", "Somebody else's secret.", "--subject", "c-9", "--ground", ground, "--json")
    assert (await desk.run("privacy_officer", *adding)).status == 0
    entries = (await desk.run("auditor", "refusals", "list", "--json")).rows
    assert (entries[0]["request"], entries[0]["ground"], entries[0]["particulars"]) == ("access", ground, "Somebody else's secret.")
    wrong = await desk.run("privacy_officer", "refusals", "add", "oblivion", "x", "--subject", "c-9", "--ground", ground)
    assert wrong.status == EXIT_USAGE


async def test_counts_and_leaves_are_printed_for_people_and_programs(desk: Desk) -> None:
    counts = (await desk.run("tenant_admin", "stats", "--json")).rows[0]
    assert counts["leaves"] >= 2
    assert "leaves" in (await desk.run("tenant_admin", "stats")).out
    tail = await desk.run("tenant_admin", "tail", "-n", "2")
    assert len(tail.out.splitlines()) == 2
    assert "outcome" in tail.out
    assert (await desk.run("tenant_admin", "show", "999999")).status == 1


async def test_following_the_log_prints_what_comes(desk: Desk) -> None:
    certificates = desk.mesh.ca.issue(spiffe_id=spiffe_id("auditor")).cert_file.parent
    door = ["--gateway", desk.mesh.targets["gateway"], "--certificates", str(certificates), "--state-dir", str(desk.state)]
    command = [sys.executable, "-m", "lionrock.cli", "audit", "tail", "-n", "1", "--follow", "--interval", "0.05", "--json", *door]
    following = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    assert following.stdout is not None
    try:
        first = json.loads(await asyncio.wait_for(following.stdout.readline(), _TIMEOUT_S))
        async with desk.mesh.calling() as gateway:
            request_id, _ = await chat(gateway, "And now?")
        seen = [json.loads(await asyncio.wait_for(following.stdout.readline(), _TIMEOUT_S)) for _ in range(2)]
        assert [row["leaf_index"] for row in seen] == [first["leaf_index"] + 1, first["leaf_index"] + 2]
        assert {row["leaf"]["request_id"] for row in seen} == {request_id}
    finally:
        following.terminate()
        await following.wait()


async def test_a_store_is_checked_as_an_auditor_does(desk: Desk, tmp_path: Path) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text((await desk.run("auditor", "keys")).out)
    store, signed = str(desk.audit.store_file), str(desk.audit.signed_file)
    partial = await desk.locally("check", "--store", store, "--signed", signed, "--keys-file", str(keys), "--json")
    assert partial.status == 1
    assert {row["flaw"] for row in partial.rows[:-1]} == {"LOG_UNKNOWN"}  # the other tenant's, whose key was not given
    missing = await desk.locally("check", "--store", str(tmp_path / "none"), "--signed", signed, "--keys-file", str(keys))
    assert missing.status == 2
    assert "there is no store" in missing.err
    for name, why in (
        ("postgresql://audit:secret@db/audit", "a connection string is a secret"),
        (f"postgresql:{tmp_path / 'none'}", "there is no file"),
    ):
        misnamed = await desk.locally("check", "--store", name, "--signed", signed, "--keys-file", str(keys))
        assert (misnamed.status, why in misnamed.err, "secret@" in misnamed.err) == (2, True, False)
    dsn = tmp_path / "dsn"
    dsn.write_text("host=/nowhere dbname=audit password=hush")
    dsn.chmod(0o600)
    unreachable = await desk.locally("check", "--store", f"postgresql:{dsn}", "--signed", signed, "--keys-file", str(keys))
    assert (unreachable.status, "connecting to the store" in unreachable.err, "hush" in unreachable.err) == (4, True, False)


async def changed_key(desk: Desk, old: str, *options: str) -> dict[str, Any]:
    """Ask for the keys until there is another one than `old`. Returns them."""
    async with asyncio.timeout(_TIMEOUT_S):
        while True:
            told = (await desk.run("auditor", "keys", "--json", *options)).rows[0]
            if told["verifier_keys"][0] != old:
                return told


async def test_a_log_changes_its_key_while_it_is_served_and_a_link_leads_to_it(desk: Desk, tmp_path: Path) -> None:
    (old, *_) = (await desk.run("auditor", "keys", "--json")).rows[0]["verifier_keys"]
    rotate = ("rotate-key", "--config", str(desk.audit.config))
    made = await desk.locally(*rotate, "--tenant", "bank")
    assert made.status == 0, made.err
    told = await changed_key(desk, old, "--links", str(tmp_path))
    new = made.out.strip()
    assert told["verifier_keys"][:2] == [new, old]
    link = read(str(tmp_path / f"log-from-{old.split('+')[1]}.tlog-proof"))
    assert follow_links([old], [new], [link]) == [old, new]
    assert (await desk.run("auditor", "stats")).status == 0
    for wrong in (["--tenant", "nobody"], [], ["--tenant", "bank", "--platform"]):
        refused = await desk.locally(*rotate, *wrong)
        assert refused.status == EXIT_USAGE, refused.err


async def test_without_a_gateway_the_fix_is_said(desk: Desk, tmp_path: Path) -> None:
    certificates = desk.mesh.ca.issue(spiffe_id=spiffe_id("auditor")).cert_file.parent
    door = ("--gateway", "127.0.0.1:1", "--certificates", str(certificates), "--timeout", "5")
    done = await desk.locally("stats", *door)
    assert done.status == EXIT_UNAVAILABLE
    assert "--gateway" in done.err
    unreadable = tmp_path / "x.zip"
    unreadable.write_bytes(b"PK\x03\x04")
    key = (await desk.run("auditor", "keys", "--json")).rows[0]["verifier_keys"][0]
    bad = await desk.locally("verify", str(unreadable), "--key", key)
    assert (bad.status, "NOT PROVEN" in bad.err) == (1, True)
