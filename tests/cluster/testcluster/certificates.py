"""The cluster's own authority: certificates of servers and users, kubeconfigs, the key that signs service-account tokens."""

from __future__ import annotations

import datetime
import ipaddress
import json
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_VALID = datetime.timedelta(days=2)


class ClusterCa:
    """Issues certificates into one directory. Users and groups are the subject's common name and organisations."""

    def __init__(self, directory: Path) -> None:
        """Make the authority, and the service accounts' key."""
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test-cluster")])
        usage = x509.KeyUsage(
            digital_signature=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        builder = self._builder(self._name, self._key.public_key()).add_extension(usage, critical=True)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        certificate = builder.sign(self._key, hashes.SHA256())
        self.ca_file = directory / "ca.crt"
        self.ca_key_file = directory / "ca.key"
        self.ca_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        self.ca_key_file.write_bytes(_pem(self._key))
        self.service_account_key_file = directory / "service-accounts.key"
        self.service_account_key_file.write_bytes(_pem(rsa.generate_private_key(public_exponent=65537, key_size=2048)))

    def server(self, name: str, *, dns_names: Sequence[str] = (), addresses: Sequence[str] = ()) -> tuple[Path, Path]:
        """Certificate and key files of a server on the loopback address and the given names."""
        names: list[x509.GeneralName] = [x509.DNSName(dns) for dns in ("localhost", *dns_names)]
        names += [x509.IPAddress(ipaddress.ip_address(address)) for address in ("127.0.0.1", *addresses)]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        return self._issue(name, subject, ExtendedKeyUsageOID.SERVER_AUTH, names)

    def user(self, name: str, groups: Sequence[str] = ()) -> tuple[Path, Path]:
        """Certificate and key files of a user of the API."""
        attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
        subject = x509.Name([*attributes, x509.NameAttribute(NameOID.COMMON_NAME, name)])
        return self._issue(name.replace(":", "-"), subject, ExtendedKeyUsageOID.CLIENT_AUTH, [])

    def kubeconfig(self, server: str, user: str, groups: Sequence[str] = ()) -> Path:
        """Kubeconfig file with which the user reaches the server."""
        certificate, key = self.user(user, groups)
        credentials = {"client-certificate": str(certificate), "client-key": str(key)}
        return self._write_kubeconfig(f"{certificate.stem}.kubeconfig", server, user, credentials)

    def token_kubeconfig(self, server: str, user: str, token: str) -> Path:
        """Kubeconfig file with which the holder of a token reaches the server."""
        return self._write_kubeconfig(f"{user.replace(':', '-')}.token.kubeconfig", server, user, {"token": token})

    def _write_kubeconfig(self, file: str, server: str, user: str, credentials: dict[str, str]) -> Path:
        path = self._directory / file
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": {"server": server, "certificate-authority": str(self.ca_file)}}],
            "users": [{"name": user, "user": credentials}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
            "current-context": "test",
        }
        path.write_text(json.dumps(config))
        path.chmod(0o600)
        return path

    def _issue(
        self, file: str, subject: x509.Name, usage: x509.ObjectIdentifier, names: Sequence[x509.GeneralName]
    ) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(subject, key.public_key()).add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        certificate_file, key_file = self._directory / f"{file}.crt", self._directory / f"{file}.key"
        certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        key_file.write_bytes(_pem(key))
        return certificate_file, key_file

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder(subject_name=subject, issuer_name=self._name, public_key=key)
        return builder.serial_number(x509.random_serial_number()).not_valid_before(now - _VALID).not_valid_after(now + _VALID)


def _pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
