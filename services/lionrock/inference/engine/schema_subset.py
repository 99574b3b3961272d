"""The JSON Schemas that constraints may use, checked and put into words that the grammar compiler enforces to the letter.

xgrammar 0.2.8 passes over what it does not know and lets an answer through that the schema refuses. So only keywords and
combinations that are known to be enforced exactly are taken, and the rest is refused by name; tests/engine validates answers of
random schemas with an independent validator. Where a schema leaves something open, the answer is held to less: an object whose
properties are named gets no others unless `additionalProperties` says so, and properties come in the schema's order.

Knows JSON Schema 2020-12; no grammar and no tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from lionrock.inference.engine.regex_subset import UnsupportedRegex, canonical_regex

MAX_DEPTH: Final = 64
"""Schemas inside schemas."""
MAX_SUBSCHEMAS: Final = 2000
MAX_COUNT: Final = 100_000
"""Of minLength, maxLength, minItems, maxItems, minProperties, maxProperties."""

_EXACT_INTEGERS: Final = 1 << 53

_ANNOTATIONS = frozenset(
    {"$schema", "$id", "$comment", "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"}
)
_DEFINITIONS = frozenset({"$defs", "definitions"})
_ALONE = ("$ref", "anyOf", "allOf", "enum", "const")
_OF_TYPE: Mapping[str, frozenset[str]] = {
    "object": frozenset({"properties", "required", "additionalProperties", "minProperties", "maxProperties"}),
    "array": frozenset({"items", "prefixItems", "minItems", "maxItems"}),
    "string": frozenset({"minLength", "maxLength", "pattern", "format"}),
    "number": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}),
    "integer": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}),
    "boolean": frozenset(),
    "null": frozenset(),
}
_COUNTS = frozenset({"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"})
_FORMATS = frozenset({"date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"})


class UnsupportedSchema(ValueError):
    """The schema is malformed or says something that cannot be enforced. `path` has keywords and indices, no names."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(path, why)
        self.path = path
        self.why = why

    def __str__(self) -> str:
        return f"at {self.path}: {self.why}" if self.path else self.why


def canonical_schema(source: str) -> str:
    """Return an equal or narrower schema as JSON text. Raises UnsupportedSchema."""
    try:
        schema = json.loads(source, parse_constant=_refuse_constant, object_pairs_hook=_object)
    except UnsupportedSchema:
        raise
    except (ValueError, RecursionError):
        raise UnsupportedSchema("", "the schema is not JSON, or nested too deep") from None
    reader = _Reader(schema)
    return json.dumps(reader.schema(schema, "", 0), ensure_ascii=False)


def _refuse_constant(_: str) -> Any:
    raise UnsupportedSchema("", "NaN and Infinity are not JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise UnsupportedSchema("", "an object has a key twice")
    return found


class _Reader:
    """One pass over a schema."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._seen = 0

    def schema(self, schema: Any, path: str, depth: int) -> Any:
        self._seen += 1
        if depth > MAX_DEPTH or self._seen > MAX_SUBSCHEMAS:
            raise UnsupportedSchema(path, f"more than {MAX_DEPTH} levels or {MAX_SUBSCHEMAS} schemas in all")
        if schema is True:
            return {}
        if not isinstance(schema, dict):
            raise UnsupportedSchema(path, "a schema is an object or true")
        out: dict[str, Any] = {
            key: {
                name: self.schema(part, f"{path}/{key}/[{index}]", depth + 1)
                for index, (name, part) in enumerate(self._mapping(value, f"{path}/{key}").items())
            }
            for key, value in schema.items()
            if key in _DEFINITIONS
        }
        said = {key: value for key, value in schema.items() if key not in _ANNOTATIONS | _DEFINITIONS}
        alone = [key for key in _ALONE if key in said]
        if alone:
            return out | self._alone(said, alone[0], path, depth)
        kinds = said.pop("type", None)
        if kinds is None:
            if said:
                raise UnsupportedSchema(path, _unenforced(next(iter(said)), "only beside a type"))
            return out
        return out | self._typed(said, kinds, path, depth)

    def _alone(self, said: dict[str, Any], keyword: str, path: str, depth: int) -> dict[str, Any]:
        """One of the keywords that the compiler reads without looking at its neighbours."""
        value, here = said[keyword], f"{path}/{keyword}"
        others = [key for key in said if key != keyword]
        if others and not (others == ["type"] and keyword in ("enum", "const")):
            raise UnsupportedSchema(here, f"{keyword} is not enforced together with {_name(others[0])}")
        if keyword == "$ref":
            self._check_reference(value, here)
            return {"$ref": value}
        if keyword in ("enum", "const"):
            values = value if keyword == "enum" else [value]
            if not isinstance(values, list) or not values:
                raise UnsupportedSchema(here, "a list of at least one value is expected")
            kinds = said.get("type", list(_OF_TYPE))
            for index, item in enumerate(values):
                if not any(_is_of_type(item, kind) for kind in (kinds if isinstance(kinds, list) else [kinds])):
                    raise UnsupportedSchema(f"{here}/[{index}]", "the value is not of the type that stands beside it")
                _check_value(item, f"{here}/[{index}]")
            return {keyword: value}
        if not isinstance(value, list) or not value:
            raise UnsupportedSchema(here, "a list of at least one schema is expected")
        if keyword == "allOf" and len(value) > 1:
            raise UnsupportedSchema(here, "allOf is enforced with one schema only")
        return {keyword: [self.schema(part, f"{here}/[{index}]", depth + 1) for index, part in enumerate(value)]}

    def _typed(self, said: dict[str, Any], kinds: Any, path: str, depth: int) -> dict[str, Any]:
        kinds = kinds if isinstance(kinds, list) else [kinds]
        if not kinds or not all(isinstance(kind, str) and kind in _OF_TYPE for kind in kinds):
            raise UnsupportedSchema(f"{path}/type", "an unknown type")
        known = frozenset().union(*(_OF_TYPE[kind] for kind in kinds))
        out: dict[str, Any] = {"type": kinds if len(kinds) > 1 else kinds[0]}
        for key, value in said.items():
            here = f"{path}/{_name(key)}"
            if key not in known:
                raise UnsupportedSchema(path, _unenforced(key, "for other types"))
            out[key] = self._value(key, value, here, depth)
        if "string" in kinds and sum((len({"minLength", "maxLength"} & said.keys()) > 0, "pattern" in said, "format" in said)) > 1:
            raise UnsupportedSchema(path, "of lengths, pattern and format, one is enforced, not two together")
        if "object" in kinds:
            self._complete_object(out, path)
        if "array" in kinds and "items" not in out and "prefixItems" not in out:
            out["items"] = {}
        return out

    def _value(self, key: str, value: Any, here: str, depth: int) -> Any:
        if key in _COUNTS:
            if type(value) is not int or not 0 <= value <= MAX_COUNT:
                raise UnsupportedSchema(here, f"a whole number up to {MAX_COUNT} is expected")
        elif key in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
            if type(value) not in (int, float) or abs(value) > _EXACT_INTEGERS:
                raise UnsupportedSchema(here, "a number within ±2^53 is expected")
        elif key == "properties":
            parts = self._mapping(value, here)
            return {name: self.schema(part, f"{here}/[{i}]", depth + 1) for i, (name, part) in enumerate(parts.items())}
        elif key in ("additionalProperties", "items"):
            return False if value is False else self.schema(value, here, depth + 1)
        elif key == "prefixItems":
            if not isinstance(value, list) or not value:
                raise UnsupportedSchema(here, "a list of at least one schema is expected")
            return [self.schema(part, f"{here}/[{index}]", depth + 1) for index, part in enumerate(value)]
        elif key == "required":
            if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
                raise UnsupportedSchema(here, "a list of names is expected")
        elif key == "pattern":
            return self._pattern(value, here)
        elif key == "format" and value not in _FORMATS:
            raise UnsupportedSchema(here, f"the formats that are enforced are {', '.join(sorted(_FORMATS))}")
        return value

    def _complete_object(self, out: dict[str, Any], path: str) -> None:
        properties = out.get("properties")
        if not properties and "additionalProperties" not in out:
            out["additionalProperties"] = {}
        if any(name not in (properties or {}) for name in out.get("required", ())):
            raise UnsupportedSchema(f"{path}/required", "a required property is not among the properties")
        if {"minProperties", "maxProperties"} & out.keys() and out.get("additionalProperties", False) is not False:
            raise UnsupportedSchema(path, "counts of properties are enforced only without additionalProperties")

    def _pattern(self, value: Any, here: str) -> str:
        if not isinstance(value, str):
            raise UnsupportedSchema(here, "a regular expression is expected")
        try:
            return canonical_regex(value, in_json_string=True)
        except UnsupportedRegex as error:
            raise UnsupportedSchema(here, str(error)) from None

    def _check_reference(self, value: Any, here: str) -> None:
        """Refuse a reference to anything but the root or a definition at the root."""
        if value == "#":
            return
        parts = value.split("/") if isinstance(value, str) else []
        if len(parts) != 3 or parts[0] != "#" or parts[1] not in _DEFINITIONS or "~" in parts[2] or "%" in parts[2]:
            raise UnsupportedSchema(here, "a reference is '#', or '#/$defs/' and a plain name")
        definitions = self._root.get(parts[1]) if isinstance(self._root, dict) else None
        if not isinstance(definitions, dict) or parts[2] not in definitions:
            raise UnsupportedSchema(here, "the reference names no definition")

    def _mapping(self, value: Any, here: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise UnsupportedSchema(here, "an object is expected")
        for name in value:
            _check_text(name, here)
        return value


def _unenforced(keyword: str, where: str) -> str:
    elsewhere = any(keyword in keywords for keywords in _OF_TYPE.values())
    return f"{_name(keyword)} is enforced {where}" if elsewhere else f"{_name(keyword)} is not enforced"


def _name(keyword: str) -> str:
    """Return a keyword as it may be shown: what is not one of JSON Schema's own is the caller's text."""
    return keyword if keyword in KEYWORDS else "an unknown keyword"


KEYWORDS = _ANNOTATIONS | _DEFINITIONS | frozenset(_ALONE) | frozenset().union(*_OF_TYPE.values()) | frozenset(
    {
        "type", "oneOf", "not", "if", "then", "else", "multipleOf", "uniqueItems", "contains", "minContains", "maxContains",
        "patternProperties", "propertyNames", "dependentRequired", "dependentSchemas", "dependencies", "unevaluatedItems",
        "unevaluatedProperties", "additionalItems", "$anchor", "$dynamicRef", "$dynamicAnchor", "$recursiveRef", "nullable",
        "contentEncoding", "contentMediaType", "contentSchema", "discriminator", "$vocabulary",
    }
)  # fmt: skip
"""All that JSON Schema and its common extensions define, enforced or not."""


def _is_of_type(value: Any, kind: Any) -> bool:
    match kind:
        case "object":
            return isinstance(value, dict)
        case "array":
            return isinstance(value, list)
        case "string":
            return isinstance(value, str)
        case "boolean":
            return isinstance(value, bool)
        case "null":
            return value is None
        case "integer":
            return not isinstance(value, bool) and (isinstance(value, int) or (isinstance(value, float) and value.is_integer()))
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
    return False


def _check_value(value: Any, here: str) -> None:
    """Refuse what the compiler would spell otherwise than it stands."""
    if isinstance(value, dict):
        for name, item in value.items():
            _check_text(name, here)
            _check_value(item, here)
    elif isinstance(value, list):
        for item in value:
            _check_value(item, here)
    elif isinstance(value, str):
        _check_text(value, here)
    elif isinstance(value, int | float) and abs(value) > _EXACT_INTEGERS:
        raise UnsupportedSchema(here, "numbers beyond ±2^53 are not kept exactly")


def _check_text(text: str, here: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UnsupportedSchema(here, "a text holds half a surrogate pair") from None
