"""What the World can be asked: nodes, pods, pools, models, children, and chips.

The reading half of `world`, which keeps it up to date. What is returned is a view of the present moment and not to be kept.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Set
from types import MappingProxyType

from lionrock.operator.capacity import NO_CHIPS, NodeChips, PoolCapacity, Room
from lionrock.operator.indices import Grouped
from lionrock.operator.node_chips import Owner, kept_on
from lionrock.operator.pool_nodes import PoolNodes
from lionrock.operator.pools import PoolProblem, PoolRules, ResolvedPool
from lionrock.operator.reservations import Reservations
from lionrock.operator.resources import (
    Child,
    ChildKey,
    ChipPool,
    ModelDeployment,
    Node,
    NodeName,
    ObjectKey,
    Pod,
    PoolName,
    Revision,
    Slot,
    UnreadableModel,
    UnreadablePool,
)
from lionrock.operator.tenant import Tenant
from lionrock.operator.tenant_admission import TENANTS_NAME, Admission, TenantRules, admit
from lionrock.operator.waiting import Queue, Waiting

Model = ModelDeployment | UnreadableModel
Pool = ChipPool | UnreadablePool


class WorldView:
    """Nodes, pods, pools, models and their children as last seen."""

    def __init__(self, rules: PoolRules, tenant_rules: TenantRules | None = None) -> None:
        self.rules = rules
        self.tenant_rules = tenant_rules or TenantRules()
        self._nodes: dict[NodeName, Node] = {}
        self._pods: dict[ObjectKey, Pod] = {}
        self._pools: dict[PoolName, Pool] = {}
        self._models: dict[ObjectKey, Model] = {}
        self._tenants: dict[ObjectKey, Tenant] = {}
        self._admissions: dict[str, Admission] = {}
        """As far as they have been asked for since something of them changed."""
        self._kept_pools: dict[str, Mapping[str, str]] = {}
        """By namespace, pools that a tenant has to itself."""
        self._children: dict[ChildKey, Child] = {}
        self._pods_on: Grouped[NodeName, ObjectKey, Pod] = Grouped()
        self._pods_of: Grouped[ObjectKey, ObjectKey, Pod] = Grouped()
        self._children_of: Grouped[ObjectKey, ChildKey, Child] = Grouped()
        self._models_in: Grouped[str, ObjectKey, Model] = Grouped()
        self._members: dict[PoolName, PoolNodes] = {}
        self._problems: dict[PoolName, PoolProblem] = {}
        self._chips: dict[NodeName, dict[str, NodeChips]] = {}
        self._reservations = Reservations()
        self._queue = Queue()
        self._unsettled: set[ObjectKey] = set()

    # ---- what there is -----------------------------------------------------------------------------------------------------

    @property
    def nodes(self) -> Mapping[NodeName, Node]:
        """Every node."""
        return MappingProxyType(self._nodes)

    @property
    def pools(self) -> Mapping[PoolName, Pool]:
        """Every pool, readable or not."""
        return MappingProxyType(self._pools)

    @property
    def models(self) -> Mapping[ObjectKey, Model]:
        """Every model, readable or not."""
        return MappingProxyType(self._models)

    @property
    def pods(self) -> Mapping[ObjectKey, Pod]:
        """Every pod that matters."""
        return MappingProxyType(self._pods)

    def models_of(self, namespace: str) -> Sequence[Model]:
        """Models of a namespace, by name."""
        return self._models_in.sorted(namespace)

    def pods_of(self, model: ObjectKey) -> Collection[Pod]:
        """Pods that carry the model's labels, heads and workers of all revisions, by name."""
        return self._pods_of.sorted(model)

    def pods_on(self, node: NodeName) -> Collection[Pod]:
        """Pods on a node that matter, by name."""
        return self._pods_on.sorted(node)

    def child(self, key: ChildKey) -> Child | None:
        """Child of that kind and name, whosever it is."""
        return self._children.get(key)

    def children_of(self, model: ObjectKey) -> Collection[Child]:
        """Children that carry the model's label, by kind and name."""
        return self._children_of.sorted(model)

    # ---- tenants -----------------------------------------------------------------------------------------------------------

    @property
    def tenants(self) -> Mapping[ObjectKey, Tenant]:
        """Every Tenant, readable or not."""
        return MappingProxyType(self._tenants)

    def tenants_namespaces(self) -> Sequence[str]:
        """Namespaces that have Tenants, or something published of them."""
        published = (key.namespace for key in self._children if key.kind == "ConfigMap" and key.name == TENANTS_NAME)
        return sorted({*(key.namespace for key in self._tenants), *published})

    def published_tenants(self, namespace: str) -> Mapping[str, str]:
        """Return what stands in the namespace's ConfigMap of tenants, whoever wrote it."""
        child = self._children.get(ChildKey("ConfigMap", namespace, TENANTS_NAME))
        data = None if child is None else child.body.get("data")
        return {str(key): str(text) for key, text in data.items()} if isinstance(data, Mapping) else {}

    def admission(self, namespace: str) -> Admission:
        """Judge the Tenants of a namespace together."""
        found = self._admissions.get(namespace)
        if found is None:
            tenants = (tenant for key, tenant in self._tenants.items() if key.namespace == namespace)
            found = self._admissions[namespace] = admit(tenants, self.published_tenants(namespace), self.tenant_rules)
        return found

    def keepers_of(self, pool: PoolName) -> Sequence[ObjectKey]:
        """Tenants that have a pool to themselves: one, or of several namespaces several, and then nobody can use it."""
        kept = sorted(self._kept_pools.items())
        return [ObjectKey(namespace, pools[pool]) for namespace, pools in kept if pool in pools]

    def pools_kept_for(self, tenant: ObjectKey) -> Sequence[str]:
        """Pools that a tenant has to itself; none: it keeps to none."""
        return sorted(pool for pool, name in self._kept_pools.get(tenant.namespace, {}).items() if name == tenant.name)

    # ---- chips -------------------------------------------------------------------------------------------------------------

    def resolved(self, pool: PoolName) -> ResolvedPool | PoolProblem | None:
        """Return the pool with its chip, or why it has none; None: there is no such pool."""
        members = self._members.get(pool)
        return members.pool if members is not None else self._problems.get(pool)

    def capacity(self, pool: PoolName) -> PoolCapacity:
        """Figures of a pool; zeros for one that is not there or has no chip."""
        members = self._members.get(pool)
        return PoolCapacity() if members is None else members.capacity

    def pool_nodes(self, pool: PoolName) -> PoolNodes | None:
        """Nodes of a pool with their free chips; None: the pool is not there or has no chip."""
        return self._members.get(pool)

    def is_covered(self, node: NodeName, resource: str) -> bool:
        """Whether a pool of that resource has the node."""
        return any(members.pool.resource == resource and members.has(node) for members in self._members.values())

    def chips(self, node: NodeName, resource: str) -> NodeChips:
        """Chips of one resource on one node."""
        return self._chips.get(node, {}).get(resource, NO_CHIPS)

    def room(
        self, pool: PoolName, model: ObjectKey, *, revisions: Set[Revision] = frozenset(), slots: Collection[Slot] = ()
    ) -> Room | None:
        """Room in which placements on the pool are tried out; None: the pool is not there or has no chip.

        revisions, slots: of the model, whose chips count as free, because it will give them back.
        """
        members = self._members.get(pool)
        if members is None:
            return None
        room = Room(members.free)
        if not revisions and not slots:
            return room
        resource = members.pool.resource
        for node in self._nodes_of(model):
            if members.takes(node):
                kept = dict(self.kept_by(model, node, resource))
                given = sum(chips for revision, chips in kept.items() if revision in revisions)
                for slot in slots:
                    if slot.node == node and slot.resource == resource and slot.revision not in revisions:
                        back = min(slot.chips, kept.get(slot.revision, 0))
                        kept[slot.revision] = kept.get(slot.revision, 0) - back
                        given += back
                room.put(node, self.chips(node, resource).without(given))
        return room

    def kept_by(self, model: ObjectKey, node: NodeName, resource: str) -> Mapping[Revision, int]:
        """Chips that revisions of a model keep or hold on a node."""
        return {revision: chips for (owner, revision), chips in self._kept_on(node, resource).items() if owner == model}

    def slots_of(self, model: ObjectKey) -> tuple[Slot, ...]:
        """Chips kept for a model, observed or just assumed, in order."""
        return tuple(sorted(self._reservations.of(model)))

    def slots_on(self, node: NodeName) -> Mapping[ObjectKey, tuple[Slot, ...]]:
        """Chips kept on a node, by model."""
        return self._reservations.on(node)

    def models_on(self, pool: PoolName) -> Sequence[ObjectKey]:
        """Models that have chips in the pool, by name."""
        return sorted(self._reservations.models_in(pool))

    def waiting(self, pool: PoolName) -> Sequence[Waiting]:
        """Models that wait for chips of the pool, the first in the queue first."""
        return self._queue.for_pool(pool)

    def waiting_of(self, model: ObjectKey) -> Waiting | None:
        """Return what the model waits for, or None."""
        return self._queue.of(model)

    def _kept_on(self, node: NodeName, resource: str) -> Mapping[Owner, int]:
        return kept_on(node, resource, self._pods_on.of(node), self._reservations.on(node))

    def _nodes_of(self, model: ObjectKey) -> frozenset[NodeName]:
        """Nodes on which a model has chips or pods."""
        pods = (pod.node for pod in self._pods_of.of(model).values() if pod.node is not None)
        return frozenset({slot.node for slot in self._reservations.of(model)}.union(pods))
