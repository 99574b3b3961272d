"""Certificates for Ray pods: what a request asks for, and signing it.

Knows PKCS#10, X.509 and the mesh's authority; does not know who may have what (`signing_requests`). A request is taken apart
completely: whatever the mesh has no use for (another kind of name, a CA flag, an extension that nobody knows) makes it unusable, so
that nothing gets into a certificate unseen. Of the request only the key and the names are used, never its subject or extensions.
Sources: RFC 2986, RFC 5280, the SPIFFE X509-SVID standard.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtensionOID

from lionrock.chassis.devca import DevelopmentCa

MAX_REQUEST_BYTES: Final = 16 << 10
_UNREADABLE: Final = (x509.DuplicateExtension, x509.InvalidVersion, x509.UnsupportedGeneralNameType)
_CURVES: Final = (ec.SECP256R1, ec.SECP384R1)
_EXTENSIONS: Final = frozenset(
    {
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.BASIC_CONSTRAINTS,
    }
)


class UnusableRequest(Exception):
    """The request is not one that the mesh signs, whoever sent it."""


@dataclass(frozen=True, slots=True)
class RequestedCertificate:
    """What a request asks for."""

    public_key: ec.EllipticCurvePublicKey
    addresses: tuple[str, ...]
    uris: tuple[str, ...]
    dns_names: tuple[str, ...]


def parse_request(pem: bytes) -> RequestedCertificate:
    """Take a request apart, and check that its sender has the key. Raises UnusableRequest."""
    if len(pem) > MAX_REQUEST_BYTES:
        raise UnusableRequest("the request is too long")
    try:
        request = x509.load_pem_x509_csr(pem)
        if not request.is_signature_valid:
            raise UnusableRequest("the request is not signed with its key")
        public_key = request.public_key()
        extensions = {extension.oid: extension.value for extension in request.extensions}
    except (ValueError, InvalidSignature, UnsupportedAlgorithm, *_UNREADABLE):
        raise UnusableRequest("the request is not valid PKCS#10 in PEM") from None
    if not isinstance(public_key, ec.EllipticCurvePublicKey) or not isinstance(public_key.curve, _CURVES):
        raise UnusableRequest("the key is not one of ECDSA on P-256 or P-384")
    if extensions.keys() - _EXTENSIONS:
        raise UnusableRequest("the request has extensions that the mesh does not use")
    constraints = extensions.get(ExtensionOID.BASIC_CONSTRAINTS)
    if isinstance(constraints, x509.BasicConstraints) and constraints.ca:
        raise UnusableRequest("the request is for an authority")
    names = extensions.get(ExtensionOID.SUBJECT_ALTERNATIVE_NAME)
    if not isinstance(names, x509.SubjectAlternativeName):
        raise UnusableRequest("the request names nobody")
    return _names(public_key, names)


def _names(public_key: ec.EllipticCurvePublicKey, names: x509.SubjectAlternativeName) -> RequestedCertificate:
    addresses: list[str] = []
    uris: list[str] = []
    dns_names: list[str] = []
    for name in names:
        match name:
            case x509.IPAddress(value=ipaddress.IPv4Address() | ipaddress.IPv6Address() as address):
                addresses.append(str(address))
            case x509.UniformResourceIdentifier():
                uris.append(name.value)
            case x509.DNSName():
                dns_names.append(name.value)
            case _:
                raise UnusableRequest("the request has a name that is no address, URI or DNS name")
    return RequestedCertificate(public_key, tuple(addresses), tuple(uris), tuple(dns_names))


def sign(authority: DevelopmentCa, requested: RequestedCertificate, lifetime: dt.timedelta) -> bytes:
    """Sign what was approved; PEM, with the authority's own certificate at its end, which the pod trusts from then on.

    It never outlives the authority. Raises ValueError for a URI that is no SPIFFE id.
    """
    (spiffe_id,) = requested.uris
    certificate = authority.sign(
        requested.public_key, spiffe_id, dns_names=requested.dns_names, ip_addresses=requested.addresses, lifetime=lifetime
    )
    return certificate + authority.certificate_pem
