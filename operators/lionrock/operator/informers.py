"""Informers: a copy of one kind of object, kept current by the client's `SharedInformer`.

The client's informer lists, watches, and follows resourceVersions. What it leaves open is mended at the one seam it has, the list
function that it is given:

- pace: a server that is away, refuses, or ends every watch at once is asked again after a growing, jittered delay, not in a loop;
- silence: a watch asks for bookmarks, which the server sends each minute, so a longer silence is a broken connection; and it ends
  by itself after some minutes;
- failures never reach the client's loop, which would log each with a traceback: only "list again" (410) and "stopped" do;
- memory: lists are fetched in pages, and every object is trimmed before anybody keeps it; events about objects that do not matter
  are turned into bookmarks, so that their versions are followed and nothing else;
- a full list from time to time, in case an event was lost by a defect of anybody.

On top of that come the operator's own writes: `observe` takes the answer of a write at once, and versions older than the latest
that was seen are ignored from then on. Versions of one kind are ordered (Kubernetes 1.35, KEP-5504).
"""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from lionrock.operator.api_errors import ApiError, Expired, NotFound
from lionrock.operator.api_resources import Resource
from lionrock.operator.cluster import Cluster, Object, Selection, WatchStream, informer_failure, shared_informer
from lionrock.operator.trimming import identity, matters, trim
from lionrock.operator.work_queue import Backoff

log = logging.getLogger("lionrock.operator")

_LASTED_S: Final = 5.0

ObjectName = tuple[str, str]
"""(namespace, name)"""


@dataclass(frozen=True, slots=True)
class Pace:
    """Times of an informer, in seconds. A watch lasts between one and two times watch_lasts_s; relist_s is stretched likewise."""

    backoff: Backoff = field(default_factory=lambda: Backoff(base_s=0.2, cap_s=30.0))
    watch_lasts_s: float = 240.0
    silence_s: float = 90.0
    relist_s: float = 1800.0
    page: int = 500


@dataclass(frozen=True, slots=True)
class Change:
    """What an informer reports. before or after is None for an object that came or went."""

    resource: Resource
    before: Object | None
    after: Object | None


_GONE_KEPT: Final = 20_000
"""Deleted objects that are remembered: more than can be deleted while an answer is under way."""


class _Stopped(ApiError):
    """The informer ends; nothing is asked of the server any more."""


class Informer:
    """The objects of one kind, and who wants to hear of their changes. Handlers run on the informer's thread or the writer's."""

    def __init__(
        self,
        cluster: Cluster,
        resource: Resource,
        selection: Selection,
        on_change: Callable[[Change], None],
        *,
        pace: Pace = Pace(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.resource = resource
        self._selection = selection
        self._on_change = on_change
        self._lock = threading.RLock()
        self._objects: dict[ObjectName, Object] = {}
        self._gone: OrderedDict[ObjectName, int] = OrderedDict()
        self._source = _Source(cluster, resource, selection, pace, clock, self._listed, self.objects)
        self._shared = shared_informer(self._source.list_function)
        for kind, handler in (("ADDED", self.observe), ("MODIFIED", self.observe), ("DELETED", self._deleted)):
            self._shared.add_event_handler(kind, handler)

    def start(self) -> None:
        """Begin to list and watch in a thread."""
        self._shared.start()

    def stop(self, timeout_s: float) -> bool:
        """End the watch and its thread. Returns whether it ended in time."""
        self._source.stop()
        stopping = threading.Thread(target=self._shared.stop, name=f"stop {self.resource.plural}", daemon=True)
        stopping.start()
        stopping.join(timeout_s)
        return not stopping.is_alive()

    @property
    def synced(self) -> bool:
        """Whether a whole list has been reported, so that what is not here does not exist."""
        return self._source.synced.is_set()

    def wait_synced(self, timeout_s: float) -> bool:
        """Wait for `synced`."""
        return self._source.synced.wait(timeout_s)

    @property
    def heard_s(self) -> float:
        """Seconds since the server last said anything; infinite before it did."""
        return self._source.heard_s

    @property
    def failures(self) -> int:
        """Failed attempts in a row."""
        return self._source.failures

    def get(self, namespace: str, name: str) -> Object | None:
        """Return the latest that is known of an object; not to be changed."""
        with self._lock:
            return self._objects.get((namespace, name))

    def objects(self) -> list[Object]:
        """Return all objects; not to be changed."""
        with self._lock:
            return list(self._objects.values())

    def refresh(self) -> None:
        """Fetch everything at once, beside the watch: from now on no version is older than this moment. Raises ApiError."""
        items, version = self._source.fetch()
        for item in items:
            self.observe(item)
        self._listed({_name(item) for item in items}, version)

    def observe(self, body: Object) -> None:
        """Take an object from a watch or from the answer of a write, unless a later version is known."""
        kept = trim(self.resource, body) if "managedFields" in body.get("metadata", {}) else body
        key = _name(kept)
        with self._lock:
            before = self._objects.get(key)
            known = self._gone.get(key, -1) if before is None else _version(before)
            if known >= _version(kept):
                return  # also the answer of a write that comes after the watch has told that the object is gone
            self._objects[key] = kept
            self._gone.pop(key, None)
            self._report(Change(self.resource, before, kept))

    def _deleted(self, body: Object) -> None:
        with self._lock:
            before = self._objects.get(_name(body))
            # A later version is another object of that name, or one that this very list will tell about.
            if before is None or _version(before) > _version(body):
                return
            self._drop(_name(body), _version(body))

    def _listed(self, names: set[ObjectName], version: int) -> None:
        """Drop what a whole list did not have. What was written after the list stays."""
        with self._lock:
            for key in [key for key, body in self._objects.items() if key not in names and _version(body) <= version]:
                self._drop(key, version)

    def _drop(self, key: ObjectName, version: int) -> None:
        """Forget an object that was gone at a version, but not that it was."""
        self._gone[key] = version
        self._gone.move_to_end(key)
        if len(self._gone) > _GONE_KEPT:
            self._gone.popitem(last=False)
        self._report(Change(self.resource, self._objects.pop(key), None))

    def _report(self, change: Change) -> None:
        try:
            self._on_change(change)
        except Exception:  # what one object does to a handler must not end the watch of all
            log.exception("a change of %s could not be taken in", self.resource.plural)


class _Source:
    """The list function of one informer, and what it must remember between calls. One thread calls it, another may stop it."""

    def __init__(
        self,
        cluster: Cluster,
        resource: Resource,
        selection: Selection,
        pace: Pace,
        clock: Callable[[], float],
        on_listed: Callable[[set[ObjectName], int], None],
        kept: Callable[[], list[Object]],
    ) -> None:
        self._cluster = cluster
        self._resource = resource
        self._selection = selection
        self._pace = pace
        self._clock = clock
        self._on_listed = on_listed
        self._kept = kept
        self._stopping = threading.Event()
        self._random = random.Random()  # noqa: S311 - jitter, no secret
        self._relist_due = float("inf")
        self._fresh_list: tuple[set[ObjectName], int] | None = None
        self._expired = False
        self._heard_at: float | None = None
        self._barren = 0  # watches in a row that were opened or asked for and brought nothing
        self.failures = 0  # calls in a row without an answer
        self.synced = threading.Event()

    @property
    def heard_s(self) -> float:
        return float("inf") if self._heard_at is None else self._clock() - self._heard_at

    def stop(self) -> None:
        self._stopping.set()

    def list_function(self, *, watch: bool = False, resource_version: str = "0", **_: object) -> object:
        """List, or open a watch; tries until it succeeds, the version is too old, or the informer stops.

        :rtype: object
        """
        # The line above is read by the client: objects stay plain dicts, and their versions are followed.
        if not watch:
            try:
                return self._until_it_works(self._list)
            except _Stopped:  # nothing has changed, as far as anybody will ever ask
                return _List(self._kept(), _ListMetadata("0"))
        if self._fresh_list is not None:  # the client has reported all of the list by now
            self._on_listed(*self._fresh_list)
            self._fresh_list = None
            self.synced.set()
        try:
            return self._until_it_works(lambda: self._watch(resource_version))
        except (Expired, _Stopped) as error:
            raise informer_failure(error) from None

    def _until_it_works(self, attempt: Callable[[], object]) -> object:
        while True:
            attempts = max(self.failures, self._barren)
            if attempts:
                self._stopping.wait(self._pace.backoff.delay_s(attempts, self._random.random()))
            if self._stopping.is_set():
                raise _Stopped("stopped")
            try:
                answer = attempt()
            except _Stopped:
                raise
            except Expired as error:
                self._barren += error.status is not None
                if attempt != self._list:  # a continue token that is too old; begin the list anew
                    self._expired = False
                    raise
            except ApiError as error:
                self._failed(error)
                if error.retry_after_s is not None:
                    self._stopping.wait(error.retry_after_s)
            else:
                self.failures = 0
                self._heard_at = self._clock()
                return answer

    def _failed(self, error: ApiError) -> None:
        self.failures += 1
        # The kind of another system may be absent for as long as that system is; the first time is worth a line.
        level = logging.WARNING if self.failures in (1, 10) or not isinstance(error, NotFound) else logging.DEBUG
        log.log(level, "%s: %s (attempt %d)", self._resource.plural, error, self.failures)

    def fetch(self) -> tuple[list[Object], int]:
        """Return all objects, trimmed, and the version of the list. Raises ApiError."""
        items: list[Object] = []
        token: str | None = None
        while True:
            page = self._cluster.list_page(self._resource, self._selection, limit=self._pace.page, token=token)
            items += [trim(self._resource, item) for item in page.get("items") or () if matters(self._resource, item)]
            token = (page.get("metadata") or {}).get("continue")
            if not token:
                break
            if self._stopping.is_set():
                raise _Stopped("stopped")
        return items, int(page["metadata"]["resourceVersion"])

    def _list(self) -> object:
        try:
            items, version = self.fetch()
        except NotFound:  # no such kind here, so there is none of it; the system that brings the kind may come later
            self.synced.set()
            raise
        self._relist_due = self._clock() + self._pace.relist_s * (1 + 0.2 * self._random.random())
        self._fresh_list = ({_name(item) for item in items}, version)
        return _List(items, _ListMetadata(str(version)))

    def _watch(self, resource_version: str) -> object:
        if self._expired or self._clock() >= self._relist_due:
            raise Expired("time to list again")
        lasts_s = int(self._pace.watch_lasts_s * (1 + self._random.random()))
        stream = self._cluster.watch(
            self._resource, self._selection, resource_version=resource_version, lasts_s=lasts_s, silence_s=self._pace.silence_s
        )
        return _TrimmedStream(self, stream)

    def segments(self, stream: WatchStream) -> Iterator[bytes]:
        """Yield the events of a watch as the client's informer may see them. Ends with the watch, whatever ended it."""
        begun = self._clock()
        try:
            for line in stream.lines():
                if self._stopping.is_set():
                    return
                event = self._event(json.loads(line))
                if event is None:
                    break
                self._heard_at = self._clock()
                self._barren = 0
                yield json.dumps(event, separators=(",", ":")).encode() + b"\n"
                if self._clock() >= self._relist_due:
                    return
        except ValueError:
            log.error("%s: an event that is not JSON", self._resource.plural)
        except ApiError as error:
            if not self._stopping.is_set():
                log.info("%s: %s", self._resource.plural, error)
        if self._heard_at is None or self._heard_at <= begun:
            # A watch that brought something is resumed at once when it ends, as one is that lasted; others more and more slowly.
            self._barren = 0 if self._clock() - begun >= _LASTED_S else self._barren + 1

    def _event(self, event: Object) -> Object | None:
        """Trim one event; None ends the watch."""
        kind, body = str(event.get("type")), event.get("object") or {}
        if kind == "ERROR":
            if body.get("code") == 410:
                self._expired = True
            log.info("%s: watch: %s", self._resource.plural, body.get("reason"))
            return None
        if kind == "BOOKMARK":
            return {"type": kind, "object": {"metadata": {"resourceVersion": body["metadata"]["resourceVersion"]}}}
        if kind == "DELETED":
            return {"type": kind, "object": identity(body)}
        if matters(self._resource, body):
            return {"type": kind, "object": trim(self._resource, body)}
        if kind == "MODIFIED":  # it may have mattered before
            return {"type": "DELETED", "object": identity(body)}
        return {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": body["metadata"]["resourceVersion"]}}}


@dataclass(frozen=True, slots=True)
class _ListMetadata:
    resource_version: str


@dataclass(frozen=True, slots=True)
class _List:
    """What SharedInformer wants of a list."""

    items: list[Object]
    metadata: _ListMetadata


class _TrimmedStream:
    """What SharedInformer's Watch wants of a response."""

    def __init__(self, source: _Source, stream: WatchStream) -> None:
        self._source = source
        self._stream = stream
        self.status = stream.status

    @property
    def connection(self) -> Any:
        return self._stream.connection

    def stream(self, **_: object) -> Iterator[bytes]:
        return self._source.segments(self._stream)

    def close(self) -> None:
        self._stream.close()

    def release_conn(self) -> None:
        self._stream.release_conn()


def _name(body: Object) -> ObjectName:
    metadata = body["metadata"]
    return str(metadata.get("namespace") or ""), str(metadata["name"])


def _version(body: Object) -> int:
    return int(body["metadata"]["resourceVersion"])
