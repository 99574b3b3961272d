"""Writes the services' own settings into charts/lionrock/values.schema.json, so that Helm refuses what a service would refuse.

    python tools/chart_schema.py            write
    python tools/chart_schema.py --check    fail when the schema is not current

The chart passes `tenants` and the `settings` of components on as they are. Their schema is that of the settings classes, in $defs;
the rest of the file is written by hand. In `settings` nothing is required, because the chart writes what a service must have.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from lionrock.audit.monitor_settings import MonitorSettings
from lionrock.audit.settings import AuditSettings
from lionrock.gateway.settings import GatewaySettings
from lionrock.guardrails.settings import GuardrailsSettings
from lionrock.operator.settings import OperatorSettings
from lionrock.tokenization.settings import TokenizationSettings

SCHEMA = Path(__file__).resolve().parent.parent / "charts" / "lionrock" / "values.schema.json"
COMPONENTS: Mapping[str, type[BaseModel]] = {
    "gateway": GatewaySettings,
    "tokenization": TokenizationSettings,
    "guardrails": GuardrailsSettings,
    "audit": AuditSettings,
    "audit-monitor": MonitorSettings,
    "operator": OperatorSettings,
}
_WHOLE = frozenset(
    {
        "gateway.NamedTenant",
        "gateway.PrincipalSpec",
        "gateway.IssuerSpec",
        "gateway.BindingSpec",
        "gateway.PurposeRuleSpec",
        "gateway.NoticeSpec",
        "gateway.NoticeText",
        "gateway.DisclosureText",
        "audit-monitor.WatchedLogSettings",
        "audit-monitor.WitnessSettings",
    }
)
"""What a user writes whole, and not over something that the chart wrote."""
_DROPPED = frozenset({"title", "default", "x-kubernetes-validations"})


def generated() -> dict[str, Any]:
    """$defs: `<component>.<class>` for each class of settings, `<component>` for the whole."""
    definitions: dict[str, Any] = {}
    for component, settings in COMPONENTS.items():
        schema = settings.model_json_schema(by_alias=False)  # in the chart, as in all settings, names are written_so
        for name, definition in schema.pop("$defs", {}).items():
            definitions[f"{component}.{name}"] = _adapted(definition, component, whole=f"{component}.{name}" in _WHOLE)
        definitions[component] = _adapted(schema, component, whole=False)
    return definitions


def _adapted(node: Any, component: str, *, whole: bool) -> Any:
    if isinstance(node, list):
        return [_adapted(each, component, whole=whole) for each in node]
    if not isinstance(node, dict):
        return node
    adapted = {}
    for key, value in node.items():
        if key == "$ref":
            adapted[key] = value.replace("#/$defs/", f"#/$defs/{component}.")
        elif key == "properties":  # names of settings, which may be called like keywords
            adapted[key] = {name: _adapted(each, component, whole=whole) for name, each in value.items()}
        elif key not in _DROPPED and (whole or key != "required"):
            adapted[key] = _adapted(value, component, whole=whole)
    return adapted


def schema() -> str:
    """Return the file with current definitions."""
    content = json.loads(SCHEMA.read_text(encoding="utf-8"))
    written = {name: definition for name, definition in content["$defs"].items() if name.partition(".")[0] not in COMPONENTS}
    content["$defs"] = {**written, **generated()}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def main() -> int:
    """Write or check it."""
    wanted = schema()
    if wanted == SCHEMA.read_text(encoding="utf-8"):
        return 0
    if "--check" in sys.argv[1:]:
        print("run python tools/chart_schema.py", file=sys.stderr)
        return 1
    SCHEMA.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
