"""A pod's certificate: asked for over HTTPS in the API's own words, checked, written; and every way not to get one, by name.

The API server here is a small one that speaks the wire format of certificates.k8s.io/v1 and signs with a real authority;
tests/cluster/test_enrolment.py asks a real one.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from lionrock.chassis.cluster_api import ApiUnusable
from lionrock.chassis.devca import DevelopmentCa
from lionrock.chassis.enrolment import Enrolment, EnrolmentFailed, enrol, main
from lionrock.chassis.settings import TlsSettings
from lionrock.chassis.tls import read_identity
from mesh_ca import TRUST_DOMAIN, DevCa

UID = "5f0c7f0e-0000-4000-8000-000000000001"
Answer = tuple[int, dict[str, Any]]


def pod_token(claims: dict[str, Any]) -> str:
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in (b"{}", json.dumps(claims).encode(), b"-"))


class SigningApi:
    """An API server with one kind of object. `decide` writes the status of a request when it is read for the n-th time."""

    def __init__(self, directory: Path) -> None:
        self.authority = DevelopmentCa.create(TRUST_DOMAIN)
        self.requests: dict[str, dict[str, Any]] = {}
        self.troubles: list[Answer | None] = []  # answers that come first; None: the connection ends without one
        self.decide: Callable[[dict[str, Any], int], dict[str, Any]] = lambda request, _: self.signed(request)
        self.account = directory / "account"
        self.account.mkdir()
        (self.account / "token").write_text(pod_token({"kubernetes.io": {"pod": {"name": "m-0", "uid": UID}}}))
        ca = DevCa(directory)
        tls = ca.issue("api")
        (self.account / "ca.crt").write_bytes(tls.ca_file.read_bytes())
        self._reads: dict[str, int] = {}
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self._answer(lambda: api.create(self.path, body))

            def do_GET(self) -> None:
                self._answer(lambda: api.read(self.path))

            def _answer(self, handle: Callable[[], Answer]) -> None:
                token = (api.account / "token").read_text()
                trouble = api.troubles.pop(0) if api.troubles else ()
                if trouble is None:
                    self.close_connection = True
                    handle()
                    return
                refused = (401, {"kind": "Status", "message": "Unauthorized"})
                known = self.headers["Authorization"] == f"Bearer {token}"
                status, document = trouble or (handle() if known else refused)
                content = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments: Any) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls.cert_file, tls.key_file)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self.server.server_port}"

    def create(self, path: str, body: dict[str, Any]) -> Answer:
        assert path == "/apis/certificates.k8s.io/v1/certificatesigningrequests"
        assert (body["apiVersion"], body["kind"]) == ("certificates.k8s.io/v1", "CertificateSigningRequest")
        if body["metadata"]["name"] in self.requests:
            return 409, {"kind": "Status", "reason": "AlreadyExists", "message": "already exists"}
        self.requests[body["metadata"]["name"]] = body
        return 201, body

    def read(self, path: str) -> Answer:
        name = path.rpartition("/")[2]
        request = self.requests[name]
        self._reads[name] = self._reads.get(name, 0) + 1
        return 200, {**request, "status": self.decide(request, self._reads[name])}

    def signed(self, request: dict[str, Any], **changed: Any) -> dict[str, Any]:
        asked = x509.load_pem_x509_csr(base64.b64decode(request["spec"]["request"]))
        names = asked.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        certificate = self.authority.sign(
            changed.get("key", asked.public_key()),
            names.get_values_for_type(x509.UniformResourceIdentifier)[0],
            dns_names=names.get_values_for_type(x509.DNSName),
            ip_addresses=changed.get("addresses", [str(each) for each in names.get_values_for_type(x509.IPAddress)]),
            lifetime=dt.timedelta(seconds=request["spec"]["expirationSeconds"]),
        )
        chain = certificate + changed.get("root", self.authority.certificate_pem)
        return {"conditions": [{"type": "Approved", "status": "True"}], "certificate": base64.b64encode(chain).decode()}


@pytest.fixture
def api(tmp_path: Path) -> Iterator[SigningApi]:
    api = SigningApi(tmp_path)
    serving = threading.Thread(target=api.server.serve_forever, kwargs={"poll_interval": 0.02})
    serving.start()
    yield api
    api.server.shutdown()
    api.server.server_close()
    serving.join()


def enrolment(api: SigningApi, **changed: Any) -> Enrolment:
    asked: dict[str, Any] = {
        "service": "inference",
        "trust_domain": TRUST_DOMAIN,
        "address": "10.1.2.3",
        "dns_names": ("m-head-svc.models.svc.cluster.local",),
        "api_server": api.url,
        "account_directory": api.account,
    }
    return Enrolment(**{**asked, **changed})


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def sleep(self, seconds: float) -> None:
        assert 0 < seconds <= 3, "pauses are bounded"
        self.now_s += seconds


def ask(api: SigningApi, **changed: Any) -> Any:
    time = Time()
    return enrol(enrolment(api, **changed), clock=lambda: time.now_s, sleep=time.sleep)


def test_a_pod_gets_the_names_that_it_asked_for_and_files_that_servers_read(api: SigningApi, tmp_path: Path) -> None:
    arguments = ["--service=inference", f"--trust-domain={TRUST_DOMAIN}", "--address=10.1.2.3", f"--api-server={api.url}"]
    arguments += ["--dns-name=m.models.svc", f"--account-directory={api.account}", f"--directory={tmp_path / 'tls'}"]
    assert main([*arguments, "--lifetime-s=3600"]) == 0
    (name,) = api.requests
    assert name.startswith(f"lionrock-{UID}-")
    spec = api.requests[name]["spec"]
    assert (spec["signerName"], spec["expirationSeconds"]) == ("lionrock.io/mesh", 3600)
    assert spec["usages"] == ["digital signature", "server auth", "client auth"]
    files = TlsSettings(**{f"{kind}_file": tmp_path / "tls" / file for kind, file in _FILES.items()})
    identity = read_identity(files)
    assert identity.authorities == api.authority.certificate_pem
    assert files.key_file.stat().st_mode & 0o777 == 0o600
    leaf = x509.load_pem_x509_certificate(identity.certificate_chain)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(each.value) for each in names] == [
        f"spiffe://{TRUST_DOMAIN}/service/inference", "inference.lionrock.internal", "m.models.svc", "10.1.2.3",
    ]  # fmt: skip


_FILES = {"cert": "tls.crt", "key": "tls.key", "ca": "ca.crt"}


def test_a_verdict_that_takes_its_time_is_waited_for(api: SigningApi) -> None:
    api.decide = lambda request, read: [{}, {"conditions": [{"type": "Approved"}]}, api.signed(request)][min(read - 1, 2)]
    assert ask(api).authority == api.authority.certificate_pem


def test_an_authority_that_was_mounted_is_trusted_and_no_other(api: SigningApi, tmp_path: Path) -> None:
    trusted, other = tmp_path / "trusted.crt", tmp_path / "other.crt"
    trusted.write_bytes(api.authority.certificate_pem)
    other.write_bytes(DevelopmentCa.create(TRUST_DOMAIN).certificate_pem)
    api.decide = lambda request, _: api.signed(request, root=b"")
    assert ask(api, authority_file=trusted).authority == api.authority.certificate_pem
    with pytest.raises(EnrolmentFailed, match="leads to no authority"):
        ask(api, authority_file=other)
    with pytest.raises(EnrolmentFailed, match="signer must give its root"):
        ask(api)


def test_an_api_server_that_is_busy_or_drops_the_answer_is_asked_again(api: SigningApi) -> None:
    api.troubles = [(503, {"message": "starting"}), (429, {"message": "slowly"}), None]
    assert ask(api).certificate
    assert len(api.requests) == 1, "the request whose answer was lost is not made twice"


@pytest.mark.parametrize("verdict", ["Denied", "Failed"])
def test_a_refusal_is_told_with_its_reason(api: SigningApi, verdict: str) -> None:
    refusal = {"type": verdict, "reason": "WrongAddress", "message": "the one address must be the pod's"}
    api.decide = lambda request, read: {"conditions": [refusal]}
    with pytest.raises(EnrolmentFailed, match=f"is {verdict}: WrongAddress: the one address must be the pod's"):
        ask(api)


def test_the_wait_ends_and_says_what_is_missing(api: SigningApi) -> None:
    api.decide = lambda request, read: {}
    with pytest.raises(EnrolmentFailed, match=r"after 30 s: .* nobody has approved it"):
        ask(api, timeout_s=30)
    api.decide = lambda request, read: {"conditions": [{"type": "Approved"}]}
    with pytest.raises(EnrolmentFailed, match="approved but not signed"):
        ask(api, timeout_s=30)


def test_a_service_account_that_may_not_ask_is_told_so(api: SigningApi) -> None:
    api.troubles = [(403, {"message": "certificatesigningrequests is forbidden"})]
    with pytest.raises(EnrolmentFailed, match="create the certificate request: 403 certificatesigningrequests is forbidden"):
        ask(api)


def test_what_was_not_asked_for_is_not_used(api: SigningApi) -> None:
    api.decide = lambda request, _: api.signed(request, addresses=["10.9.9.9"])
    with pytest.raises(EnrolmentFailed, match=r"lacks 10\.1\.2\.3"):
        ask(api)
    foreign = x509.load_pem_x509_certificate(api.authority.certificate_pem).public_key()
    api.decide = lambda request, _: api.signed(request, key=foreign)
    with pytest.raises(EnrolmentFailed, match="not for the key of this pod"):
        ask(api)
    api.decide = lambda request, _: {"certificate": base64.b64encode(b"no PEM").decode()}
    with pytest.raises(EnrolmentFailed, match="no certificate in PEM"):
        ask(api)


def test_an_api_server_that_its_authority_does_not_know_is_not_asked(api: SigningApi) -> None:
    (api.account / "ca.crt").write_bytes(DevelopmentCa.create(TRUST_DOMAIN).certificate_pem)
    with pytest.raises(EnrolmentFailed, match="not who its authority says"):
        ask(api)
    assert api.requests == {}


@pytest.mark.parametrize("claims", [{}, {"kubernetes.io": {"pod": None}}, {"kubernetes.io": {"pod": {"uid": 7}}}])
def test_a_token_of_no_pod_is_refused_before_anything_is_asked(api: SigningApi, claims: dict[str, Any]) -> None:
    (api.account / "token").write_text(pod_token(claims))
    with pytest.raises(ApiUnusable, match="not bound to a pod"):
        ask(api)


@pytest.mark.parametrize("changed", [{"address": "pod"}, {"trust_domain": "Not A Domain"}])
def test_names_that_are_none_are_refused(api: SigningApi, changed: dict[str, Any]) -> None:
    with pytest.raises(EnrolmentFailed, match="cannot be asked for"):
        ask(api, **changed)
