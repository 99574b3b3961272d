"""Tenants that are good, among them one that states every field, and all that comes of breaking one field of it at a time.

Made by going through the resource's own schema, so that a field that is new is broken too. FULL must state it: a test says so.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from typing import Any

from tenant_files import document

Document = dict[str, Any]

QUOTAS = {"requestsPerMinute": 10, "tokensPerMinute": 1000, "dailyTokens": 100_000, "concurrentStreams": 4}
GRANT: Document = {
    "roles": ["user", "regulator"],
    "purposes": ["customer_service", "oversight"],
    "models": ["smollm2", "meta/llama-3.1-8b"],
    "dataClasses": ["public", "personal"],
    "profile": "strict",
    "maxStreams": 2,
    "quotas": QUOTAS,
    "priority": "batch",
    "notAfter": "2027-01-31T18:00:00+08:00",
}
ISSUER: Document = {
    "issuer": "https://login.bank.example/realms/staff",
    "audiences": ["lionrock", "desk"],
    "algorithms": ["RS256", "EdDSA"],
    "jwksUri": "https://login.bank.example/keys",
    "caFile": "/etc/lionrock/login-ca.crt",
    "authorizedParties": ["front-end"],
    "clockSkewSeconds": 5,
    "maxTokenAgeSeconds": 600,
    "rolesClaim": "realm_access.roles",
    "bindings": [{"value": "tellers", **GRANT}, {"value": "auditors", "purposes": ["oversight"]}],
}
MINIMAL = document("retail")
FULL: Document = document(
    "retail",
    displayName="零售銀行 retail",
    territory="HK",
    profile="default",
    maxStreams=8,
    purposes=["customer_service", "oversight"],
    models=["smollm2", "meta/llama-3.1-8b"],
    dataClasses=["public", "internal", "personal"],
    quotas={**QUOTAS, "weight": 4},
    tenancy={"type": "Dedicated", "pools": ["ascend", "spare-1"]},
    principals=[{"spiffeId": "spiffe://bank.example/tenant/retail/workload/desk", **GRANT}],
    issuers=[ISSUER],
    purposeRules=[
        {
            "purpose": "customer_service",
            "requiresConsent": True,
            "exemptFromOptOut": False,
            "notice": {
                "version": 3,
                "consentSince": 2,
                "texts": [{"language": "en", "text": "What we keep,\nand why."}, {"language": "zh-Hant", "text": "我們保存甚麼"}],
            },
        }
    ],
    disclosure=[{"language": "en", "text": "A machine wrote this."}],
    review={
        "purposes": ["oversight"],
        "profiles": ["strict"],
        "ttlMinutes": 60,
        "notify": {"url": "https://hooks.bank.example/x", "secretFile": "/etc/lionrock/hook", "caFile": "/etc/lionrock/hook.crt"},
    },
    retention={
        "classes": [
            {"name": "usual", "keepDays": 30, "expireDays": 365},
            {"name": "disputes", "keepDays": 365, "purposes": ["oversight"]},
        ],
        "default": "usual",
    },
    keys={"transit": {"name": "retail", "mount": "transit"}},
)

TEXTS = (
    "",
    "a",
    "A",
    "HK",
    "a b",
    "*",
    "é",
    "x\n",
    "\n",
    "-a",
    "a-",
    "a_b",
    "a.b",
    "a/b",
    "x" * 41,
    "x" * 64,
    "x" * 129,
    "x" * 300,
    "x" * 5000,
    "https://a.example",
    "http://a.example",
    "https://a.example/?x",
    "https://a.example:8443/b#c",
    "/etc/file",
    "spiffe://bank.example/tenant/retail/user/*",
    "spiffe://bank.example/tenant/broker/user/*",
    "spiffe://bank.example/tenant/retail/user/..",
    "2027-01-31T18:00:00Z",
    "2027-01-31T18:00:00+24:00",
    "2027-02-30T18:00:00Z",
    "2027-01-31 18:00:00Z",
    "2027-01-31T18:00:00.5Z",
    "2027-01-31T23:59:60Z",
    "1999-01-31T18:00:00Z",
    "\u2028",
    "\x85",
    "\x7f",
)
"""Each of them is good for something, or nearly."""
OTHERS: tuple[Any, ...] = ("1", 1, 1.5, True, [], {})
"""Values of every type."""


def broken(schema: Mapping[str, Any], whole: Document, *, under: str = "spec") -> Iterator[tuple[str, Document]]:
    """Yield documents with one thing changed, named by what it is. schema: of `under`, structural.

    Of fields of the same form one is changed.
    """
    for label, changed in _changes(schema, whole[under], under, set()):
        yield label, {**whole, under: changed}


def paths(schema: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Every field of a structural schema."""
    for name, part in schema.get("properties", {}).items():
        yield f"{path}.{name}"
        yield from paths(part, f"{path}.{name}")
    if "items" in schema:
        yield from paths(schema["items"], path)


def stated(value: Any, path: str = "") -> Iterator[str]:
    """Every field that a document states."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield f"{path}.{name}"
            yield from stated(part, f"{path}.{name}")
    elif isinstance(value, list):
        for part in value:
            yield from stated(part, path)


def _changes(schema: Mapping[str, Any], value: Any, path: str, seen: set[str]) -> Iterator[tuple[str, Any]]:
    form = json.dumps({key: part for key, part in schema.items() if key != "description"}, sort_keys=True)
    if form in seen:
        return
    seen.add(form)
    for other in OTHERS:
        if type(other) is not type(value):
            yield f"{path} = {other!r}", copy.deepcopy(other)
    match schema.get("type"):
        case "object":
            yield from _of_object(schema, value, path, seen)
        case "array":
            yield f"{path} = []", []
            yield f"{path} twice", [value[0], copy.deepcopy(value[0])]
            yield f"{path} too long", [copy.deepcopy(value[0]) for _ in range(schema["maxItems"] + 1)]
            for index, item in enumerate(value[:1]):
                for label, changed in _changes(schema["items"], item, f"{path}[{index}]", seen):
                    yield label, [changed, *value[1:]]
        case "integer":
            for number in (schema["minimum"] - 1, schema["minimum"], schema["maximum"], schema["maximum"] + 1, -1, 2**53):
                yield f"{path} = {number}", number
        case "string":
            for text in (*TEXTS, value.upper(), f"{value}\n", f" {value}", *schema.get("enum", ())):
                yield f"{path} = {text[:70]!r}", text


def _of_object(schema: Mapping[str, Any], value: Mapping[str, Any], path: str, seen: set[str]) -> Iterator[tuple[str, Any]]:
    yield f"{path}.unheardOf", {**value, "unheardOf": 1}
    for name, part in schema.get("properties", {}).items():
        snake = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)
        if name in value:
            yield f"{path}.{name} left out", {key: each for key, each in value.items() if key != name}
            for label, changed in _changes(part, value[name], f"{path}.{name}", seen):
                yield label, {**value, name: changed}
            if snake != name:
                yield f"{path}.{snake}", {**{key: each for key, each in value.items() if key != name}, snake: value[name]}
