"""What a namespace with models has once: the routes by which gateways find its models, and the secret of its Ray clusters."""

from __future__ import annotations

from lionrock.operator.actions import Decision, Delete, Manifest, ObjectRef
from lionrock.operator.desired_state import ROUTES_NAME, Route, RouteEndpoint, differs, ray_token, routes
from lionrock.operator.ray_pods import TOKEN_SECRET
from lionrock.operator.resources import ChildKey, ModelDeployment, Revision
from lionrock.operator.tokenization import tokenization_endpoint
from lionrock.operator.world import World


def decide_namespace(world: World, namespace: str) -> Decision:
    """Decide about a namespace. Without models it has nothing of ours."""
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


def _routes(models: list[ModelDeployment]) -> list[Route]:
    """Routes of models that are not going. Of two with one name the older one has it."""
    taken: dict[str, Route] = {}
    for model in sorted(models, key=lambda model: (model.meta.created_at is None, model.meta.created_at or 0, model.key)):
        if model.meta.is_deleting or model.served_name in taken:
            continue
        endpoints = [
            RouteEndpoint(
                target=str(each["address"]),
                tokenization=tokenization_endpoint(model.key.namespace, model.key.name, revision),
                revision=revision,
                weight=int(each.get("weightPercent", 0)),
            )
            for each in model.status.body.get("endpoints") or ()
            if (revision := Revision(str(each.get("revision", ""))))
        ]
        taken[model.served_name] = Route(served_name=model.served_name, tenant=model.spec.tenant, endpoints=endpoints)
    return list(taken.values())
