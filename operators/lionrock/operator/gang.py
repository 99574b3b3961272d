"""All pods of a replica go to their nodes together, or none does.

Workers are made behind a scheduling gate. A replica's pods are let go in one step, each bound to the node of its slot, when there
is one for every slot that lacks one and every such node has the chips free at this moment. A pod that comes anew takes the slot
that is vacant. Pods that belong to no slot, or stand elsewhere than their slot, are deleted. Slots are decided by `placement`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from lionrock.operator.actions import Delete, ObjectRef, Patch
from lionrock.operator.resources import GANG_GATE, GROUP, NodeName, Pod, Revision, Slot
from lionrock.operator.world import World

REPLICA_LABEL: Final = f"{GROUP}/replica"
PART_LABEL: Final = f"{GROUP}/part"
HOSTNAME: Final = "kubernetes.io/hostname"
_TERM: Final = "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms/0/matchExpressions/-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Crew:
    """Pods of one revision, matched with its slots."""

    at: Mapping[Slot, Pod]
    """Pods that were let go to their slots."""
    gated: tuple[Pod, ...]
    """That wait, the oldest first."""
    strays: tuple[Pod, ...]
    """That were let go and have no slot."""
    leaving: tuple[Pod, ...]
    """That are being deleted, or have ended."""

    @property
    def ready(self) -> int:
        """How many pods are ready, wherever they stand: where another scheduler of gangs places them, none has a slot."""
        return sum(pod.is_ready for pod in (*self.at.values(), *self.strays))

    def is_running(self, slots: Iterable[Slot]) -> bool:
        """Whether a pod is ready in each of the slots."""
        return all((pod := self.at.get(slot)) is not None and pod.is_ready for slot in slots)


@dataclass(frozen=True, slots=True, kw_only=True)
class LettingGo:
    """What to do with the pods of one revision."""

    patches: tuple[Patch, ...] = ()
    delete: tuple[Delete, ...] = ()
    waits: str = ""
    """What the gang waits for; empty: all pods have been let go."""
    recheck_after_s: float | None = None


def muster(world: World, pods: Collection[Pod], revision: Revision, slots: Sequence[Slot]) -> Crew:
    """Match the workers of a revision with its slots."""
    workers = sorted(
        (pod for pod in pods if pod.revision == revision and pod.role == "worker"),
        key=lambda pod: (pod.created_at.timestamp() if pod.created_at else 0.0, pod.key),
    )
    vacant: dict[tuple[str, str, NodeName | None], Slot] = {(str(slot.replica), str(slot.part), slot.node): slot for slot in slots}
    at: dict[Slot, Pod] = {}
    gated, strays, leaving = [], [], []
    for pod in workers:
        if pod.deleted_at is not None or pod.has_ended:
            leaving.append(pod)
        elif pod.is_gated:
            gated.append(pod)
        else:
            place = (pod.labels.get(REPLICA_LABEL, ""), pod.labels.get(PART_LABEL, ""), bound_for(world, pod))
            slot = vacant.pop(place, None)
            if slot is None:
                strays.append(pod)
            else:
                at[slot] = pod
    return Crew(at=at, gated=tuple(gated), strays=tuple(strays), leaving=tuple(leaving))


def bound_for(world: World, pod: Pod) -> NodeName | None:
    """Return the node that a pod is on, or may go to. Its affinity names a host, which need not be the node's name."""
    if pod.node is not None or pod.pinned_node is None:
        return pod.node
    alike = world.nodes.get(pod.pinned_node)
    if alike is not None and alike.labels.get(HOSTNAME, alike.name) == pod.pinned_node:
        return alike.name
    return next((node.name for node in world.nodes.values() if node.labels.get(HOSTNAME) == pod.pinned_node), None)


def refused_nodes(crew: Crew, now: datetime, after_s: float) -> tuple[dict[int, NodeName], float | None]:
    """Replicas of which a pod has been refused by the scheduler for long on its own node, and when to look again, seconds."""
    refused: dict[int, NodeName] = {}
    left: list[float] = []
    for slot, pod in crew.at.items():
        if pod.node is None and pod.unschedulable is not None:
            since = pod.unschedulable_since or pod.created_at or now
            left_s = (since + timedelta(seconds=after_s) - now).total_seconds()
            if left_s <= 0:
                refused[slot.replica] = slot.node
            else:
                left.append(left_s)
    return refused, min(left, default=None)


def let_go(world: World, crew: Crew, slots: Sequence[Slot]) -> LettingGo:
    """Let whole replicas go, and delete what stands where nothing of theirs should."""
    delete = [_delete(pod, "no chips are kept for it there") for pod in crew.strays]
    # A pod that waits for nothing any longer: a replica was taken away.
    patches: list[Patch] = []
    waits: list[str] = []
    gated = list(crew.gated)
    free = _Free(world)
    for replica in sorted({slot.replica for slot in slots}):
        vacant = [slot for slot in slots if slot.replica == replica and slot not in crew.at]
        if not vacant:
            continue
        if len(gated) < len(vacant):
            waits.append(f"replica {replica} waits for {len(vacant) - len(gated)} pods to be made")
            continue
        if (node := free.take(vacant)) is not None:
            waits.append(f"replica {replica} waits for chips of node {node} to be given back")
            continue
        let, gated = gated[: len(vacant)], gated[len(vacant) :]
        patches += [_let_go(world, pod, slot) for pod, slot in zip(let, vacant, strict=True)]
    return LettingGo(patches=tuple(patches), delete=tuple(delete), waits="; ".join(waits))


def surplus(crew: Crew, slots: Sequence[Slot]) -> list[Pod]:
    """Pods that go when there are more than slots: strays first, then those that were never let go, the youngest first."""
    idle = [*crew.strays, *reversed(crew.gated)]
    return idle[: max(0, len(crew.at) + len(idle) - len(slots))]


class _Free:
    """Chips that are free on nodes at this moment. Pods count until they are gone, whosever they are, and pods on their way."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._taken: dict[tuple[NodeName, str], int] = {}
        self._pinned: dict[tuple[NodeName, str], int] | None = None

    def take(self, slots: Sequence[Slot]) -> NodeName | None:
        """Take chips for all of the slots, or for none. Returns the first node that lacks them."""
        wanted: dict[tuple[NodeName, str], int] = {}
        for slot in slots:
            place = (slot.node, slot.resource)
            wanted[place] = wanted.get(place, 0) + slot.chips
        for (node, resource), chips in sorted(wanted.items()):
            if chips > self._free(node, resource):
                return node
        for place, chips in wanted.items():
            self._taken[place] = self._taken.get(place, 0) + chips
        return None

    def _free(self, node: NodeName, resource: str) -> int:
        found = self._world.nodes.get(node)
        if found is None:
            return 0
        bound = sum(pod.chips.get(resource, 0) for pod in self._world.pods_on(node) if pod.holds_chips)
        coming = sum(
            pod.chips.get(resource, 0)
            for owner in self._world.slots_on(node)
            for pod in self._world.pods_of(owner)
            if pod.node is None and not pod.is_gated and not pod.has_ended and bound_for(self._world, pod) == node
        )
        return found.chips.get(resource, 0) - bound - coming - self._taken.get((node, resource), 0)


def _let_go(world: World, pod: Pod, slot: Slot) -> Patch:
    """Bind a gated pod to its node and take the gate away, in one write: only what narrows may change behind a gate."""
    found = world.nodes.get(slot.node)
    hostname = slot.node if found is None else found.labels.get(HOSTNAME, slot.node)
    gates = [{"name": name} for name in pod.gates if name != GANG_GATE]
    operations: tuple[Mapping[str, Any], ...] = (
        {"op": "test", "path": "/metadata/uid", "value": pod.uid},
        {"op": "test", "path": "/spec/schedulingGates", "value": [{"name": name} for name in pod.gates]},
        {"op": "add", "path": _TERM, "value": {"key": HOSTNAME, "operator": "In", "values": [hostname]}},
        {"op": "add", "path": f"/metadata/labels/{_escaped(REPLICA_LABEL)}", "value": str(slot.replica)},
        {"op": "add", "path": f"/metadata/labels/{_escaped(PART_LABEL)}", "value": str(slot.part)},
        {"op": "replace", "path": "/spec/schedulingGates", "value": gates},
    )
    return Patch(ref=pod_ref(pod), operations=operations, why=f"replica {slot.replica} part {slot.part} goes to node {slot.node}")


def silence_left_s(world: World, name: NodeName, after_s: float, now: datetime) -> float | None:
    """Seconds until a node that is silent is given up, 0 when it is so already; None for one that answers."""
    node = world.nodes.get(name)
    if node is None:
        return 0.0
    if node.is_ready:
        return None
    return 0.0 if node.ready_since is None else max(0.0, after_s - (now - node.ready_since).total_seconds())


def pod_ref(pod: Pod) -> ObjectRef:
    """Refer to exactly that pod."""
    return ObjectRef(api_version="v1", kind="Pod", namespace=pod.key.namespace, name=pod.key.name, uid=pod.uid)


def _delete(pod: Pod, why: str) -> Delete:
    return Delete(ref=pod_ref(pod), why=why)


def _escaped(name: str) -> str:
    """As a part of a JSON pointer (RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1")
