"""What a namespace has once: routes by which gateways find its models, the secret of its Ray clusters, its published tenants."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from lionrock.operator.actions import Decision, Delete, Manifest, ObjectRef
from lionrock.operator.desired_state import ROUTES_NAME, Route, RouteEndpoint, differs, ray_token, routes
from lionrock.operator.ray_pods import TOKEN_SECRET
from lionrock.operator.resources import ChildKey, ModelDeployment, Revision
from lionrock.operator.tenant_decision import publication
from lionrock.operator.tokenization import tokenization_endpoint
from lionrock.operator.world import World


def decide_namespace(world: World, namespace: str) -> Decision:
    """Decide about a namespace. Without models and tenants it has nothing of ours."""
    models = _decide_models(world, namespace)
    tenants, taken_away = publication(world, namespace)
    return replace(models, apply=(*models.apply, *tenants), pod_patches=taken_away)


def _decide_models(world: World, namespace: str) -> Decision:
    models = [model for model in world.models_of(namespace) if isinstance(model, ModelDeployment)]
    child = world.child(ChildKey("ConfigMap", namespace, ROUTES_NAME))
    if not world.models_of(namespace):
        if child is None:
            return Decision()
        why = "the namespace has no models"
        secret = ObjectRef(api_version="v1", kind="Secret", namespace=namespace, name=TOKEN_SECRET)
        routes_ref = ObjectRef(api_version="v1", kind="ConfigMap", namespace=namespace, name=ROUTES_NAME, uid=child.meta.uid)
        return Decision(delete=(Delete(ref=secret, why=why), Delete(ref=routes_ref, why=why)))
    manifest = routes(namespace, _routes(models))
    apply: tuple[Manifest, ...] = (manifest,) if child is None or differs(manifest, child.body) else ()
    token = ray_token(namespace)
    there = world.child(ChildKey("Secret", namespace, token.manifest["metadata"]["name"])) is not None
    return Decision(secrets=() if there else (token,), apply=apply)


def routed_models(models: Iterable[ModelDeployment]) -> dict[str, ModelDeployment]:
    """Models of one namespace that are not going, by the name that they are served under. Of two the older one has it."""
    taken: dict[str, ModelDeployment] = {}
    for model in sorted(models, key=lambda model: (model.meta.created_at is None, model.meta.created_at or 0, model.key)):
        if not model.meta.is_deleting:
            taken.setdefault(model.served_name, model)
    return taken


def _routes(models: Iterable[ModelDeployment]) -> list[Route]:
    found: list[Route] = []
    for name, model in routed_models(models).items():
        pools = {revision.name: revision.pool for revision in model.status.revisions}
        endpoints = [
            RouteEndpoint(
                target=str(each["address"]),
                tokenization=tokenization_endpoint(model.key.namespace, model.key.name, revision),
                revision=revision,
                weight=int(each.get("weightPercent", 0)),
                pool=pools.get(revision),
            )
            for each in model.status.body.get("endpoints") or ()
            if (revision := Revision(str(each.get("revision", ""))))
        ]
        found.append(Route(served_name=name, tenant=model.spec.tenant, endpoints=endpoints))
    return found
