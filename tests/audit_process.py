"""The audit service with a vault, as a process of its own, for tests that go through a gateway to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import yaml

from mesh_ca import TRUST_DOMAIN, DevCa


class AuditProcess:
    """Runs from when it is made until `stop`. `directory` keeps its store, keys and settings."""

    def __init__(self, directory: Path, ca: DevCa, **more: Any) -> None:
        """`more`: settings that the tests want otherwise."""
        tls = {key: str(value) for key, value in ca.issue("audit").model_dump().items()}
        ready = directory / "audit.port"
        self.config = config = directory / "audit.yaml"
        self.store_file, self.signed_file = directory / "audit.sqlite", directory / "keys" / "signed-checkpoints.jsonl"
        settings = {
            "server": {"tls": tls, "trust_domain": TRUST_DOMAIN, "ready_file": str(ready)},
            "platform": "test",
            "tenants": ["bank", "broker"],
            "store_file": str(self.store_file),
            "key_dir": str(directory / "keys"),
            "platform_interval_s": 0.1,
            "sweep_interval_s": 0.2,
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
        config.write_text(yaml.safe_dump(settings | more), encoding="utf-8")
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
        self.target = f"127.0.0.1:{int(ready.read_text(encoding='ascii'))}"
        self._reader = threading.Thread(target=lambda: self.log.extend(self.process.stderr or ()), daemon=True)
        self._reader.start()

    def stop(self) -> None:
        """End it as an operator does."""
        os.kill(self.process.pid, signal.SIGTERM)
        self.process.wait(30)
        self._reader.join(5)
        assert self.process.stderr is not None
        self.process.stderr.close()
