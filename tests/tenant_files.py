"""Tenant files as tests write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mesh_ca import TRUST_DOMAIN


def document(name: str, trust_domain: str = TRUST_DOMAIN, **spec: Any) -> dict[str, Any]:
    """A Tenant whose users may do what is tested."""
    principal = {"spiffeId": f"spiffe://{trust_domain}/tenant/{name}/user/*", "purposes": ["testing"]}
    whole = {"territory": "HK", "principals": [principal], **spec}
    return {"apiVersion": "lionrock.io/v1alpha1", "kind": "Tenant", "metadata": {"name": name}, "spec": whole}


def write(directory: Path, name: str, trust_domain: str = TRUST_DOMAIN, **spec: Any) -> None:
    """Put a Tenant file in place in one step."""
    fresh = directory / f".{name}.json"
    fresh.write_text(json.dumps(document(name, trust_domain, **spec)))
    fresh.replace(directory / f"{name}.json")
