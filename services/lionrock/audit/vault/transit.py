"""Tenants' keys in HashiCorp Vault or OpenBao: the secrets engine "transit" encrypts and decrypts, the keys stay there.

Knows: two calls of its HTTP API, deadlines, what an answer must look like. Does not know: what is wrapped. Source:
developer.hashicorp.com/vault/api-docs/secret/transit and openbao.org/api-docs/secret/transit (encrypt, decrypt,
associated_data). A tenant's key is `<prefix><tenant>`, of type aes256-gcm96, or the one that the tenant states; it is made
there, by whoever manages keys, never by this program: the token needs `update` on `<mount>/encrypt/<prefix>*` and
`<mount>/decrypt/<prefix>*`, and on the same of keys that tenants state, and nothing else. Certificates are always checked.

What a stated key wrapped says so, as `key:<mount>/<name>:` before the engine's ciphertext: it is unwrapped by that key, whatever
key the tenant states later.
"""

import asyncio
import base64
import http.client
import json
import re
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from urllib.parse import quote, urlsplit

from lionrock.audit.failures import KeysUnavailable
from lionrock.audit.vault.key_management import KEY_BYTES
from lionrock.audit.vault.settings import TransitSettings

_ANSWER_MAX_BYTES: Final = 64 * 1024
_TOKEN_MAX_BYTES: Final = 4096
_WRAPPED: Final = re.compile(r"(?:key:([A-Za-z0-9_./-]{1,128})/([A-Za-z0-9_-]{1,128}):)?(vault:v[A-Za-z0-9:+/=_-]+)")


@dataclass(frozen=True, slots=True)
class TransitKey:
    """A key by the path of its engine and its name there."""

    mount: str
    name: str


def usual_key(settings: TransitSettings, tenant: str) -> TransitKey:
    """Return the key of a tenant that states none."""
    return TransitKey(settings.mount, f"{settings.key_prefix}{tenant}")


def no_key_stated(tenant: str) -> TransitKey | None:
    """No tenant states a key."""
    del tenant
    return None


class TransitKeyManagement:
    """The secrets engine over HTTPS, a connection a thread, each call with a deadline."""

    def __init__(self, settings: TransitSettings, stated_key: Callable[[str], TransitKey | None] = no_key_stated) -> None:
        """Connect when the first call is made. `stated_key`: of a tenant, asked at each call.

        Raises KeysUnavailable for certificates that cannot be read.
        """
        self._settings = settings
        self._stated_key = stated_key
        place = urlsplit(settings.address)
        self._host, self._port = place.hostname or "", place.port or 443
        try:
            self._tls = ssl.create_default_context(cafile=settings.ca_file)
        except (OSError, ssl.SSLError) as error:
            raise KeysUnavailable(f"the certificates in {settings.ca_file} cannot be read") from error
        self._threads = ThreadPoolExecutor(settings.max_connections, thread_name_prefix="audit-transit")
        self._own = threading.local()
        self._connections: list[http.client.HTTPSConnection] = []

    async def prepare(self, tenant: str) -> None:
        """Do nothing: whoever manages keys has made it."""

    async def wrap(self, tenant: str, key: bytes, aad: bytes) -> bytes:
        """Encrypt there. Returns its ciphertext, "vault:v<version>:…", after the name of the key where the tenant states one."""
        stated = self._stated_key(tenant)
        body = {"plaintext": _base64(key), "associated_data": _base64(aad)}
        wrapped = (await self._call("encrypt", stated or usual_key(self._settings, tenant), body)).get("ciphertext")
        if not isinstance(wrapped, str) or not wrapped.startswith("vault:v"):
            raise KeysUnavailable("key management answered no ciphertext")
        return _mark(stated) + wrapped.removeprefix("vault:v").encode()

    async def unwrap(self, tenant: str, wrapped: bytes, aad: bytes) -> bytes:
        """Decrypt there."""
        found = _WRAPPED.fullmatch(wrapped.decode("ascii", "replace"))
        if found is None or ".." in (found[1] or ""):
            raise KeysUnavailable("the key store holds something that no key wrapped: restore the key store")
        mount, name, ciphertext = found.groups()
        by = usual_key(self._settings, tenant) if name is None else TransitKey(mount, name)
        body = {"ciphertext": ciphertext, "associated_data": _base64(aad)}
        try:
            key = base64.b64decode((await self._call("decrypt", by, body))["plaintext"], validate=True)
        except (KeyError, TypeError, ValueError):
            raise KeysUnavailable("key management answered no key") from None
        if len(key) != KEY_BYTES:
            raise KeysUnavailable("key management answered something that is not a key")
        return key

    def mark(self, tenant: str) -> bytes | None:
        """Return how everything begins that the key wraps which the tenant states; None where it states none.

        So nothing is moved to the usual key, which need not exist: a tenant that leaves states nothing any more.
        """
        stated = self._stated_key(tenant)
        return None if stated is None else _mark(stated)

    async def destroy(self, tenant: str) -> bool:
        """Destroy nothing: whoever manages keys does, and the token may not."""
        del tenant
        return False

    async def close(self) -> None:
        """Close the connections."""
        self._threads.shutdown(cancel_futures=True)
        for connection in self._connections:
            connection.close()

    async def _call(self, verb: str, by: TransitKey, body: dict[str, str]) -> dict[str, Any]:
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                call = partial(self._post, verb, by, body)
                return await asyncio.get_running_loop().run_in_executor(self._threads, call)
        except TimeoutError:
            raise KeysUnavailable(f"key management did not answer within {self._settings.timeout_s} s") from None

    def _post(self, verb: str, by: TransitKey, body: dict[str, str]) -> dict[str, Any]:
        settings = self._settings
        path = f"/v1/{quote(by.mount)}/{verb}/{by.name}"
        headers = {"X-Vault-Token": self._token(), "X-Vault-Request": "true", "Content-Type": "application/json"}
        if settings.namespace:
            headers["X-Vault-Namespace"] = settings.namespace
        try:
            status, content = self._exchange(path, json.dumps(body).encode(), headers)
        except (OSError, http.client.HTTPException) as error:
            raise KeysUnavailable(f"key management at {settings.address}: {type(error).__name__}") from error
        if status != http.client.OK:  # the answer may quote the request
            raise KeysUnavailable(f"key management at {settings.address} answered {status} to {verb} with {by.name}")
        try:
            data = json.loads(content)["data"]
        except (ValueError, KeyError, TypeError):
            raise KeysUnavailable(f"key management at {settings.address} answered no JSON of its API") from None
        if not isinstance(data, dict):
            raise KeysUnavailable(f"key management at {settings.address} answered no JSON of its API")
        return data

    def _exchange(self, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        """Ask on this thread's connection; one that was closed while it was idle is opened again, once."""
        for attempt in range(2):
            connection = self._connection()
            fresh = connection.sock is None
            try:
                connection.request("POST", path, body, headers)
                response = connection.getresponse()
                content = response.read(_ANSWER_MAX_BYTES + 1)
            except (OSError, http.client.HTTPException):
                connection.close()
                if fresh or attempt:
                    raise
                continue
            if len(content) > _ANSWER_MAX_BYTES or response.will_close:
                connection.close()
            if len(content) > _ANSWER_MAX_BYTES:
                raise http.client.HTTPException
            return response.status, content
        raise AssertionError("the second attempt returns or raises")

    def _connection(self) -> http.client.HTTPSConnection:
        connection: http.client.HTTPSConnection | None = getattr(self._own, "connection", None)
        if connection is None:
            timeout_s = self._settings.timeout_s
            connection = http.client.HTTPSConnection(self._host, self._port, timeout=timeout_s, context=self._tls)
            self._own.connection = connection
            self._connections.append(connection)
        return connection

    def _token(self) -> str:
        try:
            with self._settings.token_file.open("rb") as file:
                token = file.read(_TOKEN_MAX_BYTES).decode("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise KeysUnavailable(f"the token in {self._settings.token_file} cannot be read") from error
        if not token or not token.isprintable():
            raise KeysUnavailable(f"{self._settings.token_file} holds no token")
        return token


def _mark(stated: TransitKey | None) -> bytes:
    return b"vault:v" if stated is None else f"key:{stated.mount}/{stated.name}:vault:v".encode()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
