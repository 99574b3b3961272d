"""Writes the Tenant's resource definition into charts/lionrock-crds from the schema that services read Tenants with.

    python tools/tenant_definition.py            write
    python tools/tenant_definition.py --check    fail when the definition is not current

What pydantic refuses by form, the API server refuses by the same form: a structural schema is that form without references, without
null and without unions. What validators refuse stands in it as rules (lionrock/tenancy/rules.py). A keyword that is not known here
ends this, so that no restriction is lost without a word.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from lionrock.tenancy.rules import DISTINCT, KEYWORD
from lionrock.tenancy.spec import TenantResource
from lionrock.tenancy.vocabulary import LABEL

DEFINITION = Path(__file__).resolve().parent.parent / "charts" / "lionrock-crds" / "templates" / "lionrock.io_tenants.yaml"
HEAD: Final = "# Written by tools/tenant_definition.py from services/lionrock/tenancy; change that, and run the tool.\n"

_KEPT: Final = frozenset(
    {
        *("enum", "pattern", "type"),
        *("maxItems", "maxLength", "maxProperties", "maximum"),
        *("minItems", "minLength", "minProperties", "minimum"),
    }
)
_DROPPED: Final = frozenset({"title", "default", "description", KEYWORD})
"""Handled by themselves, or nothing to the API server: defaults are those of the services that read the Tenant."""
_READ: Final = frozenset(
    {"$ref", "additionalProperties", "anyOf", "const", "format", "items", "patternProperties", "properties", "required"}
)

_RESOURCE: Final = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: tenants.lionrock.io
  annotations:
    helm.sh/resource-policy: keep
spec:
  group: lionrock.io
  names: {kind: Tenant, listKind: TenantList, plural: tenants, singular: tenant, categories: [lionrock]}
  scope: Namespaced
  versions:
    - name: v1alpha1
      served: true
      storage: true
      subresources: {status: {}}
      additionalPrinterColumns:
        - {name: Called, type: string, jsonPath: .spec.displayName}
        - {name: Territory, type: string, jsonPath: .spec.territory}
        - {name: Tenancy, type: string, jsonPath: .spec.tenancy.type}
        - {name: Accepted, type: string, jsonPath: '.status.conditions[?(@.type=="Accepted")].status'}
        - {name: Ready, type: string, jsonPath: '.status.conditions[?(@.type=="Ready")].status'}
        - {name: Reason, type: string, jsonPath: '.status.conditions[?(@.type=="Ready")].reason'}
        - {name: Why, type: string, jsonPath: '.status.conditions[?(@.type=="Accepted")].message', priority: 1}
        - {name: Age, type: date, jsonPath: .metadata.creationTimestamp}
      schema:
        openAPIV3Schema:
          type: object
          description: Tenant is one customer of the mesh, and who of them may ask what. Gateways and the audit service follow it.
          required: [spec]
          properties:
            apiVersion: {type: string}
            kind: {type: string}
            metadata: {type: object}
            spec: {}
            status:
              type: object
              description: What the operator made of it.
              properties:
                observedGeneration: {type: integer, format: int64, description: The generation that this status is about.}
                published:
                  type: object
                  description: What gateways and the audit service read of it now; absent while they know nothing of the tenant.
                  properties:
                    configMap: {type: string, description: ConfigMap of this namespace that holds it.}
                    key: {type: string, description: Its key there.}
                    digest: {type: string, description: 'sha256 of the text, so that it is seen which of two it is.'}
                conditions:
                  type: array
                  description: What is reached and what is not, and why.
                  maxItems: 16
                  x-kubernetes-list-type: map
                  x-kubernetes-list-map-keys: [type]
                  items:
                    type: object
                    required: [type, status, reason, message, lastTransitionTime]
                    properties:
                      type: {type: string, maxLength: 316, description: What is judged.}
                      status: {type: string, enum: ["True", "False", Unknown], description: The judgement.}
                      reason: {type: string, maxLength: 1024, description: 'Why, in one word for programs.'}
                      message: {type: string, maxLength: 32768, description: 'Why, and what can be done, for people.'}
                      observedGeneration: {type: integer, format: int64, description: The generation that was judged.}
                      lastTransitionTime: {type: string, format: date-time, description: Since when the status is what it is.}
"""


class NotStructural(ValueError):
    """A field says something that the API server could not check."""


def definition() -> dict[str, Any]:
    """Return the resource definition."""
    resource: dict[str, Any] = yaml.safe_load(_RESOURCE)
    (version,) = resource["spec"]["versions"]
    schema = version["schema"]["openAPIV3Schema"]
    read = TenantResource.model_json_schema(by_alias=True)
    definitions = read["$defs"]
    schema["properties"]["metadata"]["properties"] = {"name": {"type": "string", "maxLength": 63, "pattern": LABEL}}
    schema["properties"]["spec"] = structural(read["properties"]["spec"], definitions, "spec")
    schema["properties"]["spec"]["description"] = "Who may come in, and what each of them may do."
    schema[KEYWORD] = read[KEYWORD]
    return resource


def structural(node: Mapping[str, Any], definitions: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Return a schema as the API server takes it. Raises NotStructural."""
    described, rules = node.get("description"), list(node.get(KEYWORD, ()))
    if "$ref" in node:
        node = definitions[node["$ref"].rsplit("/", 1)[1]]
        rules += node.get(KEYWORD, ())
    if "anyOf" in node:
        options = [each for each in node["anyOf"] if each.get("type") != "null"]
        if len(options) > 1:
            raise NotStructural(f"{path}: has several types")
        made = structural(options[0], definitions, path)
        rules += made.pop(KEYWORD, ())
    else:
        made = _plain(node, definitions, path, rules)
    text = described or made.pop("description", None) or node.get("description")
    made.pop("description", None)
    return {**({"description": text} if text else {}), **made, **({KEYWORD: rules} if rules else {})}


def _plain(node: Mapping[str, Any], definitions: Mapping[str, Any], path: str, rules: list[dict[str, str]]) -> dict[str, Any]:
    if unknown := node.keys() - _KEPT - _DROPPED - _READ:
        raise NotStructural(f"{path}: nobody takes over {', '.join(sorted(unknown))}")
    made = {key: value for key, value in node.items() if key in _KEPT}
    if "const" in node:
        made["enum"] = [node["const"]]
    if node["type"] == "integer":
        made["format"] = "int64"
    if node.get("format", "date-time") != "date-time" and node["format"] not in ("path", "uri"):
        raise NotStructural(f"{path}: nobody takes over the format {node['format']}")
    if node.get("format") == "date-time":
        made["format"] = "date-time"
    if "items" in node:
        made["x-kubernetes-list-type"] = "atomic"
        if "[]" in path and (distinct := DISTINCT[KEYWORD][0]) in rules:
            made["x-kubernetes-list-type"] = "set"
            rules.remove(distinct)
        made["items"] = structural(node["items"], definitions, f"{path}[]")
    if "required" in node:
        made["required"] = node["required"]
    if "properties" in node:
        made["properties"] = {name: structural(each, definitions, f"{path}.{name}") for name, each in node["properties"].items()}
    elif node["type"] == "object":
        made |= _by_name(node, definitions, path, rules)
    return made


def _by_name(node: Mapping[str, Any], definitions: Mapping[str, Any], path: str, rules: list[dict[str, str]]) -> dict[str, Any]:
    """Values by names that are not known beforehand; which names there may be, a rule says."""
    patterns = node.get("patternProperties")
    if patterns:
        ((pattern, values),) = patterns.items()
        escaped = pattern.replace("\\", "\\\\").replace("'", "\\'")
        rules.append({"rule": f"self.all(key, key.matches('{escaped}'))", "message": f"names are of the form {pattern}"})
    else:
        values = node.get("additionalProperties")
    if not isinstance(values, Mapping):
        raise NotStructural(f"{path}: holds anything")
    return {"additionalProperties": structural(values, definitions, f"{path}.*")}


class _Dumper(yaml.SafeDumper):
    """Writes everything out: no anchors for what stands there twice."""

    def ignore_aliases(self, data: object) -> bool:
        del data
        return True


def text() -> str:
    """Return the file."""
    return HEAD + yaml.dump(definition(), Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


def main() -> int:
    """Write or check it."""
    wanted = text()
    if DEFINITION.is_file() and wanted == DEFINITION.read_text(encoding="utf-8"):
        return 0
    if "--check" in sys.argv[1:]:
        print("run python tools/tenant_definition.py", file=sys.stderr)
        return 1
    DEFINITION.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
