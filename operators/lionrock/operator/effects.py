"""Carries decisions out: the writes of one key, in the order that `actions.Decision` states, each fenced by leadership.

Whatever the API server answers is observed at once, so that the next decision sees it before the watch does. Knows how a write is
made and which failures are successes (what is to be deleted is gone; what is to be made once is there); does not decide anything.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from lionrock.operator.actions import Decision, Delete, Key, Manifest, ObjectRef, Patch, RandomSecret
from lionrock.operator.api_errors import ApiError, Conflict, NotFound, Refused
from lionrock.operator.api_resources import CHIP_POOL, Resource, resource_of, resource_of_manifest
from lionrock.operator.cluster import Cluster, Object
from lionrock.operator.event_recorder import EventRecorder
from lionrock.operator.metadata import API_VERSION
from lionrock.operator.tenant_admission import TENANTS_NAME

log = logging.getLogger("lionrock.operator")

REMEMBERED: Final = 65536
SECRET_FRESH_S: Final = 600.0
SHARED: Final = frozenset({("ConfigMap", TENANTS_NAME)})
"""What others write too: it is applied to, and never put in its place as a whole."""


class NotLeading(Exception):
    """Another operator leads, or may soon; nothing more is written."""


@dataclass(slots=True)
class Progress:
    """How far the writes of one decision came."""

    writes: int = 0


class Observers:
    """Where the answers of writes go: to the informer of the kind and namespace, if there is one."""

    def __init__(self) -> None:
        self._observe: dict[tuple[Resource, str | None], Callable[[Object], None]] = {}
        self._get: dict[tuple[Resource, str | None], Callable[[str, str], Object | None]] = {}

    def add(
        self,
        resource: Resource,
        namespace: str | None,
        observe: Callable[[Object], None],
        get: Callable[[str, str], Object | None],
    ) -> None:
        """Have an informer told. namespace None: of all namespaces."""
        self._observe[resource, namespace] = observe
        self._get[resource, namespace] = get

    def observe(self, resource: Resource, body: Object) -> None:
        """Tell whoever keeps objects of this kind."""
        namespace = body["metadata"].get("namespace")
        observe = self._observe.get((resource, namespace)) or self._observe.get((resource, None))
        if observe is not None:
            observe(body)

    def version(self, resource: Resource, namespace: str | None, name: str) -> str | None:
        """Return the version that is known of an object."""
        get = self._get.get((resource, namespace)) or self._get.get((resource, None))
        body = None if get is None else get(namespace or "", name)
        return None if body is None else str(body["metadata"]["resourceVersion"])


class Effects:
    """Writes for one operator. Thread-safe; one key is carried out by one thread at a time."""

    def __init__(
        self,
        cluster: Cluster,
        observers: Observers,
        events: EventRecorder,
        may_act: Callable[[float], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster = cluster
        self._observers = observers
        self._events = events
        self._may_act = may_act
        self._clock = clock
        self._lock = threading.Lock()
        self._overwritten: OrderedDict[ObjectRef, tuple[bytes, str]] = OrderedDict()
        self._secrets: dict[ObjectRef, float] = {}

    def write_status(self, key: Key, uid: str, status: Mapping[str, Any], progress: Progress) -> None:
        """Apply the status of a key's object. Raises ApiError, NotLeading."""
        self._fence()
        metadata: Object = {"name": key.name, "uid": uid}
        if key.namespace:
            metadata["namespace"] = key.namespace
        manifest = {"apiVersion": API_VERSION, "kind": str(key.kind), "metadata": metadata, "status": dict(status)}
        self._observed(resource_of_manifest(manifest), self._cluster.apply_status(manifest))
        progress.writes += 1

    def carry_out(self, decision: Decision, progress: Progress) -> None:
        """Write everything of a decision but the status. Raises ApiError, NotLeading; what was not reached comes again."""
        steps = (
            *(partial(self._make, secret) for secret in decision.secrets),
            *(partial(self._apply, manifest) for manifest in decision.apply),
            *(partial(self._delete, deletion) for deletion in decision.delete),
            *(partial(self._patch, patch) for patch in decision.pod_patches),
        )
        for step in steps:
            step()
            progress.writes += 1
        for event in decision.events:
            self._fence()
            self._events.record(event)

    def refresh(self, key: Key) -> None:
        """Read a key's object, after a write whose answer was lost. Raises ApiError."""
        resource = resource_of(API_VERSION, str(key.kind))
        try:
            self._observed(resource, self._cluster.read(resource, key.namespace or None, key.name))
        except NotFound:
            return  # the informer will say so, with everything that follows from it

    def _fence(self) -> None:
        if not self._may_act(self._cluster.write_ends_s):
            raise NotLeading

    def _observed(self, resource: Resource, body: Object) -> None:
        if body.get("kind") == resource.kind and "resourceVersion" in (body.get("metadata") or {}):
            self._observers.observe(resource, body)

    def _make(self, wanted: RandomSecret) -> None:
        ref = _ref(wanted.manifest)
        now = self._clock()
        with self._lock:
            if self._secrets.get(ref, 0.0) > now:
                return
        text = secrets.token_hex(wanted.random_bytes)
        manifest = {**wanted.manifest, "data": {wanted.key: base64.b64encode(text.encode()).decode()}}
        self._fence()
        try:
            self._cluster.create(manifest)
        except Conflict as error:
            if error.reason != "AlreadyExists":
                raise
        with self._lock:
            self._secrets = {known: due for known, due in self._secrets.items() if due > now} | {ref: now + SECRET_FRESH_S}

    def _apply(self, manifest: Manifest) -> None:
        ref, resource = _ref(manifest), resource_of_manifest(manifest)
        if resource is CHIP_POOL and "spec" in manifest:
            self._propose(resource, manifest)
            return
        digest = hashlib.blake2b(json.dumps(manifest, sort_keys=True).encode(), digest_size=16).digest()
        version = self._observers.version(resource, ref.namespace or None, ref.name)
        with self._lock:
            if version is not None and self._overwritten.get(ref) == (digest, version):
                # All that can be done was done, and the object still is as the server made it of that: it has a form of its own.
                return
        shared = (ref.kind, ref.name) in SHARED
        self._fence()
        try:
            body = self._cluster.apply(manifest)
            stands = str(body["metadata"]["resourceVersion"]) == version and not shared
        except Refused as error:
            if version is None or error.status != 422 or shared:
                raise
            stands = True
        if stands:
            body = self._overwrite(resource, ref, manifest)
            with self._lock:
                self._overwritten[ref] = (digest, str(body["metadata"]["resourceVersion"]))
                self._overwritten.move_to_end(ref)
                if len(self._overwritten) > REMEMBERED:
                    self._overwritten.popitem(last=False)
        self._observed(resource, body)

    def _propose(self, resource: Resource, manifest: Manifest) -> None:
        """Make a pool that is its owner's from then on. What is applied to it later must not take away what was applied here."""
        self._fence()
        try:
            body = self._cluster.create(manifest)
        except Conflict as error:
            if error.reason != "AlreadyExists":
                raise
            return
        self._observed(resource, body)

    def _overwrite(self, resource: Resource, ref: ObjectRef, manifest: Manifest) -> Object:
        """Apply to an object that applying alone does not bring to what is wanted.

        Fields and items of lists belong to whoever made them, so applying cannot remove what another added, and is refused where
        both together are not valid. The whole of it is put in its place first.
        """
        log.info("overwrites what others made of %s", ref)
        whole = [
            {"op": "add", "path": f"/{key}", "value": value}
            for key, value in manifest.items()
            if key not in ("apiVersion", "kind", "metadata")
        ]
        self._fence()
        if whole:
            self._cluster.patch(resource, ref.namespace or None, ref.name, "json", whole)
        self._fence()
        return self._cluster.apply(manifest)

    def _delete(self, deletion: Delete) -> None:
        ref = deletion.ref
        resource = resource_of(ref.api_version, ref.kind)
        self._fence()
        log.info("deletes %s: %s", ref, deletion.why)
        try:
            body = self._cluster.delete(resource, ref.namespace or None, ref.name, uid=ref.uid or None, grace_s=deletion.grace_s)
        except NotFound:
            return
        except Conflict as error:
            if ref.uid:  # another object has the name by now
                log.info("%s is another one by now: %s", ref, error)
                return
            raise
        if (body.get("metadata") or {}).get("deletionTimestamp"):
            self._observed(resource, body)

    def _patch(self, patch: Patch) -> None:
        ref = patch.ref
        resource = resource_of(ref.api_version, ref.kind)
        self._fence()
        log.info("patches %s: %s", ref, patch.why)
        operations = [dict(operation) for operation in patch.operations]
        try:
            body = self._cluster.patch(resource, ref.namespace or None, ref.name, "json", operations)
        except Refused as error:
            if error.status == 422 and any(operation.get("op") == "test" for operation in operations):
                raise Conflict(str(error), status=error.status, reason=error.reason) from None  # a test did not hold
            raise
        self._observed(resource, body)


def _ref(manifest: Manifest) -> ObjectRef:
    metadata = manifest["metadata"]
    return ObjectRef(
        api_version=str(manifest["apiVersion"]),
        kind=str(manifest["kind"]),
        namespace=str(metadata.get("namespace") or ""),
        name=str(metadata["name"]),
    )


def is_uncertain(error: ApiError) -> bool:
    """Whether a write may have been carried out although it failed."""
    return error.status is None or error.status >= 500
