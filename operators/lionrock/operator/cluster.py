"""Calls to the API server. The only file that imports the Kubernetes client, and of that only what carries requests.

Objects go in and out as the plain dicts of the API: the client's typed models cost ten times the memory and drop fields that they
do not know. Every call has a deadline, none is repeated here (who asked decides that), and every failure is one of `api_errors`.
Knows HTTP, paths and content types; does not know what the objects mean.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import urllib3
from kubernetes.client import ApiClient, Configuration
from kubernetes.client.exceptions import ApiException, ApiValueError
from kubernetes.config import ConfigException, load_incluster_config, load_kube_config
from kubernetes.informer import SharedInformer

from lionrock.operator.api_errors import ApiError, Expired, Unreachable, api_error
from lionrock.operator.api_resources import Resource, resource_of_manifest

FIELD_MANAGER: Final = "lionrock-operator"
CONNECTIONS: Final = 64
CONNECT_TIMEOUT_S: Final = 5.0
CALL_TIMEOUT_S: Final = 15.0
LIST_TIMEOUT_S: Final = 60.0
SERVER_SHARE: Final = 2 / 3
"""Part of the deadline of a call after which the server gives up on a write."""
MAX_BODY_BYTES: Final = 256 << 20
_CHUNK_BYTES: Final = 64 << 10

Object = dict[str, Any]
PatchType = Literal["merge", "json"]
_JSON: Final[Mapping[str, str]] = {"Content-Type": "application/json"}
_CONTENT_TYPES: Final[Mapping[str, str]] = {
    "apply": "application/apply-patch+yaml",
    "merge": "application/merge-patch+json",
    "json": "application/json-patch+json",
}


class ClusterUnknown(Exception):
    """It is not stated which cluster this is: neither a service account of a pod nor a usable kubeconfig."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call as metrics count it. outcome: the status, or "none" without an answer."""

    verb: str
    resource: str
    outcome: str
    seconds: float


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    """A service account, as the API server knows who calls it."""

    namespace: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class Selection:
    """Which objects of a kind. namespace None: of all namespaces."""

    namespace: str | None = None
    labels: str | None = None
    fields: str | None = None

    def query(self) -> list[tuple[str, str]]:
        """As parameters of a list or a watch."""
        stated = (("labelSelector", self.labels), ("fieldSelector", self.fields))
        return [(name, value) for name, value in stated if value is not None]


def _ignore(call: Call) -> None:
    del call


class WatchStream:
    """An open watch: what SharedInformer's Watch wants of a response, whose bytes pass through `events`."""

    def __init__(self, response: Any) -> None:
        self._response = response
        self.status = response.status

    def lines(self) -> Iterator[bytes]:
        """Yield the events, one a line, until the server ends the watch. Raises Unreachable for a broken or silent connection."""
        rest = b""
        try:
            for chunk in self._response.stream(amt=None, decode_content=True):
                *whole, rest = (rest + chunk).split(b"\n")
                yield from (line for line in whole if line)
                if len(rest) > MAX_BODY_BYTES:
                    raise Unreachable("watch: an event without end")
        except (urllib3.exceptions.HTTPError, OSError, ValueError, AttributeError) as error:
            # ValueError and AttributeError: the response was closed by another thread in the middle of a read.
            raise Unreachable(f"watch: {type(error).__name__}") from None

    @property
    def connection(self) -> Any:
        """The connection, whose socket a stop shuts down."""
        return self._response.connection

    def close(self) -> None:
        """Close the connection: the rest of a watch has no end that could be read."""
        self._response.close()

    def release_conn(self) -> None:
        """Hand the connection back."""
        self._response.release_conn()


class Cluster:
    """One API server, as one user. Thread-safe."""

    def __init__(
        self, api_client: ApiClient, on_call: Callable[[Call], None] = _ignore, *, call_timeout_s: float = CALL_TIMEOUT_S
    ) -> None:
        self._client = api_client
        self._on_call = on_call
        self._call_timeout_s = call_timeout_s

    @property
    def write_ends_s(self) -> float:
        """Time after which the server no longer carries out a write: it gives up before we do."""
        return self._call_timeout_s * SERVER_SHARE

    @classmethod
    def connect(
        cls, kubeconfig: Path | None, on_call: Callable[[Call], None] = _ignore, *, call_timeout_s: float = CALL_TIMEOUT_S
    ) -> Cluster:
        """Connect by a kubeconfig, or as the pod's service account. Raises ClusterUnknown."""
        configuration = Configuration()
        try:
            if kubeconfig is None:
                load_incluster_config(client_configuration=configuration)
            else:
                load_kube_config(config_file=str(kubeconfig), client_configuration=configuration)
        except (ConfigException, OSError, ValueError) as error:
            raise ClusterUnknown(f"{type(error).__name__}: {error}") from None
        configuration.retries = False
        configuration.connection_pool_maxsize = CONNECTIONS
        client = ApiClient(configuration)
        client.user_agent = FIELD_MANAGER
        return cls(client, on_call, call_timeout_s=call_timeout_s)

    def close(self) -> None:
        """Close all idle connections."""
        self._client.close()

    # Reading

    def read(self, resource: Resource, namespace: str | None, name: str, *, timeout_s: float | None = None) -> Object:
        """Return one object. Raises ApiError."""
        return self._call("get", resource, "GET", resource.path(namespace, name), timeout_s=timeout_s)

    def list_page(self, resource: Resource, selection: Selection, *, limit: int, token: str | None = None) -> Object:
        """Return one page of a list. Raises ApiError; Expired when the token is too old."""
        query = [*selection.query(), ("limit", str(limit)), *([("continue", token)] if token else [])]
        return self._call("list", resource, "GET", resource.path(selection.namespace), query=query, timeout_s=LIST_TIMEOUT_S)

    def watch(
        self, resource: Resource, selection: Selection, *, resource_version: str, lasts_s: int, silence_s: float
    ) -> WatchStream:
        """Open a watch. It ends after lasts_s; a connection silent for silence_s is broken. Raises ApiError."""
        query = [
            *selection.query(),
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("resourceVersion", resource_version),
            ("timeoutSeconds", str(lasts_s)),
        ]
        begun = time.monotonic()
        what = f"watch {resource.plural}"
        response = self._send(what, "GET", resource.path(selection.namespace), query, {}, None, (CONNECT_TIMEOUT_S, silence_s))
        self._on_call(Call("watch", resource.plural, str(response.status), time.monotonic() - begun))
        if not 200 <= response.status <= 299:
            body = self._body(what, response, time.monotonic() + self._call_timeout_s)
            raise api_error(what, response.status, response.headers, body)
        return WatchStream(response.response)

    def api_groups(self) -> frozenset[str]:
        """Return the names of the API groups that the server serves. Raises ApiError."""
        found = self._exchange("discover", "apigroups", "GET", "/apis", [], {}, None, self._call_timeout_s)
        return frozenset(str(group.get("name")) for group in found.get("groups") or ())

    def service_account(self) -> ServiceAccount | None:
        """Return the service account as which we call; None for any other user. Raises ApiError."""
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
        path = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
        found = self._exchange("create", "selfsubjectreviews", "POST", path, [], _JSON, review, self._call_timeout_s)
        user = (found.get("status") or {}).get("userInfo") or {}
        prefix, _, rest = str(user.get("username", "")).partition("system:serviceaccount:")
        namespace, _, name = rest.partition(":")
        if prefix or not name or not user.get("uid"):
            return None
        return ServiceAccount(namespace, name, str(user["uid"]))

    # Writing

    def apply(self, manifest: Mapping[str, Any]) -> Object:
        """Make the fields that the manifest states ours and as stated (server-side apply). Raises ApiError."""
        resource, namespace, name = _identified(manifest)
        return self._patch("patch", resource, resource.path(namespace, name), "apply", manifest, _APPLY)

    def apply_status(self, manifest: Mapping[str, Any]) -> Object:
        """Apply to the status subresource. A uid in the manifest keeps it from another object of that name. Raises ApiError."""
        resource, namespace, name = _identified(manifest)
        path = resource.path(namespace, name, "status")
        return self._patch("patch", resource, path, "apply", manifest, _APPLY, subresource="status")

    def patch(self, resource: Resource, namespace: str | None, name: str, kind: PatchType, patch: object) -> Object:
        """Change an object; preconditions (uid, resourceVersion) stand in the patch's metadata. Raises ApiError."""
        return self._patch("patch", resource, resource.path(namespace, name), kind, patch, _OURS)

    def create(self, manifest: Mapping[str, Any], *, timeout_s: float | None = None) -> Object:
        """Make an object that must not exist. Raises ApiError; Conflict when it exists."""
        resource = resource_of_manifest(manifest)
        path = resource.path(manifest["metadata"].get("namespace"))
        return self._call("create", resource, "POST", path, query=_OURS, body=manifest, timeout_s=timeout_s)

    def replace(self, manifest: Mapping[str, Any], subresource: str | None = None, *, timeout_s: float | None = None) -> Object:
        """Replace the version that the manifest states. Raises ApiError; Conflict when it is not the latest."""
        resource, namespace, name = _identified(manifest)
        path = resource.path(namespace, name, subresource)
        return self._call("update", resource, "PUT", path, query=_OURS, body=manifest, subresource=subresource, timeout_s=timeout_s)

    def delete(
        self, resource: Resource, namespace: str | None, name: str, *, uid: str | None = None, grace_s: int | None = None
    ) -> Object:
        """Delete an object, and what it owns after it; with uid, only that very one. Raises ApiError."""
        options: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        if grace_s is not None:
            options["gracePeriodSeconds"] = grace_s
        return self._call("delete", resource, "DELETE", resource.path(namespace, name), body=options)

    # How it is done

    def _patch(
        self,
        verb: str,
        resource: Resource,
        path: str,
        kind: str,
        body: object,
        query: list[tuple[str, str]],
        subresource: str | None = None,
    ) -> Object:
        headers = {"Content-Type": _CONTENT_TYPES[kind]}
        return self._call(verb, resource, "PATCH", path, query=query, headers=headers, body=body, subresource=subresource)

    def _call(
        self,
        verb: str,
        resource: Resource,
        method: str,
        path: str,
        *,
        query: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
        body: object = None,
        timeout_s: float | None = None,
        subresource: str | None = None,
    ) -> Object:
        name = f"{resource.plural}/{subresource}" if subresource else resource.plural
        stated = {**_JSON, **(headers or {})}
        timeout_s = timeout_s or self._call_timeout_s
        if method != "GET":
            query = [*query, ("timeout", f"{int(timeout_s * SERVER_SHARE * 1000)}ms")]
        return self._exchange(verb, name, method, path, query, stated, body, timeout_s)

    def _exchange(
        self,
        verb: str,
        resource: str,
        method: str,
        path: str,
        query: Sequence[tuple[str, str]],
        headers: Mapping[str, str],
        body: object,
        timeout_s: float,
    ) -> Object:
        begun = time.monotonic()
        outcome = "none"
        what = f"{verb} {path}"
        try:
            response = self._send(what, method, path, query, headers, body, (CONNECT_TIMEOUT_S, timeout_s))
            content = self._body(what, response, begun + timeout_s)
            outcome = str(response.status)
        finally:
            self._on_call(Call(verb, resource, outcome, time.monotonic() - begun))
        if not 200 <= response.status <= 299:
            raise api_error(what, response.status, response.headers, content)
        try:
            found = json.loads(content)
        except ValueError:
            raise Unreachable(f"{what}: the answer is not JSON") from None
        if not isinstance(found, dict):
            raise Unreachable(f"{what}: the answer is no object")
        return found

    def _send(
        self,
        what: str,
        method: str,
        path: str,
        query: Sequence[tuple[str, str]],
        headers: Mapping[str, str],
        body: object,
        timeout_s: tuple[float, float],
    ) -> Any:
        try:
            _, url, all_headers, _, _ = self._client.param_serialize(
                method,
                path,
                query_params=list(query),
                header_params={"Accept": "application/json", **headers},
                auth_settings=["BearerToken"],
            )
            return self._client.rest_client.request(method, url, headers=all_headers, body=body, _request_timeout=timeout_s)
        except (urllib3.exceptions.HTTPError, OSError, ApiException, ApiValueError, ConfigException) as error:
            raise Unreachable(f"{what}: {type(error).__name__}") from None

    @staticmethod
    def _body(what: str, response: Any, deadline: float) -> bytes:
        """Read an answer. The client's time-out is one of each read, so that a trickle would have no end."""
        content = bytearray()
        try:
            for chunk in response.response.stream(_CHUNK_BYTES, decode_content=True):
                content += chunk
                if len(content) > MAX_BODY_BYTES or time.monotonic() > deadline:
                    response.response.close()
                    raise Unreachable(f"{what}: the answer was too long or too slow")
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Unreachable(f"{what}: {type(error).__name__}") from None
        finally:
            response.response.release_conn()
        return bytes(content)


_OURS: Final = [("fieldManager", FIELD_MANAGER)]
_APPLY: Final = [("fieldManager", FIELD_MANAGER), ("force", "true")]


def _identified(manifest: Mapping[str, Any]) -> tuple[Resource, str | None, str]:
    metadata = manifest["metadata"]
    return resource_of_manifest(manifest), metadata.get("namespace"), metadata["name"]


ListFunction = Callable[..., object]


def shared_informer(list_function: ListFunction) -> SharedInformer:
    """Return the client's informer over a list function, which paces it and lists again when that is due."""
    return SharedInformer(list_function)


def informer_failure(error: ApiError) -> Exception:
    """Return what the client's informer understands: 410 makes it list again, anything else watch again."""
    status = 410 if isinstance(error, Expired) else error.status or 0
    failure: Exception = ApiException(status=status, reason=error.reason or "Unreachable")
    return failure
