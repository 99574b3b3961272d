"""Certificates of a mesh on one machine."""

from __future__ import annotations

import asyncio
import datetime as dt
from pathlib import Path

import pytest
from cryptography import x509

from lionrock.cli.certificates import RAY_LIFETIME, CertificatePlan, Certificates
from lionrock.cli.errors import CommandError
from lionrock.cli.state import StateDir

CLIENT = "spiffe://lionrock.local/tenant/demo/user/developer"


def certificates(root: Path, lifetime_s: float = 3600, trust_domain: str = "lionrock.local") -> Certificates:
    return Certificates(StateDir(root), CertificatePlan(trust_domain, ("gateway", "audit"), CLIENT, lifetime_s))


def read(issued: Certificates, holder: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(issued.tls(holder).cert_file.read_bytes())


def names(certificate: x509.Certificate) -> x509.SubjectAlternativeName:
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def test_every_holder_gets_its_own_identity_and_lifetime(tmp_path: Path) -> None:
    issued = certificates(tmp_path)
    issued.issue_all()
    expected = {name: f"spiffe://lionrock.local/service/{name}" for name in ("gateway", "audit", "supervisor", "ray")}
    for holder, spiffe_id in {**expected, "client": CLIENT}.items():
        certificate = read(issued, holder)
        assert names(certificate).get_values_for_type(x509.UniformResourceIdentifier) == [spiffe_id]
        lifetime = RAY_LIFETIME if holder == "ray" else dt.timedelta(hours=1)
        left = certificate.not_valid_after_utc - dt.datetime.now(dt.UTC)
        assert lifetime - dt.timedelta(minutes=1) < left <= lifetime
        assert issued.tls(holder).key_file.stat().st_mode & 0o077 == 0


def test_client_certificate_can_serve_nothing(tmp_path: Path) -> None:
    issued = certificates(tmp_path)
    issued.issue_all()
    assert names(read(issued, "client")).get_values_for_type(x509.DNSName) == []


async def test_certificates_are_replaced_at_half_their_life_and_the_ca_stays(tmp_path: Path) -> None:
    issued = certificates(tmp_path, lifetime_s=1.0)
    issued.issue_all()
    before = {holder: read(issued, holder).serial_number for holder in ("gateway", "audit", "client", "supervisor", "ray")}
    authority = issued.tls("gateway").ca_file.read_bytes()
    rotated = asyncio.Event()
    rotation = asyncio.create_task(issued.rotate(rotated.set))
    async with asyncio.timeout(20):
        await rotated.wait()
    rotation.cancel()
    after = {holder: read(issued, holder).serial_number for holder in before}
    assert {holder for holder in before if after[holder] != before[holder]} == {"gateway", "audit", "client", "supervisor"}
    assert issued.tls("gateway").ca_file.read_bytes() == authority


def test_ca_is_kept_between_runs(tmp_path: Path) -> None:
    certificates(tmp_path)
    first = (tmp_path / "ca" / "ca.crt").read_bytes()
    certificates(tmp_path)
    assert (tmp_path / "ca" / "ca.crt").read_bytes() == first


def test_ca_of_another_trust_domain_is_refused_with_the_fix(tmp_path: Path) -> None:
    certificates(tmp_path)
    with pytest.raises(CommandError, match="another trust domain") as refused:
        certificates(tmp_path, trust_domain="other.local")
    assert "remove" in (refused.value.fix or "")
