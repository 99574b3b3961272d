"""`python -m lionrock.chassis.enrolment`: a pod gets the certificate of a service of the mesh before its containers start.

Makes a key that never leaves the pod, asks for a certificate with a Kubernetes CertificateSigningRequest, waits for the verdict and
writes tls.crt, tls.key (mode 0600) and ca.crt. Ray checks addresses, and a pod's address is known only when it runs, so no
certificate can be made ahead. Who approves and signs is `signerName`'s business: Lionrock's operator, or an issuer of cert-manager.

There is no renewal: Ray's servers read their certificate once, so a certificate lives as long as its pod may, and a new pod gets a
new one. Errors are one line and exit status 1. Sources: Kubernetes API certificates.k8s.io/v1; RFC 2986.
"""

from __future__ import annotations

import argparse
import base64
import datetime as dt
import http.client
import ipaddress
import logging
import secrets
import ssl
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from lionrock.chassis.cluster_api import ACCOUNT_DIRECTORY, IN_CLUSTER, ApiServer, ApiUnusable, pod_uid
from lionrock.chassis.devca import IssuedCertificate
from lionrock.chassis.identity import SpiffeId

log = logging.getLogger("lionrock.chassis")

USAGES: Final = ("digital signature", "server auth", "client auth")
_PATH: Final = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
_FIRST_LOOK_S: Final = 0.25
_LONGEST_PAUSE_S: Final = 3.0
_MAX_MESSAGE: Final = 300
_TRY_AGAIN: Final = frozenset({429, 500, 502, 503, 504})


class EnrolmentFailed(Exception):
    """There is no certificate; the message says who refused it or what was not to be had."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolment:
    """What is asked for, and where."""

    service: str
    trust_domain: str
    address: str
    """Of the pod."""
    dns_names: tuple[str, ...] = ()
    """Beside <service>.lionrock.internal."""
    signer: str = "lionrock.io/mesh"
    lifetime_s: int = 90 * 24 * 3600
    timeout_s: float = 300.0
    directory: Path = Path("/run/lionrock/tls")
    authority_file: Path | None = None
    """Authorities to trust, PEM; None: the self-signed one at the end of the chain that the signer gives."""
    api_server: str = IN_CLUSTER
    account_directory: Path = ACCOUNT_DIRECTORY
    """token, bound to the pod, and ca.crt of the API server."""

    def names(self) -> list[x509.GeneralName]:
        """Names of the certificate. Raises EnrolmentFailed for one that is none."""
        try:
            identity = SpiffeId.parse(f"spiffe://{self.trust_domain}/service/{self.service}")
            address = ipaddress.ip_address(self.address)
        except ValueError as error:
            raise EnrolmentFailed(f"the certificate cannot be asked for: {error}") from None
        return [
            x509.UniformResourceIdentifier(str(identity)),
            *(x509.DNSName(name) for name in dict.fromkeys((f"{self.service}.lionrock.internal", *self.dns_names))),
            x509.IPAddress(address),
        ]


class _Deadline:
    """Time until the end, and pauses that grow."""

    def __init__(self, timeout_s: float, clock: Callable[[], float], sleep: Callable[[float], None]) -> None:
        self._timeout_s, self._clock, self._sleep = timeout_s, clock, sleep
        self._end_s = clock() + timeout_s
        self._pause_s = _FIRST_LOOK_S

    def pause(self, waiting_for: str) -> None:
        """Sleep for a while. Raises EnrolmentFailed when the time is over."""
        if (left_s := self._end_s - self._clock()) <= 0:
            raise EnrolmentFailed(f"no certificate after {self._timeout_s:.0f} s: {waiting_for}")
        self._sleep(min(self._pause_s, left_s))
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)


def enrol(
    enrolment: Enrolment, *, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
) -> IssuedCertificate:
    """Ask for a certificate and wait for it (blocking). Raises EnrolmentFailed, ApiUnusable."""
    api = ApiServer(enrolment.api_server, enrolment.account_directory)
    deadline = _Deadline(enrolment.timeout_s, clock, sleep)
    key = ec.generate_private_key(ec.SECP256R1())
    names = enrolment.names()
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, enrolment.service[:64])]))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    name = f"lionrock-{pod_uid(api.token())}-{secrets.token_hex(5)}"
    body = {
        "apiVersion": "certificates.k8s.io/v1",
        "kind": "CertificateSigningRequest",
        "metadata": {"name": name},
        "spec": {
            "request": base64.b64encode(request.public_bytes(serialization.Encoding.PEM)).decode(),
            "signerName": enrolment.signer,
            "expirationSeconds": enrolment.lifetime_s,
            "usages": list(USAGES),
        },
    }
    _create(api, body, deadline)
    log.info("certificate request %s waits for %s", name, enrolment.signer)
    chain = _wait(api, name, deadline)
    authority = _checked(chain, key.public_key(), names, enrolment.authority_file)
    private_key = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return IssuedCertificate(b"".join(_pem(each) for each in chain), private_key, authority)


def _create(api: ApiServer, body: dict[str, Any], deadline: _Deadline) -> None:
    while True:
        status, answer = _attempt(api, "POST", _PATH, body)
        # A conflict is our own request whose answer was lost: its name is random, and what it brings is checked against our key.
        if status in (201, 409):
            return
        _refuse_unless_passing(status, answer, "create the certificate request")
        deadline.pause(f"the API server does not take the request ({_said(status, answer)})")


def _wait(api: ApiServer, name: str, deadline: _Deadline) -> list[x509.Certificate]:
    while True:
        status, answer = _attempt(api, "GET", f"{_PATH}/{name}")
        if status == 200:
            state = answer.get("status") or {}
            conditions = {each.get("type"): each for each in state.get("conditions") or ()}
            for verdict in ("Denied", "Failed"):
                if (found := conditions.get(verdict)) is not None:
                    said = f"{found.get('reason')}: {found.get('message')}"[:_MAX_MESSAGE]
                    raise EnrolmentFailed(f"certificate request {name} is {verdict}: {said}")
            if (encoded := state.get("certificate")) is not None:
                try:
                    return x509.load_pem_x509_certificates(base64.b64decode(encoded, validate=True))
                except ValueError:
                    raise EnrolmentFailed(f"the signer put no certificate in PEM into request {name}") from None
            waiting = "it is approved but not signed" if "Approved" in conditions else "nobody has approved it"
            deadline.pause(f"certificate request {name}: {waiting}")
            continue
        _refuse_unless_passing(status, answer, f"read certificate request {name}")
        deadline.pause(f"certificate request {name} cannot be read ({_said(status, answer)})")


def _attempt(api: ApiServer, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int | None, dict[str, Any]]:
    """Call once; status None when nobody answered. A wrong certificate of the server is no passing trouble."""
    try:
        return api.call(method, path, body)
    except ssl.SSLCertVerificationError as error:
        raise EnrolmentFailed(f"the API server is not who its authority says: {error.verify_message}") from None
    except (OSError, http.client.HTTPException) as error:
        return None, {"message": type(error).__name__}


def _refuse_unless_passing(status: int | None, answer: dict[str, Any], what: str) -> None:
    """Raise EnrolmentFailed for an answer that will not change by itself."""
    if status is not None and status not in _TRY_AGAIN:
        raise EnrolmentFailed(f"the API server does not let this pod {what}: {_said(status, answer)}")


def _said(status: int | None, answer: dict[str, Any]) -> str:
    message = str(answer.get("message") or "no message")[:_MAX_MESSAGE]
    return message if status is None else f"{status} {message}"


def _checked(
    chain: Sequence[x509.Certificate], key: ec.EllipticCurvePublicKey, names: list[x509.GeneralName], authority_file: Path | None
) -> bytes:
    """Check what was issued, and return the authorities to trust. Raises EnrolmentFailed."""
    leaf = chain[0]
    if leaf.public_key() != key:
        raise EnrolmentFailed("the certificate is not for the key of this pod")
    try:
        given = list(leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        given = []
    if missing := [name for name in names if name not in given]:
        raise EnrolmentFailed(f"the certificate lacks {', '.join(str(name.value) for name in missing)}")
    if not leaf.not_valid_before_utc <= dt.datetime.now(dt.UTC) < leaf.not_valid_after_utc:
        raise EnrolmentFailed("the certificate is not valid now; compare the clocks of signer and node")
    if authority_file is not None:
        try:
            content = authority_file.read_bytes()
            authorities = x509.load_pem_x509_certificates(content)
        except (OSError, ValueError):
            raise EnrolmentFailed(f"{authority_file} holds no authorities in PEM") from None
    else:
        authorities = [each for each in chain[1:] if each.issuer == each.subject]
        content = b"".join(_pem(each) for each in authorities)
    _follow(chain, authorities)
    return content


def _follow(chain: Sequence[x509.Certificate], authorities: Sequence[x509.Certificate]) -> None:
    """Follow the signatures from the certificate to an authority. Raises EnrolmentFailed."""
    certificate = chain[0]
    for _ in range(len(chain) + 1):
        if any(_issued(certificate, authority) for authority in authorities):
            return
        above = [each for each in chain[1:] if each != certificate and _issued(certificate, each)]
        if not above:
            break
        certificate = above[0]
    raise EnrolmentFailed("the certificate leads to no authority here: the signer must give its root, or --authority name it")


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _parse(argv: Sequence[str]) -> Enrolment:
    parser = argparse.ArgumentParser(
        prog="python -m lionrock.chassis.enrolment",
        description=(__doc__ or "").partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    add = parser.add_argument
    add("--service", required=True, help="name of the service, the last part of its SPIFFE id")
    add("--trust-domain", required=True, help="SPIFFE trust domain of the mesh")
    add("--address", required=True, help="IP address of the pod")
    add("--dns-name", dest="dns_names", action="append", metavar="NAME", help="a further DNS name; may be repeated")
    add("--signer", help="signerName of the request (default: lionrock.io/mesh)")
    add("--lifetime-s", type=int, help="life of the certificate, at least that of the pod (default: 7776000, 90 days)")
    add("--timeout-s", type=float, help="longest wait for the certificate (default: 300)")
    add("--directory", type=Path, help="where tls.crt, tls.key and ca.crt go (default: /run/lionrock/tls)")
    add("--authority", dest="authority_file", type=Path, help="authorities to trust, PEM; unset: the root that the signer gives")
    add("--api-server", help=f"URL of the Kubernetes API (default: {IN_CLUSTER})")
    add("--account-directory", type=Path, help=f"token and ca.crt of the service account (default: {ACCOUNT_DIRECTORY})")
    arguments = vars(parser.parse_args(argv))
    return Enrolment(**{**arguments, "dns_names": tuple(arguments.get("dns_names", ()))})


def main(argv: Sequence[str]) -> int:
    """Run the program; returns its exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    enrolment = _parse(argv)
    try:
        issued = enrol(enrolment)
    except (EnrolmentFailed, ApiUnusable) as error:
        print(f"lionrock enrolment: {error}", file=sys.stderr)
        return 1
    issued.write(enrolment.directory)
    log.info("the certificate is in %s", enrolment.directory)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
