"""What each service of a mesh on one machine is told: ports, certificates, peers, the model; written as config/<service>.yaml.

Knows the names of the services' settings. Each service checks its own file when it starts, so a wrong name here is found there.
"""

from __future__ import annotations

import json
import random
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lionrock.cli.certificates import RAY, CertificatePlan, Certificates
from lionrock.cli.errors import CommandError
from lionrock.cli.settings import MeshSettings
from lionrock.cli.state import StateDir, write_atomically
from lionrock.modelstore.source import ModelSource

# Order of starting: the slowest first, the door last. Ports are the gateway's and those after it, in this list's reverse order,
# and after them that of the gateway's HTTP API.
HTTP = "http"
START_ORDER = ("inference", "tokenization", "guardrails", "audit", "gateway")
# The door first: what runs may finish, nothing new comes in.
DRAIN_ORDER = (("gateway",), ("tokenization", "inference", "guardrails", "audit"))
PEERS = ("tokenization", "inference", "guardrails", "audit")
# `up` asks the gateway whether the models are ready; it should hear soon that they are.
_MODELS_FRESH_S = 0.5
# Below the range from which the kernel takes ports of outgoing connections, above Ray's worker ports.
_FREE_PORTS = range(20000, 32000)


@dataclass(frozen=True, slots=True)
class MeshConfiguration:
    """Where every service listens, and what it is told. `http`: where the gateway's HTTP API listens."""

    targets: Mapping[str, str]
    http: str | None
    contents: Mapping[str, Mapping[str, Any]]


def client_id(settings: MeshSettings) -> str:
    """Return the SPIFFE id of the user's own certificate."""
    return f"spiffe://{settings.trust_domain}/tenant/{settings.tenant}/user/{settings.user}"


def certificate_plan(settings: MeshSettings) -> CertificatePlan:
    """Whom the development CA issues for."""
    return CertificatePlan(settings.trust_domain, START_ORDER, client_id(settings), settings.certificate_lifetime_s)


def choose_ports(settings: MeshSettings) -> dict[str, int]:
    """Choose a port for each service. Raises CommandError naming the first that is taken."""
    names = (*reversed(START_ORDER), HTTP)
    if settings.port == 0:
        return dict(zip(names, _free_ports(len(names)), strict=True))
    ports = {name: settings.port + offset for offset, name in enumerate(names)}
    for name, port in ports.items():
        if not _is_free(port):
            raise CommandError(
                f"port {port} for {name} is in use",
                fix="give another --port; --port 0 takes free ones, `lionrock doctor` shows the taken ones",
            )
    return ports


def _free_ports(count: int) -> list[int]:
    candidates = random.SystemRandom().sample(_FREE_PORTS, 200)
    free = [port for port in candidates if _is_free(port)][:count]
    if len(free) < count:
        raise CommandError("no free ports between 20000 and 32000", fix="give a --port whose next five ports are free")
    return free


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def configure(
    settings: MeshSettings, state: StateDir, certificates: Certificates, ports: Mapping[str, int], model: ModelSource
) -> MeshConfiguration:
    """Say everything that the services are told, with the user's settings of single services merged over it."""
    targets = {name: f"127.0.0.1:{port}" for name, port in ports.items() if name != HTTP}
    http = f"127.0.0.1:{ports[HTTP]}"
    own: dict[str, dict[str, Any]] = {
        "gateway": _gateway(settings, state, targets, http),
        "tokenization": {"models": {model.name: str(state.models / model.name)}},
        "inference": _inference(settings, state, certificates, model),
        "guardrails": {},
        "audit": {
            "platform": settings.trust_domain,
            "tenants": [settings.tenant],
            "tenants_dir": str(state.tenants),
            "store_file": str(state.audit / "logs.sqlite"),
            "key_dir": str(state.audit / "keys"),
            "vault": {
                "key_store_file": str(state.audit / "vault" / "keys.sqlite"),
                "local_key_dir": str(state.audit / "tenant-keys"),
            },
        },
    }
    contents = {
        name: _merge({**_common(name, settings, state, certificates, targets[name]), **own[name]}, settings.services.get(name, {}))  # type: ignore[call-overload]
        for name in START_ORDER
    }
    api = contents["gateway"]["http"]  # the user may have said null
    return MeshConfiguration(targets, None if api is None else api["listen"], contents)


def write_configuration(state: StateDir, configuration: MeshConfiguration) -> None:
    """Write config/<service>.yaml, a new token for Ray, and the first time the secrets of API keys and of consents.

    JSON is YAML 1.2, and needs no writer.
    """
    write_atomically(state.ray_token, secrets.token_hex(32))
    for secret in (state.api_key_secret, state.consent_secret):
        if not secret.exists():
            write_atomically(secret, secrets.token_hex(32))
    for name, content in configuration.contents.items():
        write_atomically(state.config(name), json.dumps(content, indent=2) + "\n")


def _common(name: str, settings: MeshSettings, state: StateDir, certificates: Certificates, target: str) -> dict[str, Any]:
    telemetry: dict[str, Any] = {"span_dir": str(state.traces)}
    if settings.otlp_endpoint is not None:
        telemetry["otlp_endpoint"] = settings.otlp_endpoint
    return {
        "server": {
            "listen": target,
            "tls": certificates.tls(name).model_dump(mode="json"),
            "trust_domain": settings.trust_domain,
            "reflection": True,
            "drain_grace_s": settings.drain_grace_s,
            # A connection outlives neither the certificate that it was opened with nor its authority.
            "max_connection_age_s": settings.certificate_lifetime_s / 2,
        },
        "telemetry": telemetry,
    }


def _gateway(settings: MeshSettings, state: StateDir, targets: Mapping[str, str], http: str) -> dict[str, Any]:
    tenant = {
        "name": settings.tenant,
        "principals": [
            {
                "spiffe_id": f"spiffe://{settings.trust_domain}/tenant/{settings.tenant}/user/*",
                "purposes": ["demonstration"],
            },
            # Whoever runs the mesh administers its tenant: makes API keys, for one.
            {"spiffe_id": client_id(settings), "roles": ["user", "tenant_admin"], "purposes": ["demonstration"]},
        ],
    }
    return {
        **{name: {"target": targets[name], "service": name} for name in PEERS},
        "http": {"listen": http},
        "tenants": [tenant],
        "tenants_dir": str(state.tenants),
        "state": {"sqlite_file": str(state.root / "gateway" / "state.sqlite")},
        "api_keys": {"secret_file": str(state.api_key_secret)},
        "consents": {"secret_file": str(state.consent_secret)},
        "limits": {"models_fresh_s": _MODELS_FRESH_S},
    }


def _inference(settings: MeshSettings, state: StateDir, certificates: Certificates, model: ModelSource) -> dict[str, Any]:
    ray: dict[str, Any] = {"tls": certificates.tls(RAY).model_dump(mode="json"), "token_file": str(state.ray_token)}
    if settings.ray_address is not None:
        ray |= {"address": settings.ray_address, "undeploy": True}
    served = {
        "path": str(state.models / model.name),
        "tensor_parallel": settings.tensor_parallel,
        "pipeline_parallel": settings.pipeline_parallel,
    }
    return {"models": {model.name: served}, "ray": ray}


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` wins; mappings are merged key by key, lists are replaced."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, Mapping) else value
    return merged
