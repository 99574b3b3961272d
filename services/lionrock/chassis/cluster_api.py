"""The Kubernetes API as a pod with a service account meets it: one call at a time, each with its deadline.

With the standard library alone: engine images carry no Kubernetes client. Knows tokens and transport, no kinds of objects.
Source: Kubernetes documentation, accessing the API from a pod; bound service-account tokens.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import json
import ssl
import urllib.parse
from pathlib import Path
from typing import Any, Final

ACCOUNT_DIRECTORY: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
IN_CLUSTER: Final = "https://kubernetes.default.svc"
_CALL_S: Final = 10.0
_MAX_ANSWER_BYTES: Final = 1 << 20


class ApiUnusable(Exception):
    """The API server cannot be asked as this pod is set up; the message says what is wrong."""


class ApiServer:
    """The few calls to the Kubernetes API, each with its deadline."""

    def __init__(self, url: str, account_directory: Path = ACCOUNT_DIRECTORY) -> None:
        """account_directory: token, and ca.crt of the API server.

        Raises ApiUnusable when the authority or the address cannot be used.
        """
        parts = urllib.parse.urlsplit(url)
        if parts.scheme != "https" or parts.hostname is None:
            raise ApiUnusable(f"the API server's address is not an https URL: {url}")
        self._host, self._port = parts.hostname, parts.port or 443
        self._account = account_directory
        try:
            self._context = ssl.create_default_context(cafile=str(self._account / "ca.crt"))
        except (OSError, ssl.SSLError):
            raise ApiUnusable(f"{self._account}/ca.crt holds no authority of the API server") from None

    def token(self) -> str:
        """Return the service account's token. Raises ApiUnusable."""
        try:
            return (self._account / "token").read_text("ascii").strip()
        except (OSError, UnicodeDecodeError):
            raise ApiUnusable(f"{self._account}/token cannot be read; the pod needs a projected service-account token") from None

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """Return status and object. Raises OSError or http.client.HTTPException when nobody answers, ApiUnusable."""
        headers = {"Authorization": f"Bearer {self.token()}", "Accept": "application/json", "Content-Type": "application/json"}
        connection = http.client.HTTPSConnection(self._host, self._port, timeout=_CALL_S, context=self._context)
        try:
            connection.request(method, path, None if body is None else json.dumps(body).encode(), headers)
            answer = connection.getresponse()
            content = answer.read(_MAX_ANSWER_BYTES)
        finally:
            connection.close()
        try:
            document = json.loads(content)
        except (ValueError, RecursionError):
            document = None
        return answer.status, document if isinstance(document, dict) else {}


def pod_uid(token: str) -> str:
    """Return the uid of the pod that a token is bound to; the API server, not we, verifies the token. Raises ApiUnusable."""
    try:
        claims = token.split(".")[1]
        uid = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["kubernetes.io"]["pod"]["uid"]
    except (IndexError, KeyError, TypeError, ValueError, binascii.Error, RecursionError):
        raise ApiUnusable("the service-account token is not bound to a pod; mount a projected one") from None
    if not isinstance(uid, str) or not uid:
        raise ApiUnusable("the service-account token is not bound to a pod; mount a projected one")
    return uid
