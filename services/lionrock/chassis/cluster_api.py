"""The Kubernetes API as a pod reaches it with its service account: single objects, read and written as JSON.

For jobs and init containers of the mesh, in images that carry no Kubernetes client; the operator uses the official one. Knows HTTP
and the files that a kubelet mounts, not what the objects mean. Source: Kubernetes documentation, "Accessing the Kubernetes API from
a Pod"; API conventions (status objects, resourceVersion).
"""

from __future__ import annotations

import http.client
import json
import ssl
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TIMEOUT_S = 20.0
MAX_ANSWER_BYTES = 4 * 2**20


class ClusterApiError(Exception):
    """The API server refused, or could not be asked. `status`: the HTTP status, None when there was no answer."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class ClusterApi:
    """Requests to one API server. Every one has a deadline; none is repeated."""

    def __init__(self, url: str, *, service_account: Path = SERVICE_ACCOUNT, timeout_s: float = TIMEOUT_S) -> None:
        """Trust the mounted authority. Raises ValueError unless `url` is https://host:port, OSError for missing files."""
        if not url.startswith("https://"):
            raise ValueError("the API server's address must begin with https://")
        self._url = url.rstrip("/")
        self._token_file = service_account / "token"
        self._timeout_s = timeout_s
        context = ssl.create_default_context(cafile=str(service_account / "ca.crt"))
        # No proxy of the environment stands between a pod and its API server, and no redirection leads elsewhere with our token.
        self._opener = urllib.request.OpenerDirector()
        for handler in (urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)):
            self._opener.add_handler(handler)

    def get(self, path: str) -> dict[str, Any] | None:
        """Read an object; None where there is none. Raises ClusterApiError."""
        try:
            return self._request("GET", path)
        except ClusterApiError as error:
            if error.status == http.client.NOT_FOUND:
                return None
            raise

    def create(self, path: str, content: Mapping[str, Any]) -> dict[str, Any]:
        """Create an object in a collection. Raises ClusterApiError, with status 409 where it exists."""
        return self._request("POST", path, content)

    def replace(self, path: str, content: Mapping[str, Any]) -> dict[str, Any]:
        """Replace an object as it was read. Raises ClusterApiError, with status 409 where another has changed it since."""
        return self._request("PUT", path, content)

    def _request(self, method: str, path: str, content: Mapping[str, Any] | None = None) -> dict[str, Any]:
        # Read each time: the kubelet replaces the token during its life.
        headers = {"Authorization": f"Bearer {self._token_file.read_text().strip()}", "Accept": "application/json"}
        body = None
        if content is not None:
            headers["Content-Type"] = "application/json"
            body = json.dumps(content).encode()
        request = urllib.request.Request(self._url + path, data=body, headers=headers, method=method)  # noqa: S310 - https
        try:
            with self._opener.open(request, timeout=self._timeout_s) as response:
                status, answer = response.status, response.read(MAX_ANSWER_BYTES + 1)
        except (OSError, http.client.HTTPException) as error:
            raise ClusterApiError(f"{method} {path}: {error.__class__.__name__}: {error}") from error
        return _parsed(f"{method} {path}", status, answer)


def _parsed(what: str, status: int, answer: bytes) -> dict[str, Any]:
    if len(answer) > MAX_ANSWER_BYTES:
        raise ClusterApiError(f"{what}: an answer of more than {MAX_ANSWER_BYTES} bytes", status)
    try:
        content = json.loads(answer)
    except ValueError:
        content = None
    if not 200 <= status < 300:
        said = content.get("message") if isinstance(content, dict) else None
        raise ClusterApiError(f"{what}: {status} {said or http.client.responses.get(status, '')}".rstrip(), status)
    if not isinstance(content, dict):
        raise ClusterApiError(f"{what}: the answer is no object", status)
    return content
