"""What the chips of one node are used for: counted from its pods and from what is kept on it.

A revision's pods run on the chips that were kept for them, so of each revision the greater of the two counts: kept chips whose pods
are not there yet, and chips of pods that nothing is kept for any longer but that have not ended.
"""

from __future__ import annotations

from collections.abc import Mapping

from lionrock.operator.capacity import NodeChips
from lionrock.operator.resources import Node, NodeName, ObjectKey, Pod, Revision, Slot

Owner = tuple[ObjectKey, Revision]
_UNKNOWN_REVISION = Revision("")


def chips_on(
    name: NodeName, node: Node | None, pods: Mapping[ObjectKey, Pod], slots: Mapping[ObjectKey, tuple[Slot, ...]]
) -> dict[str, NodeChips]:
    """Count the chips of a node, by resource. node: None where it is gone and pods or slots name it still."""
    resources = set() if node is None else set(node.chips)
    for pod in pods.values():
        resources.update(pod.chips)
    for kept in slots.values():
        resources.update(slot.resource for slot in kept)
    return {
        resource: NodeChips(
            total=0 if node is None else node.chips.get(resource, 0),
            foreign=sum(pod.chips.get(resource, 0) for pod in pods.values() if not pod.is_ours and pod.holds_chips),
            kept=sum(kept_on(name, resource, pods, slots).values()),
        )
        for resource in resources
    }


def kept_on(
    name: NodeName, resource: str, pods: Mapping[ObjectKey, Pod], slots: Mapping[ObjectKey, tuple[Slot, ...]]
) -> dict[Owner, int]:
    """Chips that each revision of each model keeps or holds on a node."""
    kept: dict[Owner, int] = {}
    for model, own in slots.items():
        for slot in own:
            if slot.node == name and slot.resource == resource:
                kept[model, slot.revision] = kept.get((model, slot.revision), 0) + slot.chips
    held: dict[Owner, int] = {}
    for pod in pods.values():
        if pod.model is not None and pod.holds_chips and resource in pod.chips:
            owner = (pod.model, pod.revision or _UNKNOWN_REVISION)
            held[owner] = held.get(owner, 0) + pod.chips[resource]
    return {owner: max(kept.get(owner, 0), held.get(owner, 0)) for owner in kept.keys() | held.keys()}
