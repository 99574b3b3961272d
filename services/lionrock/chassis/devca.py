"""A certificate authority for development and tests: X509-SVIDs that live for hours, not a replacement for SPIRE or cert-manager.

Knows X.509 and files, not servers. Keys are ECDSA P-256. Files are replaced by renaming, the key first readable to its owner alone.
Source: the SPIFFE X509-SVID standard (one URI name, no CA bit, key usage digitalSignature) and RFC 5280.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from lionrock.chassis.identity import SpiffeId
from lionrock.chassis.settings import TlsSettings

AUTHORITY_LIFETIME = dt.timedelta(days=365)
LEAF_LIFETIME = dt.timedelta(hours=24)
# Clocks of machines differ; a certificate is valid from a little before it was made.
CLOCK_SKEW = dt.timedelta(minutes=5)
LOCAL_NAMES = ("localhost",)
LOCAL_ADDRESSES = ("127.0.0.1", "::1")

_PEM = serialization.Encoding.PEM


def replace_file(path: Path, content: bytes, mode: int) -> None:
    """Put content under a path so that a reader sees the old or the new file, never a part, and after a crash one of the two."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def service_names(service: str) -> tuple[str, ...]:
    """DNS names of a service's certificate."""
    return (f"{service}.lionrock.internal", *LOCAL_NAMES)


@dataclass(frozen=True, slots=True)
class IssuedCertificate:
    """A certificate, its key, and the authority to check peers with; all PEM."""

    certificate: bytes
    private_key: bytes
    authority: bytes

    def write(self, directory: Path) -> TlsSettings:
        """Write tls.crt, tls.key (mode 0600) and ca.crt, replacing what is there."""
        tls = TlsSettings(cert_file=directory / "tls.crt", key_file=directory / "tls.key", ca_file=directory / "ca.crt")
        replace_file(tls.ca_file, self.authority, 0o644)
        replace_file(tls.key_file, self.private_key, 0o600)
        replace_file(tls.cert_file, self.certificate, 0o644)
        return tls


class DevelopmentCa:
    """An authority that signs for one trust domain."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate, trust_domain: str) -> None:
        self._key = key
        self._certificate = certificate
        self.trust_domain = trust_domain

    @classmethod
    def create(cls, trust_domain: str, *, lifetime: dt.timedelta = AUTHORITY_LIFETIME) -> Self:
        """Make a new authority in memory."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Lionrock development"),
                x509.NameAttribute(NameOID.COMMON_NAME, f"{trust_domain} {x509.random_serial_number():x}"[:64]),
            ]
        )
        now = dt.datetime.now(dt.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - CLOCK_SKEW)
            .not_valid_after(now + lifetime)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(authority=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")]), critical=False
            )
            .sign(key, hashes.SHA256())
        )
        return cls(key, certificate, trust_domain)

    @classmethod
    def load_or_create(cls, directory: Path, trust_domain: str) -> Self:
        """Load ca.key and ca.crt, or make them. Raises ValueError if they are there but expired or for another trust domain."""
        key_file, certificate_file = directory / "ca.key", directory / "ca.crt"
        if not key_file.exists() and not certificate_file.exists():
            authority = cls.create(trust_domain)
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            replace_file(key_file, authority.private_key_pem, 0o600)
            replace_file(certificate_file, authority.certificate_pem, 0o644)
            return authority
        try:
            return cls.load(key_file.read_bytes(), certificate_file.read_bytes(), trust_domain)
        except ValueError as error:
            raise ValueError(f"{directory}: {error}") from error

    @classmethod
    def load(cls, private_key: bytes, certificate_pem: bytes, trust_domain: str) -> Self:
        """Load an authority from PEM. Raises ValueError if the two do not belong together, expired, or are of another domain."""
        key = serialization.load_pem_private_key(private_key, password=None)
        certificate = x509.load_pem_x509_certificate(certificate_pem)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise ValueError("ca.key is not the key of ca.crt")
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        if names.get_values_for_type(x509.UniformResourceIdentifier) != [f"spiffe://{trust_domain}"]:
            raise ValueError("ca.crt is for another trust domain")
        if certificate.not_valid_after_utc <= dt.datetime.now(dt.UTC):
            raise ValueError("ca.crt has expired; remove it with its key to make a new authority")
        return cls(key, certificate, trust_domain)

    @property
    def certificate_pem(self) -> bytes:
        """The authority's certificate."""
        return self._certificate.public_bytes(_PEM)

    @property
    def private_key_pem(self) -> bytes:
        """The authority's key; whoever has it is the authority."""
        return _private_pem(self._key)

    @property
    def ends_at(self) -> dt.datetime:
        """When the authority's certificate expires."""
        return self._certificate.not_valid_after_utc

    def issue(
        self,
        spiffe_id: str,
        *,
        dns_names: Sequence[str] = LOCAL_NAMES,
        ip_addresses: Sequence[str] = LOCAL_ADDRESSES,
        lifetime: dt.timedelta = LEAF_LIFETIME,
        not_before: dt.datetime | None = None,
    ) -> IssuedCertificate:
        """Sign a certificate for a new key. Raises ValueError for a bad SPIFFE id or address.

        `ip_addresses` may hold the addresses of a node: Ray's TLS checks those instead of names.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self.sign(
            key.public_key(),
            spiffe_id,
            dns_names=dns_names,
            ip_addresses=ip_addresses,
            lifetime=lifetime,
            not_before=not_before,
        )
        return IssuedCertificate(certificate, _private_pem(key), self.certificate_pem)

    def sign(
        self,
        public_key: ec.EllipticCurvePublicKey,
        spiffe_id: str,
        *,
        dns_names: Sequence[str],
        ip_addresses: Sequence[str],
        lifetime: dt.timedelta,
        not_before: dt.datetime | None = None,
    ) -> bytes:
        """Sign a certificate for a key that another holds, PEM. Raises ValueError for a bad SPIFFE id or address."""
        identity = SpiffeId.parse(spiffe_id)
        begin = not_before or dt.datetime.now(dt.UTC) - CLOCK_SKEW
        end = min((not_before or dt.datetime.now(dt.UTC)) + lifetime, self._certificate.not_valid_after_utc)
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(str(identity))]
        names += [x509.DNSName(name) for name in dns_names]
        names += [x509.IPAddress(ipaddress.ip_address(address)) for address in dict.fromkeys(ip_addresses)]
        authority_id = self._certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, identity.path.rpartition("/")[2][:64])]))
            .issuer_name(self._certificate.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(authority=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority_id), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(_PEM)

    def issue_service(
        self, service: str, *, ip_addresses: Sequence[str] = LOCAL_ADDRESSES, lifetime: dt.timedelta = LEAF_LIFETIME
    ) -> IssuedCertificate:
        """Sign a certificate for a service of the mesh."""
        spiffe_id = f"spiffe://{self.trust_domain}/service/{service}"
        return self.issue(spiffe_id, dns_names=service_names(service), ip_addresses=ip_addresses, lifetime=lifetime)


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def renew_due(certificate_pem: bytes, now: dt.datetime | None = None) -> bool:
    """Whether two thirds of a certificate's life are over. Raises ValueError if it is not PEM."""
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    return (now or dt.datetime.now(dt.UTC)) >= certificate.not_valid_before_utc + life * 2 / 3
