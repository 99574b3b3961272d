"""The development CA issues what the SPIFFE standard asks for, and files follow rotation."""

from __future__ import annotations

import datetime as dt
import ipaddress
import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store

from lionrock.chassis.devca import DevelopmentCa, renew_due, replace_file
from lionrock.chassis.tls import TlsFilesUnusable, WatchedIdentity, read_identity
from mesh_ca import DevCa


def names(pem: bytes) -> x509.SubjectAlternativeName:
    return x509.load_pem_x509_certificate(pem).extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def test_a_service_certificate_has_one_spiffe_id_and_the_names_that_clients_check() -> None:
    authority = DevelopmentCa.create("lionrock.local")
    issued = authority.issue_service("audit", ip_addresses=["127.0.0.1", "::1", "10.1.2.3", "10.1.2.3"])
    found = names(issued.certificate)
    assert found.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://lionrock.local/service/audit"]
    assert found.get_values_for_type(x509.DNSName) == ["audit.lionrock.internal", "localhost"]
    assert found.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address(text) for text in ("127.0.0.1", "::1", "10.1.2.3")]
    extensions = x509.load_pem_x509_certificate(issued.certificate).extensions
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature
    usages = set(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    assert usages == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}


def test_another_implementation_verifies_the_chain() -> None:
    authority = DevelopmentCa.create("lionrock.local")
    issued = authority.issue_service("audit")
    store = Store([x509.load_pem_x509_certificate(issued.authority)])
    verifier = PolicyBuilder().store(store).build_server_verifier(x509.DNSName("audit.lionrock.internal"))
    assert len(verifier.verify(x509.load_pem_x509_certificate(issued.certificate), [])) == 2


def test_a_bad_id_gets_no_certificate() -> None:
    with pytest.raises(ValueError, match="SPIFFE"):
        DevelopmentCa.create("lionrock.local").issue("spiffe://lionrock.local/../x")


def test_no_certificate_outlives_its_authority() -> None:
    authority = DevelopmentCa.create("lionrock.local", lifetime=dt.timedelta(hours=1))
    issued = authority.issue_service("audit", lifetime=dt.timedelta(days=30))
    end = x509.load_pem_x509_certificate(authority.certificate_pem).not_valid_after_utc
    assert x509.load_pem_x509_certificate(issued.certificate).not_valid_after_utc <= end


def test_keys_are_readable_to_their_owner_alone(tmp_path: Path) -> None:
    ca = DevCa(tmp_path)
    tls = ca.issue("audit")
    for key in (tls.key_file, tmp_path / "ca" / "ca.key"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_an_authority_is_made_once_and_loaded_after_that(tmp_path: Path) -> None:
    first = DevelopmentCa.load_or_create(tmp_path, "lionrock.local")
    assert DevelopmentCa.load_or_create(tmp_path, "lionrock.local").certificate_pem == first.certificate_pem


def test_an_authority_that_cannot_be_used_is_refused_and_not_replaced(tmp_path: Path) -> None:
    DevelopmentCa.load_or_create(tmp_path, "lionrock.local")
    kept = (tmp_path / "ca.crt").read_bytes()
    with pytest.raises(ValueError, match="another trust domain"):
        DevelopmentCa.load_or_create(tmp_path, "other.local")
    other = DevelopmentCa.load_or_create(tmp_path / "other", "lionrock.local")
    (tmp_path / "ca.crt").write_bytes(other.certificate_pem)
    with pytest.raises(ValueError, match=r"not the key"):
        DevelopmentCa.load_or_create(tmp_path, "lionrock.local")
    (tmp_path / "ca.crt").unlink()
    with pytest.raises(FileNotFoundError):
        DevelopmentCa.load_or_create(tmp_path, "lionrock.local")
    assert kept != other.certificate_pem


def test_renewal_is_due_after_two_thirds_of_a_life() -> None:
    authority = DevelopmentCa.create("lionrock.local")
    begin = dt.datetime.now(dt.UTC).replace(microsecond=0)
    issued = authority.issue_service("audit", lifetime=dt.timedelta(hours=3))
    pem = authority.issue("spiffe://lionrock.local/service/x", not_before=begin, lifetime=dt.timedelta(hours=3)).certificate
    assert not renew_due(issued.certificate)
    assert not renew_due(pem, begin + dt.timedelta(minutes=119))
    assert renew_due(pem, begin + dt.timedelta(minutes=120))
    assert renew_due(pem, begin + dt.timedelta(hours=4))


def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    replace_file(path, b"one", 0o600)
    inode = path.stat().st_ino
    replace_file(path, b"two", 0o600)
    assert path.read_bytes() == b"two"
    assert path.stat().st_ino != inode
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_files_are_looked_at_once_an_interval(tmp_path: Path) -> None:
    ca, clock = DevCa(tmp_path), Clock()
    tls = ca.issue("audit")
    watched = WatchedIdentity(tls, interval_s=1, clock=clock)
    first = watched.latest()
    ca.issue("audit")
    clock.now = 0.9
    assert watched.latest() is first
    clock.now = 1.0
    assert watched.latest() == read_identity(tls) != first
    assert watched.version == 2


@pytest.mark.parametrize("damage", ["no key", "other key", "half a certificate", "empty authorities"])
def test_unusable_files_are_refused_at_start_and_passed_over_later(tmp_path: Path, damage: str) -> None:
    ca, clock = DevCa(tmp_path), Clock()
    tls = ca.issue("audit")
    watched = WatchedIdentity(tls, interval_s=0, clock=clock)
    first: Any = watched.latest()
    match damage:
        case "no key":
            tls.key_file.unlink()
        case "other key":
            replace_file(tls.key_file, ca.authority.issue_service("audit").private_key, 0o600)
        case "half a certificate":
            replace_file(tls.cert_file, tls.cert_file.read_bytes()[:200], 0o644)
        case _:
            replace_file(tls.ca_file, b"", 0o644)
    with pytest.raises(TlsFilesUnusable):
        read_identity(tls)
    assert watched.latest() is first
    ca.issue("audit")
    assert watched.latest() == read_identity(tls) != first
