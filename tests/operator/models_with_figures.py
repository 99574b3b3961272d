"""Models on whose figures something depends: an old revision that serves, and a new one."""

from __future__ import annotations

from typing import Any

from lionrock.operator.resources import ModelDeployment, Revision, parse_model_deployment

OLD, NEW = Revision("0ld00000"), Revision("new00000")
CANARY = {"type": "Canary", "canary": {"percent": 10}}
AUTOSCALING = {"minReplicas": 1, "maxReplicas": 4}


def a_model(
    name: str = "llama", *, served: str = "llama", namespace: str = "models", revisions: int = 2, created: int = 1, **spec: Any
) -> ModelDeployment:
    model = parse_model_deployment(
        {
            "metadata": {"name": name, "namespace": namespace, "uid": name, "creationTimestamp": f"2026-01-0{created}T00:00:00Z"},
            "spec": {
                "model": {"name": served, "source": {"persistentVolumeClaim": {"claimName": "weights", "path": "llama"}}},
                "workload": {"concurrency": 4, "contextTokens": 2048},
                "territory": "HK",
                **spec,
            },
            "status": {"revisions": [{"name": revision} for revision in (NEW, OLD)[:revisions]]},
        }
    )
    assert isinstance(model, ModelDeployment)
    return model
