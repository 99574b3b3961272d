"""A local Ray head leaves no process behind, however its parent ends; and settings that cannot work are refused by name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from inference_service import survivors, tls_settings
from pydantic import ValidationError

from lionrock.inference.ray_cluster import RayUnavailable, prepare_environment
from lionrock.inference.settings import RaySettings
from mesh_ca import DevCa

PARENT = """
import asyncio, sys
from lionrock.inference.ray_cluster import RayCluster, prepare_environment
from lionrock.inference.settings import RaySettings

async def main():
    settings = RaySettings.model_validate_json(sys.argv[1])
    prepare_environment(settings)
    cluster = RayCluster(settings, local_cpus=2)
    await cluster.start()
    print("started", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
def ray_settings(tmp_path: Path) -> RaySettings:
    ca = DevCa(tmp_path)
    identity = ca.authority.issue("spiffe://lionrock.local/service/ray", ip_addresses=("127.0.0.1", "127.0.0.2"))
    token = tmp_path / "token"
    token.write_text(os.urandom(32).hex())
    token.chmod(0o600)
    return RaySettings(tls=tls_settings(identity.write(tmp_path / "ray")), token_file=token)  # type: ignore[arg-type]


@pytest.mark.timeout(150)
def test_no_process_of_ray_outlives_a_parent_that_was_killed(ray_settings: RaySettings) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, ray_settings.model_dump_json()], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    with parent:
        line = parent.stdout.readline()
        family = psutil.Process(parent.pid).children(recursive=True)
        parent.kill()
        parent.stdout.close()
    left = survivors(family, within_s=20)
    assert line == b"started\n"
    assert len(family) >= 5, "Ray was running"
    assert left == []


def test_a_token_file_that_others_can_read_is_refused(ray_settings: RaySettings) -> None:
    ray_settings.token_file.chmod(0o644)
    with pytest.raises(RayUnavailable, match="0600"):
        prepare_environment(ray_settings)


def test_a_token_file_of_a_volume_may_be_read_by_the_pods_group_alone(
    ray_settings: RaySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = ray_settings.token_file.stat()
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(os, "geteuid", lambda: status.st_uid + 65532)
    monkeypatch.setattr(os, "getgroups", lambda: [status.st_gid])
    ray_settings.token_file.chmod(0o440)
    if status.st_uid != 0:
        pytest.skip("files of root are made by root")
    prepare_environment(ray_settings)
    for mode in (0o444, 0o460):
        ray_settings.token_file.chmod(mode)
        with pytest.raises(RayUnavailable, match="0600"):
            prepare_environment(ray_settings)
    ray_settings.token_file.chmod(0o440)
    monkeypatch.setattr(os, "getgroups", list)
    with pytest.raises(RayUnavailable, match="0600"):
        prepare_environment(ray_settings)


def test_a_missing_token_file_is_refused(ray_settings: RaySettings) -> None:
    ray_settings.token_file.unlink()
    with pytest.raises(RayUnavailable, match="token_file"):
        prepare_environment(ray_settings)


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"deploy": False}, "set address"), ({"deploy": False, "address": "10.0.0.1:6379", "undeploy": True}, "leave it off")],
)
def test_a_service_that_deploys_nothing_needs_a_cluster_of_others(
    ray_settings: RaySettings, changed: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        RaySettings.model_validate({**ray_settings.model_dump(), **changed})


def test_a_temporary_directory_too_long_for_unix_sockets_is_refused(ray_settings: RaySettings) -> None:
    with pytest.raises(ValidationError, match="Unix socket"):
        RaySettings.model_validate({**ray_settings.model_dump(), "temp_dir": "/" + "x" * 60})
