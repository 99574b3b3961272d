"""Certificates for tests: a development CA in a directory, one identity a subdirectory."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from lionrock.chassis.devca import LEAF_LIFETIME, LOCAL_NAMES, DevelopmentCa, service_names
from lionrock.chassis.settings import TlsSettings

TRUST_DOMAIN = "lionrock.local"


class DevCa:
    """A development CA that keeps what it issues below a directory."""

    def __init__(self, directory: Path, trust_domain: str = TRUST_DOMAIN) -> None:
        self.directory = directory
        self.trust_domain = trust_domain
        self.authority = DevelopmentCa.load_or_create(directory / "ca", trust_domain)

    def issue(
        self,
        service: str | None = None,
        *,
        spiffe_id: str | None = None,
        directory: Path | None = None,
        lifetime: dt.timedelta = LEAF_LIFETIME,
        not_before: dt.datetime | None = None,
    ) -> TlsSettings:
        """Issue for a service by name, or for any SPIFFE id; the same call again replaces the files, as rotation does."""
        if (service is None) == (spiffe_id is None):
            raise ValueError("give a service or a SPIFFE id")
        identity = spiffe_id or f"spiffe://{self.trust_domain}/service/{service}"
        names = LOCAL_NAMES if service is None else service_names(service)
        target = directory or self.directory / "certs" / (service or identity.removeprefix("spiffe://").replace("/", "_"))
        issued = self.authority.issue(identity, dns_names=names, lifetime=lifetime, not_before=not_before)
        return issued.write(target)

    def issue_tenant(self, tenant: str, name: str = "ada", kind: str = "user") -> TlsSettings:
        """Issue for a caller of a tenant."""
        return self.issue(spiffe_id=f"spiffe://{self.trust_domain}/tenant/{tenant}/{kind}/{name}")
