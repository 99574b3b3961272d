"""A small OpenID Connect issuer: HTTPS, discovery, a key set that is rotated on command, and tokens signed with real keys.

It serves what a gateway asks of an issuer and nothing of what people ask of one. How it can misbehave is what its tests need: be
silent, answer something else, or sign what no issuer should sign.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from mesh_ca import DevCa

AUDIENCE = "lionrock"
_MAKE: dict[str, Callable[[], Any]] = {
    "RS256": lambda: rsa.generate_private_key(65537, 2048),
    "PS256": lambda: rsa.generate_private_key(65537, 2048),
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ES384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate,
}


def public_jwk(private: Any) -> dict[str, Any]:
    """The public half of a key as a JSON Web Key."""
    kind: Any = {rsa.RSAPrivateKey: RSAAlgorithm, ec.EllipticCurvePrivateKey: ECAlgorithm}
    algorithm = next((kind[base] for base in kind if isinstance(private, base)), OKPAlgorithm)
    found: dict[str, Any] = algorithm.to_jwk(private.public_key(), as_dict=True)
    return {name: value for name, value in found.items() if name != "key_ops"}


class SigningKey:
    """A key pair with its id."""

    def __init__(self, kid: str, algorithm: str = "ES256") -> None:
        self.kid, self.algorithm, self.private = kid, algorithm, _MAKE[algorithm]()

    def jwk(self) -> dict[str, Any]:
        return {**public_jwk(self.private), "kid": self.kid, "alg": self.algorithm, "use": "sig"}


def sign(claims: dict[str, Any], key: SigningKey, headers: dict[str, Any] | None = None) -> str:
    """Sign any claims."""
    return jwt.api_jws.encode(json.dumps(claims).encode(), key.private, key.algorithm, {"kid": key.kid, **(headers or {})})


class OidcIssuer:
    """One issuer. `url` is its `iss`; `keys` is what it publishes."""

    def __init__(self, directory: Path, path: str = "") -> None:
        self._ca = DevCa(directory)
        self._tls = self._ca.issue(spiffe_id="spiffe://lionrock.local/service/issuer", directory=directory / "issuer")
        self.ca_file = self._tls.ca_file
        self.path = path
        self.keys = [SigningKey("first")]
        self.port = 0
        self.asked: Counter[str] = Counter()
        self.answers: dict[str, bytes] = {}
        """Whole HTTP answers, by path, in place of the true ones."""
        self.silent = False

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}{self.path}"

    @property
    def jwks_path(self) -> str:
        return f"{self.path}/keys"

    @property
    def discovery_path(self) -> str:
        return f"{self.path}/.well-known/openid-configuration"

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Claims of a token that is in order; None leaves one out."""
        now = int(time.time())
        usual = {"iss": self.url, "sub": "ada", "aud": AUDIENCE, "iat": now, "exp": now + 300, "groups": ["tellers"]}
        return {name: value for name, value in {**usual, **changes}.items() if value is not None}

    def token(self, key: SigningKey | None = None, headers: dict[str, Any] | None = None, **changes: Any) -> str:
        """Sign a token with a key, by default the newest."""
        key = key or self.keys[-1]
        return sign(self.claims(**changes), key, headers)

    def spec(self, **changes: Any) -> dict[str, Any]:
        """What a Tenant states about this issuer."""
        usual = {
            "issuer": self.url,
            "audiences": [AUDIENCE],
            "ca_file": str(self.ca_file),
            "bindings": [{"value": "tellers", "purposes": ["customer_service"]}],
        }
        return {**usual, **changes}

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[OidcIssuer]:
        """Listen."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self._tls.cert_file, self._tls.key_file)
        server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=context)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await reader.readuntil(b"\r\n\r\n")
            path = request.split(b" ", 2)[1].decode()
            self.asked[path] += 1
            if self.silent:
                await reader.read()
                return
            writer.write(self.answers.get(path) or self._answer(path))
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def _answer(self, path: str) -> bytes:
        documents: dict[str, Any] = {
            self.discovery_path: {"issuer": self.url, "jwks_uri": f"https://localhost:{self.port}{self.jwks_path}"},
            self.jwks_path: {"keys": [key.jwk() for key in self.keys]},
        }
        return answer(documents[path]) if path in documents else b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


def answer(document: Any) -> bytes:
    """A 200 with a JSON body."""
    body = json.dumps(document).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
