"""Who calls: SPIFFE ids from verified certificates, and who may call what.

Knows ids and rules, not servers. An id is believed only when TLS verified the certificate that carries it; gRPC hands it over as
`peer_spiffe_id` when the certificate has exactly one URI name and that is a SPIFFE id. Source: the SPIFFE-ID and X509-SVID
standards.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import grpc

from lionrock.chassis import calls
from lionrock.chassis.errors import CallerNotPermitted

MAX_ID_BYTES = 2048
_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")
_SEGMENT = re.compile(r"[a-zA-Z0-9._-]+")
_TENANT_KINDS = frozenset({"user", "workload"})


@dataclass(frozen=True, slots=True)
class SpiffeId:
    """`spiffe://<trust_domain><path>`; the path begins with a slash and has no empty, "." or ".." segment."""

    trust_domain: str
    path: str

    @classmethod
    def parse(cls, text: str) -> SpiffeId:
        """Parse a SPIFFE id. Raises ValueError, without the text, for anything that the standard does not allow."""
        if len(text) > MAX_ID_BYTES or not text.startswith("spiffe://"):
            raise ValueError("not a SPIFFE id")
        trust_domain, slash, rest = text.removeprefix("spiffe://").partition("/")
        segments = rest.split("/")
        if not _TRUST_DOMAIN.fullmatch(trust_domain) or not slash:
            raise ValueError("not a SPIFFE id of a workload")
        if any(not _SEGMENT.fullmatch(segment) or segment in (".", "..") for segment in segments):
            raise ValueError("not a SPIFFE id: bad path")
        return cls(trust_domain, "/" + rest)

    def __str__(self) -> str:
        return f"spiffe://{self.trust_domain}{self.path}"

    @property
    def service(self) -> str | None:
        """The name of a service of the mesh: `/service/<name>`."""
        match self.path.split("/"):
            case ["", "service", name]:
                return name
        return None

    @property
    def tenant(self) -> str | None:
        """The tenant of a caller from outside: `/tenant/<tenant>/<user|workload>/<name>`."""
        match self.path.split("/"):
            case ["", "tenant", tenant, kind, _] if kind in _TENANT_KINDS:
                return tenant
        return None


@dataclass(frozen=True, slots=True)
class AnyTenant:
    """Callers: whoever belongs to a tenant.

    `tokens`: also who shows no certificate. The service itself then finds out, by a bearer token, who that is.
    """

    tokens: bool = False


@dataclass(frozen=True, slots=True)
class AnyMember:
    """Callers: every service and every tenant of the trust domain. For health and reflection only."""


Callers = frozenset[str] | AnyTenant | AnyMember
"""Names of the services that may call, or one of the two wider rules. An empty set permits nobody."""


def permits(callers: Callers, identity: SpiffeId | None) -> bool:
    """Whether a rule lets an identity of the own trust domain in; None is who shows no certificate."""
    if identity is None:
        return isinstance(callers, AnyTenant) and callers.tokens
    match callers:
        case AnyTenant():
            return identity.tenant is not None
        case AnyMember():
            return identity.tenant is not None or identity.service is not None
        case _:
            return identity.service is not None and identity.service in callers


@lru_cache(maxsize=1024)
def _parse_verified(encoded: bytes) -> SpiffeId:
    return SpiffeId.parse(encoded.decode("ascii"))


def verified_identity(auth_context: Mapping[str, Any], trust_domain: str) -> SpiffeId:
    """Return the one SPIFFE id of the peer's verified certificate. Raises CallerNotPermitted for none, several or a foreign one."""
    match list(auth_context.get("peer_spiffe_id", ())):
        case [bytes() as encoded]:
            try:
                identity = _parse_verified(encoded)
            except (UnicodeDecodeError, ValueError):
                raise CallerNotPermitted("the certificate's SPIFFE id is not valid") from None
        case _:
            raise CallerNotPermitted("the certificate names no single SPIFFE id")
    if identity.trust_domain != trust_domain:
        raise CallerNotPermitted("the certificate belongs to another trust domain")
    return identity


def shows_certificate(auth_context: Mapping[str, Any]) -> bool:
    """Whether the peer of a connection showed a certificate of any kind."""
    return any(name.startswith(("x509_", "peer_")) for name in auth_context)


@lru_cache(maxsize=1024)
def _names_of(certificate: str) -> tuple[tuple[bytes, ...], float]:
    from cryptography import x509  # services without HTTP read no certificates themselves, and it weighs megabytes

    parsed = x509.load_pem_x509_certificate(certificate.encode("ascii"))
    try:
        names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return (), parsed.not_valid_after_utc.timestamp()
    found = names.get_values_for_type(x509.UniformResourceIdentifier)
    return tuple(name.encode() for name in found), parsed.not_valid_after_utc.timestamp()


def certified_identity(certificate: str, trust_domain: str) -> SpiffeId:
    """Return the one SPIFFE id of a certificate, in PEM, that TLS verified. Raises CallerNotPermitted as verified_identity does.

    Also once its time has run out, which TLS looks at when a connection begins and never again.
    """
    try:
        names, not_after = _names_of(certificate)
    except ValueError:
        raise CallerNotPermitted("the certificate cannot be read") from None
    if time.time() >= not_after:
        raise CallerNotPermitted("the certificate has expired")
    return verified_identity({"peer_spiffe_id": names}, trust_domain)


def caller(context: grpc.aio.ServicerContext[Any, Any]) -> SpiffeId:
    """Return who makes the current RPC, as the server verified it. Raises RuntimeError outside of an RPC of a chassis server."""
    call = calls.current_call()
    if call is None or call.caller is None or call.context is not context:
        raise RuntimeError("not inside an RPC that the chassis admitted")
    return call.caller
