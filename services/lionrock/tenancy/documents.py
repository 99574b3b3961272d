"""Tenants as text: YAML or JSON, several documents in one text.

Knows the safe subset of YAML less anchors, aliases and repeated keys, which hide what a text says; and where in the text each value
stands, so that what is refused is refused by line. Values mean what they mean to the API server of Kubernetes: nothing is
converted, null is no value. Does not know files.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import ValidationError

from lionrock.tenancy.spec import TenantResource

MAX_BYTES = 2**20
"""As much as a ConfigMap holds."""
MAX_DOCUMENTS = 1000
_MAX_PROBLEMS = 20
_MAX_DEPTH = 32

_Location = tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a text is refused. `line` counts from 1; `tenant` is None where the text does not come as far as a name."""

    line: int
    tenant: str | None
    field: str
    reason: str

    def __str__(self) -> str:
        who = f"tenant {self.tenant}: " if self.tenant else ""
        where = f"{self.field}: " if self.field else ""
        return f"line {self.line}: {who}{where}{self.reason}"


class TenantsInvalid(ValueError):
    """A text is not Tenants. `problems` says all that is wrong with it, as far as can be seen."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(map(str, problems[:_MAX_PROBLEMS])))
        self.problems = tuple(problems)


def parse_tenants(content: bytes) -> tuple[TenantResource, ...]:
    """Read the Tenants of a text; an empty one has none. Raises TenantsInvalid."""
    if len(content) > MAX_BYTES:
        raise TenantsInvalid([Problem(1, None, "", f"more than {MAX_BYTES} bytes")])
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise TenantsInvalid([Problem(1, None, "", "not UTF-8")]) from None
    tenants: list[TenantResource] = []
    problems: list[Problem] = []
    lines: dict[str, int] = {}
    for root, document in _documents(text):
        line = root.start_mark.line + 1
        if len(lines) + len(problems) >= MAX_DOCUMENTS:
            problems.append(Problem(line, None, "", f"more than {MAX_DOCUMENTS} tenants"))
            break
        try:
            tenant = _tenant(document)
        except _Refused as refused:
            name = _name(document)
            problems += [Problem(_line_of(root, where), name, _path(where), reason) for where, reason in refused.reasons]
            continue
        if tenant.name in lines:
            problems.append(Problem(line, tenant.name, "metadata.name", f"the tenant of line {lines[tenant.name]} is called so"))
        lines.setdefault(tenant.name, line)
        tenants.append(tenant)
    if problems:
        raise TenantsInvalid(problems)
    return tuple(tenants)


def parse_resource(document: object) -> TenantResource:
    """Read one Tenant that is already an object, such as one of Kubernetes. Raises TenantsInvalid, whose lines are all 1."""
    try:
        return _tenant(document)
    except _Refused as refused:
        name = _name(document)
        raise TenantsInvalid([Problem(1, name, _path(where), reason) for where, reason in refused.reasons]) from None


class _Refused(Exception):
    def __init__(self, reasons: Sequence[tuple[_Location, str]]) -> None:
        super().__init__()
        self.reasons = reasons


def _tenant(document: object) -> TenantResource:
    if not isinstance(document, dict):
        raise _Refused([((), "not a Tenant: a mapping with apiVersion, kind, metadata and spec is expected")])
    # What the cluster writes into an object is not the author's, and is not read.
    stated = {key: value for key, value in document.items() if key != "status"}
    if isinstance(stated.get("metadata"), dict):
        stated["metadata"] = {"name": stated["metadata"].get("name")}
    if nulls := list(_nulls(stated, ())):
        raise _Refused([(where, "has no value: leave it out") for where in nulls])
    try:
        # By way of JSON: there a list is a list and a number a number, and nothing is taken for something else.
        return TenantResource.model_validate_json(json.dumps(stated), strict=True, by_name=False)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        raise _Refused([(each["loc"], _reason(each["type"], each["msg"])) for each in found]) from None
    except (TypeError, ValueError, RecursionError):
        raise _Refused([((), "holds what JSON does not have")]) from None


def _reason(kind: str, message: str) -> str:
    match kind:
        case "extra_forbidden":
            return "there is no such field"
        case "missing":
            return "is missing"
    return message.removeprefix("Value error, ")


def _nulls(value: object, where: _Location) -> list[_Location]:
    if value is None:
        return [where]
    if isinstance(value, dict):
        return [found for key, each in value.items() for found in _nulls(each, (*where, str(key)))]
    if isinstance(value, list):
        return [found for index, each in enumerate(value) for found in _nulls(each, (*where, index))]
    return []


def _name(document: object) -> str | None:
    metadata = document.get("metadata") if isinstance(document, dict) else None
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return name if isinstance(name, str) and len(name) <= 63 and name.isprintable() else None


def _path(location: _Location) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in location).removeprefix(".")


def _documents(text: str) -> list[tuple[yaml.Node, Any]]:
    """Compose every document that is not empty. Raises TenantsInvalid."""
    loader = _Loader(text)
    found: list[tuple[yaml.Node, Any]] = []
    try:
        _refuse_what_is_no_plain_text(text)
        while loader.check_node():
            root = loader.get_node()
            assert root is not None, "check_node says that there is one"
            document = loader.construct_document(root)
            if document is not None:
                found.append((root, document))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise TenantsInvalid([Problem(mark.line + 1 if mark else 1, None, "", error.problem or "not YAML")]) from None
    except TenantsInvalid:
        raise
    except (yaml.YAMLError, ValueError, RecursionError):
        raise TenantsInvalid([Problem(1, None, "", "not YAML")]) from None
    finally:
        loader.dispose()
    return found


def _refuse_what_is_no_plain_text(text: str) -> None:
    """Look at a text before it is made into a tree. Raises TenantsInvalid for anchors, and for what is deeper than any Tenant."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            line = event.start_mark.line + 1 if event.start_mark else 1
            raise TenantsInvalid([Problem(line, None, "", f"nested more than {_MAX_DEPTH} deep")])
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            line = event.start_mark.line + 1 if event.start_mark else 1
            raise TenantsInvalid([Problem(line, None, "", "anchors and aliases are not supported")])


class _Loader(yaml.CSafeLoader):
    """Refuses repeated keys; takes a date for the text that it is, as Kubernetes does."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - the base class' own form
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                raise yaml.MarkedYAMLError(problem="a key must be a word", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key.value!r} is there twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _line_of(root: yaml.Node, location: _Location) -> int:
    """Return the line of the innermost value that `location` leads to."""
    node, line = root, root.start_mark.line
    for step in location:
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == step), None)
            if found is None:
                break
            line, node = found[0].start_mark.line, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            line = node.start_mark.line
        else:
            break
    return int(line) + 1
