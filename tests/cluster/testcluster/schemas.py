"""JSON schemas for kubeconform, from what an API server publishes of itself, resource definitions included.

kubeconform would fetch schemas of its own from elsewhere; here they are of the very version and definitions that are installed, and
nothing leaves the machine. Like the API server with strict validation, they refuse fields that they do not know.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .objects import Objects
from .waiting import wait_for

_REFERENCE = "#/definitions/"
FILE_NAMES = "{{ .Group }}_{{ .ResourceAPIVersion }}_{{ .ResourceKind }}.json"
"""For kubeconform's -schema-location, after the directory. It calls the core group v1."""

Schema = dict[str, Any]


def write_schemas(objects: Objects, directory: Path, *, kinds: Iterable[str] = ()) -> int:
    """Write one file for each kind that the API server publishes. Returns how many.

    kinds: definitions to wait for, such as io.ray.v1.RayService, since those of new resources are published after a while.
    """
    directory.mkdir(parents=True, exist_ok=True)

    def published() -> dict[str, Schema]:
        definitions: dict[str, Schema] = objects.call("GET", "/openapi/v2")["definitions"]
        return definitions if definitions.keys() >= set(kinds) else {}

    definitions = wait_for(published, f"the API server publishes {', '.join(kinds)}", interval_s=0.5)
    strict = {name: _strict(definition) for name, definition in definitions.items()}
    written = 0
    for name, definition in definitions.items():
        for kind in definition.get("x-kubernetes-group-version-kind", ()):
            schema = copy.deepcopy(strict[name])
            schema["definitions"] = {used: strict[used] for used in _closure(name, strict)}
            file = f"{kind['group'] or kind['version']}_{kind['version']}_{kind['kind'].lower()}.json"
            (directory / file).write_text(json.dumps(schema))
            written += 1
    return written


def _strict(schema: Schema) -> Schema:
    """Return the schema with unknown fields refused, null allowed where a field is optional, and Kubernetes' formats spelt out."""
    result = {keyword: value for keyword, value in schema.items() if not keyword.startswith("x-kubernetes-")}
    format_ = result.pop("format", None)
    if format_ == "int-or-string" or schema.get("x-kubernetes-int-or-string"):
        result["type"] = ["string", "integer"]
    if "properties" in result:
        required = set(result.get("required", ()))
        result["properties"] = {
            name: _strict(part) if name in required else _or_null(_strict(part)) for name, part in result["properties"].items()
        }
        if not schema.get("x-kubernetes-preserve-unknown-fields") and "additionalProperties" not in result:
            result["additionalProperties"] = False
    if "items" in result:
        result["items"] = _strict(result["items"])
    if isinstance(result.get("additionalProperties"), Mapping):
        result["additionalProperties"] = _strict(result["additionalProperties"])
    if result.get("$ref") == f"{_REFERENCE}io.k8s.apimachinery.pkg.api.resource.Quantity":
        return {"type": ["string", "number"]}
    return result


def _or_null(schema: Schema) -> Schema:
    kind = schema.get("type")
    if isinstance(kind, str):
        return {**schema, "type": [kind, "null"]}
    if isinstance(kind, list):
        return {**schema, "type": [*kind, "null"]}
    if "$ref" in schema:
        return {"anyOf": [schema, {"type": "null"}]}
    return schema


def _closure(name: str, definitions: Mapping[str, Schema]) -> set[str]:
    """Names of all definitions that one refers to, directly or not."""
    reached: set[str] = set()
    open_names = [name]
    while open_names:
        for used in _references(definitions[open_names.pop()]):
            if used not in reached:
                reached.add(used)
                open_names.append(used)
    return reached


def _references(part: object) -> Iterator[str]:
    if isinstance(part, Mapping):
        reference = part.get("$ref")
        if isinstance(reference, str):
            yield reference.removeprefix(_REFERENCE)
        for value in part.values():
            yield from _references(value)
    elif isinstance(part, list):
        for value in part:
            yield from _references(value)
