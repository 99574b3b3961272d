"""Every state in which the API server showed a pod, from a watch: what a look now and then would miss."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import kubernetes.client
import urllib3

from .objects import Manifest


class PodHistory:
    """Watches the pods of a namespace in a thread until close(). A watch that ends before is an error that close() raises."""

    def __init__(self, client: kubernetes.client.ApiClient, namespace: str, *, labels: str) -> None:
        """Begin with the pods that are there. client: its own, for the length of the watch."""
        self._client = client
        self._path = f"/api/v1/namespaces/{namespace}/pods"
        self._labels = labels
        self._lock = threading.Lock()
        self._nodes: dict[str, tuple[Manifest, set[str]]] = {}
        self._latest: dict[str, Manifest] = {}
        self._failure: BaseException | None = None
        self._closing = threading.Event()
        listed = json.loads(self._get({}).data)
        for pod in listed["items"]:
            self._note("ADDED", pod)
        self._response = self._get({"watch": "true", "resourceVersion": listed["metadata"]["resourceVersion"]})
        self._thread = threading.Thread(target=self._follow, name="pod-history", daemon=True)
        self._thread.start()

    def bound(self) -> list[tuple[Manifest, set[str]]]:
        """Every pod that was ever bound, as it was seen last, and the nodes that it was bound to."""
        with self._lock:
            return [(pod, set(nodes)) for pod, nodes in self._nodes.values()]

    def pods(self) -> list[Manifest]:
        """Pods that are there now."""
        with self._lock:
            return list(self._latest.values())

    def close(self) -> None:
        """End the watch. Raises what broke it before."""
        self._closing.set()
        self._response.close()
        self._thread.join(10)
        if self._failure is not None:
            raise self._failure

    def _get(self, fields: dict[str, str]) -> urllib3.BaseHTTPResponse:
        rest = self._client.rest_client.pool_manager
        url = self._client.configuration.host + self._path
        timeout = urllib3.Timeout(connect=10, read=None)
        watching = "watch" in fields
        response: urllib3.BaseHTTPResponse = rest.request(
            "GET", url, {"labelSelector": self._labels, **fields}, preload_content=not watching, timeout=timeout
        )
        return response

    def _follow(self) -> None:
        try:
            for line in self._lines():
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise RuntimeError(f"the watch of pods ended: {event['object'].get('message')}")
                self._note(event["type"], event["object"])
            raise RuntimeError("the watch of pods ended")
        except BaseException as error:  # noqa: BLE001 - raised by close(), in the thread that can tell it
            if not self._closing.is_set():
                self._failure = error

    def _lines(self) -> Iterator[bytes]:
        rest = b""
        for chunk in self._response.stream(65536, decode_content=True):
            *lines, rest = (rest + chunk).split(b"\n")
            yield from (line for line in lines if line)

    def _note(self, event: str, pod: Manifest) -> None:
        uid = pod["metadata"]["uid"]
        with self._lock:
            if event == "DELETED":
                self._latest.pop(uid, None)
            else:
                self._latest[uid] = pod
            if node := pod["spec"].get("nodeName"):
                nodes = self._nodes[uid][1] if uid in self._nodes else set()
                self._nodes[uid] = (pod, nodes | {node})
