"""Nodes that KWOK plays: any number of chips and any labels, made in one request each and gone at the end of a test."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .objects import Manifest, Objects
from .waiting import wait_for

_BY_KWOK = {"kwok.x-k8s.io/node": "fake"}
_AT_ONCE = 8
"""Requests in flight while nodes are made or removed."""


class Nodes:
    """The KWOK nodes of one test. close() removes those that it made."""

    def __init__(self, objects: Objects) -> None:
        """Make them through these objects."""
        self._objects = objects
        self._names: list[str] = []

    def add(
        self,
        names: Sequence[str],
        *,
        resources: Mapping[str, int | str] | None = None,
        labels: Mapping[str, str] | None = None,
        taints: Sequence[Mapping[str, str]] = (),
        wait: bool = True,
    ) -> list[str]:
        """Make nodes that are alike. resources: beside 64 CPUs, 1 TiB and 110 pods, e.g. {"huawei.com/Ascend910": 8}.

        Every node is labelled with its name, as by its kubelet. wait: until all are ready. Returns the names.
        """
        made = [node_manifest(name, resources=resources or {}, labels=labels or {}, taints=taints) for name in names]
        return self.add_manifests(made, wait=wait)

    def add_manifests(self, manifests: Sequence[Manifest], *, wait: bool = True) -> list[str]:
        """Make nodes that node_manifest() wrote. Returns the names."""
        names = [manifest["metadata"]["name"] for manifest in manifests]
        self._names += names
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(self._objects.create, manifests))
        if wait:
            self.wait_until_ready(names)
        return names

    def wait_until_ready(self, names: Sequence[str], *, timeout_s: float = 180) -> None:
        """Wait until the nodes are ready and carry no taint of a node that is not."""
        wanted = set(names)

        def all_ready() -> bool:
            return wanted <= {node["metadata"]["name"] for node in self._objects.list("v1", "Node") if _takes_pods(node)}

        wait_for(all_ready, f"{len(wanted)} nodes are ready", timeout_s=timeout_s, interval_s=0.2 if len(wanted) < 500 else 1)

    def label(self, name: str, labels: Mapping[str, str | None]) -> None:
        """Change labels of a node; None takes one away."""
        self._objects.merge(_named(name), {"metadata": {"labels": dict(labels)}})

    def cordon(self, name: str, *, cordoned: bool = True) -> None:
        """Keep new pods from a node, or let them in again."""
        self._objects.merge(_named(name), {"spec": {"unschedulable": cordoned}})

    def lose(self, name: str) -> None:
        """Let a node stop answering: KWOK leaves it alone from here on, and its status says what a cluster finds after a while."""
        self._objects.merge(_named(name), {"metadata": {"annotations": dict.fromkeys(_BY_KWOK)}})
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        times = {"lastHeartbeatTime": now, "lastTransitionTime": now}
        lost = {
            "type": "Ready",
            "status": "Unknown",
            "reason": "NodeStatusUnknown",
            "message": "the kubelet is silent",
        }
        self._objects.merge(_named(name), {"status": {"conditions": [{**lost, **times}]}}, subresource="status")

    def recover(self, name: str) -> None:
        """Let a lost node answer again."""
        self._objects.merge(_named(name), {"metadata": {"annotations": _BY_KWOK}})
        self.wait_until_ready([name])

    def remove(self, name: str) -> None:
        """Take a node away."""
        self._objects.delete(_named(name))
        self._names.remove(name)

    def close(self) -> None:
        """Remove every node that is left."""
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(self._objects.delete, [_named(name) for name in self._names]))
        self._names.clear()


def node_manifest(
    name: str, *, resources: Mapping[str, int | str], labels: Mapping[str, str], taints: Sequence[Mapping[str, str]] = ()
) -> Manifest:
    """Node as its kubelet would register it."""
    capacity = {"cpu": "64", "memory": "1Ti", "pods": "110", "ephemeral-storage": "1Ti"}
    capacity |= {resource: str(count) for resource, count in resources.items()}
    own_labels = {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "arm64"}
    node: dict[str, Any] = {
        **_named(name),
        "spec": {"taints": [dict(taint) for taint in taints]},
        "status": {"capacity": capacity, "allocatable": capacity},
    }
    node["metadata"] |= {"labels": {**own_labels, **labels}, "annotations": _BY_KWOK}
    return node


def _named(name: str) -> Manifest:
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}


def _takes_pods(node: Manifest) -> bool:
    ready = any(
        condition["type"] == "Ready" and condition["status"] == "True" for condition in node["status"].get("conditions", ())
    )
    kept_out = any(taint["key"].startswith("node.kubernetes.io/not-ready") for taint in node["spec"].get("taints") or ())
    return ready and not kept_out
