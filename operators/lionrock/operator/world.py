"""The observed world with the indices that deciding needs, kept up to date one object at a time.

Views are immutable, the World is not: one owner applies what the informers report and what was just written, and decides in
between; nobody else changes it. Each update costs what the change touches, not what there is. What was kept for models is read from
their status, so a World that is built anew from the same objects is the same World; `assume` covers the moment between a decision
and the object that comes back from the API server. Does not know plans or desired children.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from lionrock.operator.capacity import NO_CHIPS
from lionrock.operator.interest import is_unsettled, may_use, prefers
from lionrock.operator.node_chips import chips_on
from lionrock.operator.pool_nodes import PoolNodes
from lionrock.operator.pools import ResolvedPool, resolve_pool
from lionrock.operator.resources import (
    Child,
    ChildKey,
    ChipPool,
    Metadata,
    ModelDeployment,
    Node,
    NodeName,
    ObjectKey,
    Placement,
    Pod,
    PoolName,
)
from lionrock.operator.tenant import Tenant
from lionrock.operator.tenant_admission import TENANTS_NAME
from lionrock.operator.waiting import waiting_of
from lionrock.operator.world_view import Model, Pool, WorldView

__all__ = ["Model", "Pool", "Touched", "World"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Touched:
    """What to look at again after a change. models: in this order, for those who wait longest go first."""

    models: tuple[ObjectKey, ...] = ()
    pools: frozenset[PoolName] = frozenset()
    tenants: frozenset[ObjectKey] = frozenset()
    namespaces: frozenset[str] = frozenset()
    """Whose models are to be found elsewhere, or whose own objects were changed."""
    discovery: bool = False
    """Whether nodes have other chips or labels than before, or pools came or went."""


class World(WorldView):
    """Nodes, pods, pools, models and their children as last seen. Not safe for threads: its owner holds a lock."""

    # ---- changes -----------------------------------------------------------------------------------------------------------

    def apply_node(self, node: Node) -> Touched:
        """Take a node as it is now."""
        before = self._nodes.get(node.name)
        if before == node:
            return Touched()
        self._nodes[node.name] = node
        seen = before is None or before.chips.keys() != node.chips.keys() or before.labels != node.labels
        return self._node_changed(node.name, discovery=seen)

    def forget_node(self, name: NodeName) -> Touched:
        """Take note that a node is gone."""
        if self._nodes.pop(name, None) is None:
            return Touched()
        return self._node_changed(name, discovery=True)

    def apply_pod(self, pod: Pod) -> Touched:
        """Take a pod as it is now. One that is neither of a model nor asks for chips is left out."""
        if not pod.is_ours and not pod.chips:
            return self.forget_pod(pod.key)
        before = self._pods.get(pod.key)
        if before == pod:
            return Touched()
        return self._pod_changed(pod.key, before, pod)

    def forget_pod(self, key: ObjectKey) -> Touched:
        """Take note that a pod is gone."""
        before = self._pods.get(key)
        return Touched() if before is None else self._pod_changed(key, before, None)

    def apply_pool(self, pool: Pool) -> Touched:
        """Take a pool as it is now. One that is older than what is known is ignored."""
        before = self._pools.get(pool.name)
        if before is not None and (before == pool or _is_older(pool.meta, before.meta)):
            return Touched()
        self._pools[pool.name] = pool
        resolved, members = resolve_pool(pool, self.rules), self._members.get(pool.name)
        if members is not None and isinstance(resolved, ResolvedPool) and members.same_nodes(resolved):
            alike = members.pool.problem == resolved.problem and members.pool.image == resolved.image
            alike = (
                alike and members.pool.chip == resolved.chip and members.pool.pool.engine_backend == resolved.pool.engine_backend
            )
            members.pool = resolved
            models = () if alike else self._interested_in(pool.name, resolved.pool.territory)
            return Touched(models=models, pools=frozenset({pool.name}))
        if isinstance(resolved, ResolvedPool):
            self._problems.pop(pool.name, None)
            self._members[pool.name] = PoolNodes(resolved, self._nodes.values(), self._chips)
        else:
            self._members.pop(pool.name, None)
            self._problems[pool.name] = resolved
        territory = pool.territory if isinstance(pool, ChipPool) else None
        return Touched(models=self._interested_in(pool.name, territory), pools=frozenset({pool.name}), discovery=True)

    def forget_pool(self, name: PoolName) -> Touched:
        """Take note that a pool is gone."""
        pool = self._pools.pop(name, None)
        if pool is None:
            return Touched()
        self._members.pop(name, None)
        self._problems.pop(name, None)
        territory = pool.territory if isinstance(pool, ChipPool) else None
        return Touched(models=self._interested_in(name, territory), pools=frozenset({name}), discovery=True)

    def apply_model(self, model: Model) -> Touched:
        """Take a model as it is now, from an informer or as the API server returned it. One older than what is known is ignored."""
        before = self._models.get(model.key)
        if before is not None and (before == model or _is_older(model.meta, before.meta)):
            return Touched()
        self._models[model.key] = model
        self._models_in.put(None, model.key.namespace, model.key, model)
        placement = model.status.placement
        changed = self._reservations.observe(model.key, () if placement is None else placement.slots)
        readable = model if isinstance(model, ModelDeployment) else None
        self._queue.put(model.key, None if readable is None else waiting_of(readable))
        if readable is not None and is_unsettled(readable):
            self._unsettled.add(model.key)
        else:
            self._unsettled.discard(model.key)
        touched = self._recounted(changed.nodes, models=(model.key,), pools=changed.pools)
        if _routing(before) == _routing(model):
            return replace(touched, tenants=self._sharing(changed.pools))
        namespace = model.key.namespace
        return replace(
            touched, namespaces=frozenset({namespace}), tenants=self._sharing(changed.pools) | self._dedicated(namespace)
        )

    def forget_model(self, key: ObjectKey) -> Touched:
        """Take note that a model is gone."""
        model = self._models.pop(key, None)
        if model is None:
            return Touched()
        self._models_in.put(key.namespace, None, key, model)
        self._queue.put(key, None)
        self._unsettled.discard(key)
        changed = self._reservations.observe(key, ()) | self._reservations.withdraw(key)
        touched = self._recounted(changed.nodes, models=(key,), pools=changed.pools)
        tenants = self._sharing(changed.pools) | self._dedicated(key.namespace)
        return replace(touched, namespaces=frozenset({key.namespace}), tenants=tenants)

    def assume(self, key: ObjectKey, placement: Placement) -> Touched:
        """Keep the chips of a placement that is about to be written, beside those that the model has."""
        changed = self._reservations.assume(key, placement.slots)
        return self._recounted(changed.nodes, pools=changed.pools)

    def withdraw(self, key: ObjectKey) -> Touched:
        """Forget what was assumed: the write was refused, or what it returned has been applied."""
        changed = self._reservations.withdraw(key)
        return self._recounted(changed.nodes, pools=changed.pools)

    def apply_tenant(self, tenant: Tenant) -> Touched:
        """Take a Tenant as it is now. One that is older than what is known is ignored."""
        key = tenant.meta.key
        before = self._tenants.get(key)
        if before is not None and (before.meta == tenant.meta or _is_older(tenant.meta, before.meta)):
            return Touched()
        self._tenants[key] = tenant
        if before is not None and (before.text, before.meta.is_deleting) == (tenant.text, tenant.meta.is_deleting):
            return Touched(tenants=frozenset({key}))  # its status or its labels
        return self._tenants_changed(key.namespace, {key})

    def forget_tenant(self, key: ObjectKey) -> Touched:
        """Take note that a Tenant is gone."""
        return Touched() if self._tenants.pop(key, None) is None else self._tenants_changed(key.namespace, set())

    def apply_child(self, child: Child) -> Touched:
        """Take a child as it is now."""
        before = self._children.get(child.key)
        if before is not None and (before == child or _is_older(child.meta, before.meta)):
            return Touched()
        self._children[child.key] = child
        return self._child_changed(child.key, before, child)

    def forget_child(self, key: ChildKey) -> Touched:
        """Take note that a child is gone."""
        child = self._children.pop(key, None)
        return Touched() if child is None else self._child_changed(key, child, None)

    # ---- indices -----------------------------------------------------------------------------------------------------------

    def _node_changed(self, name: NodeName, *, discovery: bool) -> Touched:
        node = self._nodes.get(name)
        pools = {pool for pool, members in self._members.items() if members.join(name, node)}
        touched = self._recounted({name}, models=self._models_at(name))
        return Touched(models=touched.models, pools=touched.pools | pools, discovery=discovery)

    def _pod_changed(self, key: ObjectKey, before: Pod | None, after: Pod | None) -> Touched:
        known = [pod for pod in (before, after) if pod is not None]
        self._pods_on.put(before.node if before else None, after.node if after else None, key, known[-1])
        self._pods_of.put(before.model if before else None, after.model if after else None, key, known[-1])
        if after is None:
            del self._pods[key]
        else:
            self._pods[key] = after
        models = [pod.model for pod in known if pod.model is not None]
        nodes = {pod.node for pod in known if pod.node is not None and pod.chips}
        if any(not pod.is_ours for pod in known):
            models.extend(model for node in nodes for model in self._reservations.on(node))
        return self._recounted(nodes, models=tuple(dict.fromkeys(models)))

    def _child_changed(self, key: ChildKey, before: Child | None, after: Child | None) -> Touched:
        known = [child for child in (before, after) if child is not None]
        self._children_of.put(before.model if before else None, after.model if after else None, key, known[-1])
        models = tuple(dict.fromkeys(child.model for child in known if child.model is not None))
        touched = Touched(
            models=models, namespaces=frozenset({key.namespace} if any(child.model is None for child in known) else ())
        )
        if key.kind != "ConfigMap" or key.name != TENANTS_NAME:
            return touched
        changed = self._tenants_changed(key.namespace, {each for each in self._tenants if each.namespace == key.namespace})
        return replace(changed, models=tuple(dict.fromkeys((*models, *changed.models))))

    def _tenants_changed(self, namespace: str, tenants: set[ObjectKey]) -> Touched:
        """Judge the Tenants of a namespace anew. Models are touched whose pools become, or cease to be, a tenant's own."""
        self._admissions.pop(namespace, None)
        known = self._kept_pools.pop(namespace, {})
        texts = (each.text for key, each in self._tenants.items() if key.namespace == namespace)
        asked = any('"pools"' in text for text in (*texts, *self.published_tenants(namespace).values()))
        pools = self.admission(namespace).pools if asked else {}
        if pools:
            self._kept_pools[namespace] = pools
        moved = sorted(pool for pool in pools.keys() | known.keys() if pools.get(pool) != known.get(pool))
        found = (self._pools.get(PoolName(pool)) for pool in moved)
        models = [
            model
            for pool in found
            if pool is not None
            for model in self._interested_in(pool.name, pool.territory if isinstance(pool, ChipPool) else None)
        ]
        return Touched(models=tuple(dict.fromkeys(models)), tenants=frozenset(tenants), namespaces=frozenset({namespace}))

    def _sharing(self, pools: Iterable[PoolName]) -> frozenset[ObjectKey]:
        """Tenants that have these pools to themselves, or should have."""
        return frozenset(keeper for pool in pools for keeper in self.keepers_of(pool))

    def _dedicated(self, namespace: str) -> frozenset[ObjectKey]:
        """Tenants of a namespace that share no engines."""
        verdicts = self.admission(namespace).verdicts if self._tenants else {}
        return frozenset(
            ObjectKey(namespace, name)
            for name, verdict in verdicts.items()
            if verdict.resource is not None and verdict.resource.spec.tenancy.type == "Dedicated"
        )

    def _recounted(self, nodes: Iterable[NodeName], models: tuple[ObjectKey, ...] = (), pools: Iterable[PoolName] = ()) -> Touched:
        """Count the chips of those nodes anew. pools: those that are touched even if their nodes take no pods."""
        touched, grown = set(pools), set()
        for name in nodes:
            chips = chips_on(name, self._nodes.get(name), self._pods_on.of(name), self._reservations.on(name))
            if chips:
                self._chips[name] = chips
            else:
                self._chips.pop(name, None)
            for pool, members in self._members.items():
                if members.has(name):
                    free = members.free.of(name)
                    if members.count(name, chips.get(members.pool.resource, NO_CHIPS)):
                        touched.add(pool)
                        if members.free.of(name) > free:
                            grown.add(pool)
        woken = [model for pool in sorted(grown) for model in self._wants(pool)]
        return Touched(models=tuple(dict.fromkeys((*models, *woken))), pools=frozenset(touched))

    def _wants(self, pool: PoolName) -> Iterable[ObjectKey]:
        """Models that could use free chips of the pool, those that wait for it first."""
        members = self._members[pool]
        for waiting in self._queue.for_pool(pool):
            if members.free.pods_that_fit(waiting.chips_per_pod) >= waiting.pods_per_replica:
                yield waiting.model
        for key in sorted(self._unsettled):
            model = self._models[key]
            if isinstance(model, ModelDeployment) and self._queue.of(key) is None and prefers(model, members.pool):
                yield key

    def _interested_in(self, pool: PoolName, territory: str | None) -> tuple[ObjectKey, ...]:
        """Models that have chips in a pool, or would take some."""
        return tuple(
            key
            for key, model in sorted(self._models.items())
            if key in self._reservations.models_in(pool) or (isinstance(model, ModelDeployment) and may_use(model, pool, territory))
        )

    def _models_at(self, node: NodeName) -> tuple[ObjectKey, ...]:
        """Models with chips or pods on a node."""
        pods = (pod.model for pod in self._pods_on.of(node).values() if pod.model is not None)
        return tuple(sorted({*self._reservations.on(node), *pods}))


def _routing(model: Model | None) -> object:
    """Return what the routes of a namespace say of a model."""
    if not isinstance(model, ModelDeployment):
        return model is None
    pools = [(revision.name, revision.pool) for revision in model.status.revisions]
    return model.meta.is_deleting, model.served_name, model.spec.tenant, model.status.body.get("endpoints"), pools


def _is_older(meta: Metadata, known: Metadata) -> bool:
    """Whether an object is an earlier state of the one that is known.

    Resource versions of one kind are integers that grow: Kubernetes Enhancement Proposal 5504.
    """
    if meta.uid != known.uid or not meta.resource_version.isdecimal() or not known.resource_version.isdecimal():
        return False
    return int(meta.resource_version) < int(known.resource_version)
