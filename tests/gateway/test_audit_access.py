"""The gateway's door to the real audit service: from a chat to the erasure of its record, by role."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor

from lionrock.audit.records import permissions
from lionrock.audit.v1 import audit_pb2 as audit
from lionrock.audit.v1 import audit_pb2_grpc as audit_rpc
from lionrock.audit.v1 import records_pb2 as rec
from lionrock.audit.v1 import records_pb2_grpc as rec_rpc
from lionrock.audit.verify import verify_receipt
from lionrock.chassis.channel import open_channel
from lionrock.chassis.errors import remote_error
from lionrock.chassis.ids import uuid7
from lionrock.chassis.settings import PeerSettings
from lionrock.common.v1 import context_pb2 as ctx
from lionrock.gateway.audit_access import CALL_ACTIONS
from lionrock.gateway.authorization import ROLE_ACTIONS, Action
from lionrock.gateway.v1 import gateway_pb2 as gw
from mesh_ca import TRUST_DOMAIN, DevCa
from scripted_mesh import ScriptedMesh, tenant

ROLES = (*sorted(ROLE_ACTIONS), "stranger")
SERVICES = {
    "RecordsService": rec.DESCRIPTOR.services_by_name["RecordsService"],
    "AuditService": audit.DESCRIPTOR.services_by_name["AuditService"],
}
METHODS: list[MethodDescriptor] = [method for service in SERVICES.values() for method in service.methods]


class AuditProcess:
    """The audit service with a vault, in a process of its own."""

    def __init__(self, directory: Path, ca: DevCa) -> None:
        tls = {key: str(value) for key, value in ca.issue("audit").model_dump().items()}
        ready = directory / "audit.port"
        config = directory / "audit.yaml"
        settings = {
            "server": {"tls": tls, "trust_domain": TRUST_DOMAIN, "ready_file": str(ready)},
            "platform": "test",
            "tenants": ["bank", "broker"],
            "store_file": str(directory / "audit.sqlite"),
            "key_dir": str(directory / "keys"),
            "vault": {
                "tenants": ["bank"],
                "key_store_file": str(directory / "vault" / "keys.sqlite"),
                "local_key_dir": str(directory / "tenant-keys"),
                "retention": {
                    "classes": {"standard": {}, "advice": {"keep_days": 365}},
                    "by_purpose": {"drafting": "advice"},
                },
            },
        }
        config.write_text(yaml.safe_dump(settings))
        command = [sys.executable, "-m", "lionrock.audit", "--config", str(config)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.log: list[str] = []
        for line in self.process.stderr:
            self.log.append(line)
            if '"serving"' in line:
                break
        else:
            raise AssertionError(f"the audit service did not start: {self.log}")
        self.target = f"127.0.0.1:{int(ready.read_text())}"
        self._reader = threading.Thread(target=lambda: self.log.extend(self.process.stderr or ()), daemon=True)
        self._reader.start()

    def stop(self) -> None:
        os.kill(self.process.pid, signal.SIGTERM)
        self.process.wait(30)
        self._reader.join(5)
        assert self.process.stderr is not None
        self.process.stderr.close()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, AuditProcess]]:
    directory = tmp_path_factory.mktemp("door")
    process = AuditProcess(directory, DevCa(directory))
    yield directory, process
    process.stop()


@pytest.fixture
async def door(service: tuple[Path, AuditProcess]) -> AsyncIterator[ScriptedMesh]:
    """A gateway before the real audit service; each role is a kind of workload."""
    directory, process = service
    mesh = ScriptedMesh(directory)
    mesh.targets = {"audit": process.target}
    mesh.tenants = [with_roles("bank"), with_roles("broker")]
    async with mesh.running():
        yield mesh


def with_roles(name: str) -> dict[str, Any]:
    settings = tenant(name, data_classes=["personal", "suspicion"])
    for role in ROLE_ACTIONS:
        principal = {
            "spiffe_id": f"spiffe://{TRUST_DOMAIN}/tenant/{name}/workload/{role.replace('_', '-')}",
            "roles": [role],
            "purposes": ["oversight"],
            "data_classes": ["personal", "suspicion"],
        }
        settings["principals"].append(principal)
    return settings


@asynccontextmanager
async def as_role(mesh: ScriptedMesh, role: str, tenant: str = "bank") -> AsyncIterator[grpc.aio.Channel]:
    identity = mesh.ca.issue(spiffe_id=f"spiffe://{TRUST_DOMAIN}/tenant/{tenant}/workload/{role.replace('_', '-')}")
    peer = PeerSettings(target=mesh.targets["gateway"], service="gateway", timeout_s=10)
    async with open_channel(peer, identity, name="test") as channel:
        yield channel


async def test_a_record_is_read_and_erased_through_the_gateway(door: ScriptedMesh, ask: Any, hear: Any) -> None:
    async with door.calling() as gateway:
        heard = await hear(gateway.Chat(ask("What is my balance?", subject_ids=["c-77"], case_id="case-1")))
        keys = (await gateway.ListAuditKeys(gw.ListAuditKeysRequest())).verifier_keys
    request_id = heard.started.request_id
    async with as_role(door, "privacy_officer") as channel:
        records = rec_rpc.RecordsServiceStub(channel)
        read = await records.ReadRecord(rec.ReadRecordRequest(request_id=request_id))
        assert json.loads(read.prompt)["messages"][0]["content"] == "What is my balance?"
        assert read.answer.decode() == heard.text
        scope = rec.RecordScope(subject_id="c-77")
        found = [one async for one in records.SearchSubject(rec.SearchSubjectRequest(scope=scope, limit=10))]
        assert [one.request_id for one in found] == [request_id]
        erased = await records.EraseSubject(rec.EraseSubjectRequest(scope=scope, basis="PDPO s.26"))
        assert erased.erased_records == 1
        leaf = verify_receipt(erased.receipt.tlog_proof, keys)
        assert (leaf.fields["type"], leaf.fields["basis"], leaf.fields["record_count"]) == ("erasure", "PDPO s.26", 1)
        assert leaf.fields["actor"].endswith("/workload/privacy-officer")
        with pytest.raises(grpc.aio.AioRpcError) as gone:
            await records.ReadRecord(rec.ReadRecordRequest(request_id=request_id))
        assert remote_error(gone.value).reason == "RECORD_ERASED"
