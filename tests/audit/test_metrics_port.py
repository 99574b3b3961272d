"""The audit service, which starts its telemetry before it serves, has a port for metrics as the others have."""

from __future__ import annotations

import json
from pathlib import Path

import httpx

from audit_process import AuditProcess
from mesh_ca import TRUST_DOMAIN, DevCa


def test_the_audit_service_tells_metrics_and_readiness(tmp_path: Path) -> None:
    ca = DevCa(tmp_path)
    tls = {key: str(value) for key, value in ca.issue("audit").model_dump().items()}
    server = {
        "tls": tls,
        "trust_domain": TRUST_DOMAIN,
        "ready_file": str(tmp_path / "audit.port"),
        "metrics_listen": "127.0.0.1:0",
    }
    process = AuditProcess(tmp_path, ca, server=server)
    try:
        port = json.loads(process.log[-1])["metrics_port"]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            assert "lionrock_audit_" in client.get("/metrics").text
            assert client.get("/healthz").status_code == 200
            assert client.get("/readyz").status_code in (200, 503)
    finally:
        process.stop()
