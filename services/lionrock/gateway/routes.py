"""Which engines answer for which model: the routes that the operator writes for gateways, and the choice among them.

Knows the document and the rule of choice; does no I/O, opens nothing. The document, at most 1 MiB:

    {"models": {"smollm2": {"endpoints": [{"target": "dns:///m-r.ns.svc:50053", "weight": 90, "revision": "r",
                                           "tokenization": "dns:///m-r-tok.ns.svc:50052", "pool": "ascend"}], "tenant": null}}}

A weight is a share of the new requests; an endpoint of weight 0 gets none, and only continues answers that others lost. With a
tenant the model is that tenant's alone. An endpoint without `tokenization` has that of the gateway's own settings. `pool` names the
chips that it stands on, for tenants that keep to chips of their own. Nothing unknown is passed over: it might be a restriction.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

MAX_ROUTES_BYTES: Final = 1 << 20
"""What a ConfigMap can hold."""
MAX_MODELS: Final = 2048
MAX_ENDPOINTS: Final = 16
"""Of one model."""
MAX_TARGETS: Final = 8192
"""Of all models, engines and tokenization together: each is a connection."""
MAX_WEIGHT: Final = 1_000_000

_MODEL: Final = re.compile(r"[^\s\x00-\x1f\x7f]{1,128}")
_TARGET: Final = re.compile(r"(dns:///)?[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?:[0-9]{1,5}", re.ASCII)
_REVISION: Final = re.compile(r"[A-Za-z0-9._-]{0,63}", re.ASCII)
_POOL: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?", re.ASCII)
_TENANT: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)


class RoutesInvalid(Exception):
    """The document is not one that a gateway may follow; the message says where."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One engine, as gRPC finds it. revision: what runs there; empty where nobody says.

    tokenization: what knows its tokenizer, as gRPC finds that; None: the gateway's own. pool: chip pool that it stands on; None:
    nobody says.
    """

    target: str
    weight: int = 1
    revision: str = ""
    tokenization: str | None = None
    pool: str | None = None


@dataclass(frozen=True, slots=True)
class Share:
    """Which engines answer a tenant. dedicated: those of its own models alone; pools: of them those on these pools; None: any."""

    tenant: str
    dedicated: bool = False
    pools: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class ModelRoute:
    """Where one model is answered, and for whom. tenant: None for all of them."""

    endpoints: tuple[Endpoint, ...]
    tenant: str | None = None


@dataclass(frozen=True, slots=True)
class RouteTable:
    """All routes. only: the one engine of a gateway without routes, which is asked for every model."""

    models: Mapping[str, ModelRoute] = field(default_factory=lambda: MappingProxyType({}))
    only: Endpoint | None = None

    @property
    def targets(self) -> frozenset[str]:
        """Every engine's."""
        routed = {endpoint.target for route in self.models.values() for endpoint in route.endpoints}
        return frozenset(routed if self.only is None else {self.only.target})

    @property
    def tokenizations(self) -> frozenset[str]:
        """Every tokenization's that the routes name."""
        endpoints = (endpoint for route in self.models.values() for endpoint in route.endpoints)
        return frozenset(endpoint.tokenization for endpoint in endpoints if endpoint.tokenization is not None)

    @property
    def revisions(self) -> frozenset[tuple[str, str]]:
        """(model, revision) of all that is routed."""
        return frozenset((model, endpoint.revision) for model, route in self.models.items() for endpoint in route.endpoints)

    def route(self, model: str, share: Share) -> ModelRoute | None:
        """Return the route of a model for a tenant; None: for them there is no such model.

        A model of the tenant's own of which nothing is on its pools now has a route without endpoints.
        """
        if self.only is not None:
            return None if share.dedicated else ModelRoute((self.only,))
        route = self.models.get(model)
        if route is None or route.tenant not in ((share.tenant,) if share.dedicated else (None, share.tenant)):
            return None
        if share.pools is None:
            return route
        return ModelRoute(tuple(endpoint for endpoint in route.endpoints if endpoint.pool in share.pools), route.tenant)


def pick(endpoints: Sequence[Endpoint], draw: float) -> Endpoint | None:
    """Choose by weight. draw: in [0, 1), evenly distributed. None: no endpoint has a weight."""
    total = sum(endpoint.weight for endpoint in endpoints)
    mark = draw * total
    for endpoint in endpoints:
        mark -= endpoint.weight
        if mark < 0:
            return endpoint
    return None


def parse_routes(text: bytes) -> RouteTable:
    """Read a document. Raises RoutesInvalid."""
    if len(text) > MAX_ROUTES_BYTES:
        raise RoutesInvalid(f"more than {MAX_ROUTES_BYTES} bytes")
    try:
        document = json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError):
        raise RoutesInvalid("no JSON, or a key twice in one object") from None
    models = _fields(document, "the document", {"models"})["models"]
    if not isinstance(models, dict) or len(models) > MAX_MODELS:
        raise RoutesInvalid(f"models: an object with {MAX_MODELS} names at most")
    table = RouteTable(MappingProxyType({_model(name): _route(name, value) for name, value in models.items()}))
    if len(table.targets | table.tokenizations) > MAX_TARGETS:
        raise RoutesInvalid(f"more than {MAX_TARGETS} targets")
    return table


def _route(model: str, value: object) -> ModelRoute:
    where = f"models.{model}"
    fields = _fields(value, where, {"endpoints"}, optional={"tenant"})
    given = fields["endpoints"]
    if not isinstance(given, list) or len(given) > MAX_ENDPOINTS:
        raise RoutesInvalid(f"{where}.endpoints: a list of {MAX_ENDPOINTS} at most")
    endpoints = tuple(_endpoint(entry, f"{where}.endpoints[{number}]") for number, entry in enumerate(given))
    if len({endpoint.target for endpoint in endpoints}) < len(endpoints):
        raise RoutesInvalid(f"{where}.endpoints: a target twice")
    tenant = fields.get("tenant")
    return ModelRoute(endpoints, None if tenant is None else _text(tenant, _TENANT, f"{where}.tenant"))


def _endpoint(value: object, where: str) -> Endpoint:
    fields = _fields(value, where, {"target", "weight", "revision"}, optional={"tokenization", "pool"})
    weight = fields["weight"]
    if type(weight) is not int or not 0 <= weight <= MAX_WEIGHT:
        raise RoutesInvalid(f"{where}.weight: a whole number from 0 to {MAX_WEIGHT}")
    target = _text(fields["target"], _TARGET, f"{where}.target")
    tokenization, pool = fields.get("tokenization"), fields.get("pool")
    return Endpoint(
        target,
        weight,
        _text(fields["revision"], _REVISION, f"{where}.revision"),
        None if tokenization is None else _text(tokenization, _TARGET, f"{where}.tokenization"),
        None if pool is None else _text(pool, _POOL, f"{where}.pool"),
    )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a key twice")
    return made


def _fields(value: object, where: str, required: set[str], *, optional: frozenset[str] | set[str] = frozenset()) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RoutesInvalid(f"{where}: an object is expected")
    if missing := sorted(required - value.keys()):
        raise RoutesInvalid(f"{where}: {', '.join(missing)} is missing")
    if value.keys() - required - optional:
        raise RoutesInvalid(f"{where}: a key that this gateway does not know")
    return value


def _model(name: str) -> str:
    if not _MODEL.fullmatch(name):
        raise RoutesInvalid("models: a name that no model can have")
    return name


def _text(value: object, pattern: re.Pattern[str], where: str) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise RoutesInvalid(f"{where}: not of the expected form")
    return value
