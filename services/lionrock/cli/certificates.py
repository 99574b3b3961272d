"""Certificates of a mesh on one machine: issued by the development CA, replaced at half their life while the mesh runs.

    ca/               ca.key, ca.crt
    certs/<service>/  spiffe://<trust domain>/service/<service>
    certs/supervisor/ the same for `lionrock up` itself: health probes, nothing else lets it in
    certs/client/     spiffe://<trust domain>/tenant/<tenant>/user/<name>: the user's own calls
    certs/ray/        for Ray's ports (RAY_USE_TLS)

Knows who gets which certificate and when. The chassis reads the files again when they change, so nothing restarts. Ray reads them
once a process, so its certificate lives for `RAY_LIFETIME`: a mesh that runs longer has to be started again.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from lionrock.chassis.devca import DevelopmentCa, IssuedCertificate
from lionrock.chassis.settings import TlsSettings
from lionrock.cli.errors import CommandError
from lionrock.cli.state import StateDir

RAY_LIFETIME = dt.timedelta(days=30)
SUPERVISOR = "supervisor"
CLIENT = "client"
RAY = "ray"


@dataclass(frozen=True, slots=True)
class CertificatePlan:
    """Whom to issue for. `lifetime_s` is that of every certificate but Ray's."""

    trust_domain: str
    services: Sequence[str]
    client_id: str
    lifetime_s: float
    ray_addresses: Sequence[str] = ("127.0.0.1", "127.0.0.2", "::1")


class Certificates:
    """The issued set. `tls` names the files of one holder."""

    def __init__(self, state: StateDir, plan: CertificatePlan) -> None:
        """Load or make the CA. Raises CommandError when the one in the directory cannot be used."""
        self._state = state
        self._plan = plan
        try:
            self._ca = DevelopmentCa.load_or_create(state.ca, plan.trust_domain)
        except (ValueError, OSError) as error:
            raise CommandError(
                f"the development CA cannot be used: {error}", fix=f"remove {state.ca} and {state.root / 'certs'}, then start again"
            ) from error

    def tls(self, holder: str) -> TlsSettings:
        """Files of a service, "supervisor", "client" or "ray"."""
        directory = self._state.certs(holder)
        return TlsSettings(cert_file=directory / "tls.crt", key_file=directory / "tls.key", ca_file=directory / "ca.crt")

    def issue_all(self) -> None:
        """Write a fresh certificate for everyone."""
        self._issue_short_lived()
        self._issue(RAY, self._ca.issue_service(RAY, ip_addresses=self._plan.ray_addresses, lifetime=RAY_LIFETIME))

    def _issue_short_lived(self) -> None:
        for holder, issued in self._short_lived():
            self._issue(holder, issued)

    def _short_lived(self) -> Iterator[tuple[str, IssuedCertificate]]:
        lifetime = dt.timedelta(seconds=self._plan.lifetime_s)
        for service in (*self._plan.services, SUPERVISOR):
            yield service, self._ca.issue_service(service, lifetime=lifetime)
        yield CLIENT, self._ca.issue(self._plan.client_id, dns_names=(), ip_addresses=(), lifetime=lifetime)

    def _issue(self, holder: str, issued: IssuedCertificate) -> None:
        issued.write(self._state.certs(holder))

    async def rotate(self, on_rotated: Callable[[], None]) -> None:
        """Replace the short-lived certificates each time that half their life is over. Runs until cancelled.

        Goes by the wall clock as well as by elapsed time: a laptop that slept finds its certificates old.
        """
        half_s = self._plan.lifetime_s / 2
        while True:
            due = time.time() + half_s
            while (left_s := due - time.time()) > 0:  # noqa: ASYNC110 - nothing sets an event when a clock reaches a time
                await asyncio.sleep(min(left_s, 30.0))
            await asyncio.to_thread(self._issue_short_lived)
            on_rotated()
