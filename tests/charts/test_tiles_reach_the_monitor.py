"""The audit service and the monitor with the settings that the chart writes for them: what one publishes the other reads."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from lionrock.audit.store.sqlite import SqliteLogStore
from mesh_ca import DevCa

TILES = ('audit.tiles={"sink":"volume","intervalSeconds":0.1,"http":{"enabled":true}}', "audit.settings.platform_interval_s=0.1")
OUTSIDE = 'audit.tiles.http.peers=[{"ipBlock":{"cidr":"10.8.0.0/16"}}]'
PLATFORM_LOG, LOG = "lionrock.local/audit", "lionrock.local/audit/retail"


class Pods:
    """Runs what containers would, with paths and addresses of this machine."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ca = DevCa(root / "mesh")
        self.tiles_port = self.root / "tiles-port"

    @property
    def store_file(self) -> Path:
        return self.root / "audit" / "store" / "logs.sqlite"

    @contextmanager
    def running(self, component: str, module: str, settings: dict[str, Any], **replaced: str) -> Iterator[subprocess.Popen[str]]:
        certificates = self.ca.issue(component).cert_file.parent
        text = json.dumps(settings)
        tenants = self.root / "tenants"  # the pod's is empty too where no ConfigMap was made
        tenants.mkdir(exist_ok=True)
        here = {
            "/etc/lionrock/tls": str(certificates),
            "/etc/lionrock/tenants": str(tenants),
            "/var/lib/lionrock": str(self.root / component),
        }
        for old, new in {**here, "[::]:8081": "127.0.0.1:0", **replaced}.items():
            text = text.replace(old, new)
        assert "lionrock.svc" not in text
        config = self.root / f"{component}.yaml"
        config.write_text(text, encoding="utf-8")
        process = subprocess.Popen(
            [sys.executable, "-m", module, "--config", str(config)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            yield process
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=30)
            assert process.returncode == 0, said
        finally:
            process.kill()
            process.communicate()

    @contextmanager
    def audit(self, release: Any) -> Iterator[int]:
        """The audit service, and the port of its tiles."""
        settings = release.settings("audit")
        settings["tiles"]["http"]["ready_file"] = str(self.tiles_port)
        settings["server"]["ready_file"] = str(self.root / "ready")
        for file in (self.tiles_port, self.root / "ready"):
            file.unlink(missing_ok=True)
        with self.running(
            "audit", "lionrock.audit", settings, **{"[::]:50055": "127.0.0.1:0", "[::]:7470": "127.0.0.1:0"}
        ) as process:
            end_s = time.monotonic() + 30
            while not (self.root / "ready").exists():
                assert process.poll() is None, process.communicate()[1]
                assert time.monotonic() < end_s
                time.sleep(0.02)
            yield int(self.tiles_port.read_text(encoding="ascii"))

    def keys(self) -> dict[str, str]:
        """Verifier keys of the logs, as whoever runs the service is told them."""
        with closing(SqliteLogStore(self.store_file)) as store:
            found = {origin: store.find_log(origin) for origin in (PLATFORM_LOG, LOG)}
        return {origin: log.verifier_key for origin, log in found.items() if log is not None}


def events(process: subprocess.Popen[str], count: int) -> dict[str, str]:
    """The first event of each log."""
    assert process.stdout is not None
    told = [json.loads(process.stdout.readline()) for _ in range(count)]
    return {event["log"]: event["event"] for event in told}


def test_the_monitor_of_the_chart_reads_the_tiles_of_the_chart_and_another_service_does_not(
    render: Callable[..., Any], tmp_path: Path
) -> None:
    pods = Pods(tmp_path)
    with pods.audit(render("minimal", *TILES, OUTSIDE)):
        pass  # and has made its keys
    keys = json.dumps([*pods.keys().values()])
    followed = render("minimal", *TILES, "audit.monitor.enabled=true", f"audit.monitor.keys={keys}")
    with pods.audit(followed) as port:
        address = {"https://lionrock-audit-tiles.bank.svc:443": f"https://127.0.0.1:{port}"}
        settings = followed.settings("audit-monitor")
        for identity, said in (("audit-monitor", "verified"), ("gateway", "unreachable")):
            with pods.running(identity, "lionrock.audit.monitoring", settings, **address) as process:
                assert events(process, 2) == {PLATFORM_LOG: "verified", LOG: said}
