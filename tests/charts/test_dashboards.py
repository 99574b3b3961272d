"""Dashboards ask for metrics that the services have."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DASHBOARDS = sorted((ROOT / "charts" / "lionrock" / "files" / "dashboards").glob("*.json"))
_INSTRUMENT = re.compile(r"\.create_(?:histogram|counter|up_down_counter|gauge|observable_gauge)\(\s*\"([a-z0-9_.]+)\"")
_ENDINGS = ("_bucket", "_count", "_sum", "_total")
_UNITS = ("_seconds", "_milliseconds")
_METRIC = re.compile(r"\b(?:gen_ai|lionrock|rpc)_[a-z_]+")
_LABELS = {"rpc_service", "rpc_method", "rpc_grpc_status_code"}
_LABELS |= {f"lionrock_{name}" for name in ("log", "alarm", "cause", "outcome", "state")}


def instruments() -> set[str]:
    """Names of the services' instruments, as Prometheus spells them without unit and kind."""
    sources = (ROOT / "services" / "lionrock").rglob("*.py")
    return {name.replace(".", "_") for path in sources for name in _INSTRUMENT.findall(path.read_text(encoding="utf-8"))}


def base(metric: str) -> str:
    for ending in (*_ENDINGS, *_UNITS):
        metric = metric.removesuffix(ending)
    return metric


def test_every_panel_asks_for_metrics_that_exist() -> None:
    known = instruments()
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                names = [name for name in _METRIC.findall(target["expr"]) if name not in _LABELS]
                assert names, target["expr"]
                assert {base(name) for name in names} <= known, target["expr"]


def test_dashboards_are_shipped_as_they_are(render: Callable[..., Any]) -> None:
    data = render("everything").one("ConfigMap", "lionrock-dashboards")["data"]
    shipped = {name: json.loads(text) for name, text in data.items()}
    assert shipped == {path.name: json.loads(path.read_text()) for path in DASHBOARDS}


def test_every_metric_of_the_audit_service_is_documented_and_no_other() -> None:
    known = {name for name in instruments() if name.startswith("lionrock_audit_")}
    text = (ROOT / "docs" / "audit.md").read_text(encoding="utf-8")
    alarms = text.partition("\n## Alarms\n")[2].partition("\n## ")[0]
    said = re.findall(r"`(?:lionrock\.audit)?(\.(?:tiles|witness|monitor|vault)\.[a-z_.]+)`", alarms)
    assert {f"lionrock_audit{name.replace('.', '_')}" for name in said} == known
