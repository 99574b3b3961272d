"""The real process publishes its tiles, and a reader outside believes them by the log's key alone."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from audit_harness import PLATFORM, Place
from kill_rounds import audit_process, context, write_config
from pydantic import ValidationError

from lionrock.audit.settings import AuditSettings
from lionrock.audit.tile_sources import DirectorySource
from lionrock.audit.v1 import audit_pb2 as pb
from lionrock.audit.v1.audit_pb2_grpc import AuditServiceStub
from lionrock.chassis.channel import open_channel
from lionrock.chassis.ids import uuid7
from lionrock.chassis.settings import PeerSettings
from lionrock.tlog.merkle import Subtree
from lionrock.tlog.note import VerifierKey
from lionrock.tlog.tile_client import TreeReader, open_checkpoint, read_checkpoint
from mesh_ca import DevCa

BANK = f"{PLATFORM}/audit/bank"


async def test_what_the_service_appends_is_published_within_seconds(place: Place) -> None:
    ca = DevCa(place.root / "mesh")
    config = write_config(place, ca.issue("audit"))
    tiles = {"directory": str(place.root / "tiles"), "interval_s": 0.05, "readers": "group"}
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tiles": tiles}), encoding="utf-8")
    source = DirectorySource(place.root / "tiles" / BANK)
    size = 0
    for _ in range(2):  # also after a restart
        async with audit_process(place, config) as (process, port):
            peer = PeerSettings(target=f"127.0.0.1:{port}", service="audit")
            async with open_channel(peer, ca.issue("gateway"), name="gateway") as channel:
                stub: Any = AuditServiceStub(channel)
                auditor = context()
                auditor.roles.append("auditor")
                (key,) = (await stub.ListKeys(pb.ListKeysRequest(context=auditor))).verifier_keys
                body = pb.Intent(action="chat", model="smollm2", prompt=b"prompt")
                appends = [pb.AppendRequest(context=context(), event_id=uuid7(), intent=body) for _ in range(300)]
                size += len(appends)
                calls = [stub.Append(append) for append in appends[:50]]
                hashes = {(await each).position.leaf_hash for each in calls}
                hashes |= {(await stub.Append(append)).position.leaf_hash for append in appends[50:]}
            log_key = VerifierKey.parse(key)
            async with asyncio.timeout(20):
                while True:
                    published = open_checkpoint(read_checkpoint(source), BANK, [log_key]).checkpoint
                    if published.size == size:
                        break
                    await asyncio.sleep(0.02)
            process.terminate()
            assert await process.wait() == 0
        tree = TreeReader(source, published)
        tree.verify_tiles()
        assert sum(len(leaves) for _, leaves in tree.entries(0, size)) == size
        assert hashes <= {each for index in range(size) for each in tree.subtree_hashes([Subtree(0, index)])}
    assert (place.root / "tiles" / BANK / "checkpoint").stat().st_mode & 0o777 == 0o440


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tenants": ["bank", "tile"]}, "tile or checkpoint"),
        ({"tenants": ["checkpoint"]}, "tile or checkpoint"),
        ({"platform": "../outside"}, "begins with a dot"),
        ({"platform": "a//b"}, "empty"),
        ({"tiles": {"directory": "/t", "bucket": {}}}, "access_key_id_file"),
        ({"tiles": {"interval_s": 0}}, "interval_s"),
    ],
)
def test_settings_that_cannot_be_published_die_by_name(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    tls = {"cert_file": "c", "key_file": "k", "ca_file": "a"}
    values: dict[str, Any] = {
        "server": {"tls": tls, "trust_domain": "t"},
        "platform": "p",
        "tenants": ["bank"],
        "store_file": "s",
        "key_dir": "k",
        "tiles": {"directory": str(tmp_path)},
    }
    AuditSettings(**values)
    with pytest.raises(ValidationError, match=said):
        AuditSettings(**(values | changes))
