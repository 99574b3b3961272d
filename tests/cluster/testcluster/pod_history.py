"""Where pods were, from a watch: what a look now and then would miss."""

from __future__ import annotations

import threading

import kubernetes.client

from .objects import Manifest
from .watch import Watch


class PodHistory:
    """Pods of a namespace, now and in the past, until close()."""

    def __init__(self, client: kubernetes.client.ApiClient, namespace: str, *, labels: str) -> None:
        """Begin with the pods that are there. client: its own, for the length of the watch."""
        self._lock = threading.Lock()
        self._bound: dict[str, tuple[Manifest, set[str]]] = {}
        self._latest: dict[str, Manifest] = {}
        self._watch = Watch(client, f"/api/v1/namespaces/{namespace}/pods", self._note, labels=labels)

    def bound(self) -> list[tuple[Manifest, set[str]]]:
        """Every pod that was ever bound, as it was seen last, and the nodes that it was bound to."""
        with self._lock:
            return [(pod, set(nodes)) for pod, nodes in self._bound.values()]

    def pods(self) -> list[Manifest]:
        """Pods that are there now."""
        with self._lock:
            return list(self._latest.values())

    def close(self) -> None:
        """End the watch. Raises what broke it before."""
        self._watch.close()

    def _note(self, event: str, pod: Manifest) -> None:
        uid = pod["metadata"]["uid"]
        with self._lock:
            if event == "DELETED":
                self._latest.pop(uid, None)
            else:
                self._latest[uid] = pod
            if node := pod["spec"].get("nodeName"):
                nodes = self._bound[uid][1] if uid in self._bound else set()
                self._bound[uid] = (pod, nodes | {node})
