"""A pod's certificate from a real API server: its bound token, its request, the operator's verdict, and the files in the end."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from lionrock.chassis.devca import DevelopmentCa, IssuedCertificate
from lionrock.chassis.enrolment import Enrolment, EnrolmentFailed, enrol
from lionrock.operator.approver import Approver
from lionrock.operator.cluster import Cluster as ApiServer
from lionrock.operator.resources import ObjectKey, Pod, parse_pod
from lionrock.operator.signing_requests import Facts

from .testcluster.control_plane import Cluster
from .testcluster.objects import Manifest, Objects
from .testcluster.waiting import wait_for

DOMAIN = "lionrock.local"
ADDRESS = "10.1.2.3"
REQUESTS = "/apis/certificates.k8s.io/v1/certificatesigningrequests"


class FixedAuthority:
    """The built-in authority, loaded."""

    def __init__(self, authority: DevelopmentCa) -> None:
        self._authority = authority

    def load(self) -> DevelopmentCa:
        return self._authority


@dataclass
class Site:
    """A namespace with a model's pod, whose service account may ask for certificates."""

    objects: Objects
    namespace: str
    pod: Manifest
    enrolment: Callable[..., Enrolment]
    approver: Approver

    def requests(self) -> list[Manifest]:
        begin = f"lionrock-{self.pod['metadata']['uid']}-"
        items = self.objects.call("GET", REQUESTS)["items"]
        return [each for each in items if each["metadata"]["name"].startswith(begin)]

    def enrol(self, enrolment: Enrolment) -> IssuedCertificate:
        """Enrol while the operator looks after requests. Raises EnrolmentFailed."""
        outcome: list[IssuedCertificate | EnrolmentFailed] = []

        def run() -> None:
            try:
                outcome.append(enrol(enrolment))
            except EnrolmentFailed as error:
                outcome.append(error)

        asking = threading.Thread(target=run)
        asking.start()

        def decided() -> bool:
            for request in self.requests():
                self.approver.handle({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", **request})
            return not asking.is_alive()

        wait_for(decided, "the enrolment has an end", timeout_s=60)
        (found,) = outcome
        if isinstance(found, EnrolmentFailed):
            raise found
        return found


@pytest.fixture
def site(control_plane: Cluster, objects: Objects, tmp_path: Path) -> Iterator[Site]:
    name = f"enrolment-{secrets.token_hex(4)}"
    meta = {"name": name}
    rules = [{"apiGroups": ["certificates.k8s.io"], "resources": ["certificatesigningrequests"], "verbs": ["create", "get"]}]
    subjects = [{"kind": "ServiceAccount", "name": "lionrock-engine", "namespace": name}]
    rbac = "rbac.authorization.k8s.io/v1"
    role_ref = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name}
    made: list[Manifest] = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": meta},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "lionrock-engine", "namespace": name}},
        {"apiVersion": rbac, "kind": "ClusterRole", "metadata": meta, "rules": rules},
        {"apiVersion": rbac, "kind": "ClusterRoleBinding", "metadata": meta, "roleRef": role_ref, "subjects": subjects},
    ]
    for manifest in made:
        objects.create(manifest)
    pod = objects.create(_pod(name))
    pod = objects.merge(pod, {"status": {"phase": "Pending", "podIP": ADDRESS, "podIPs": [{"ip": ADDRESS}]}}, subresource="status")
    account = tmp_path / "account"
    account.mkdir()
    (account / "ca.crt").write_bytes(_api_authority(control_plane))
    bound = {"kind": "Pod", "apiVersion": "v1", "name": "chat-head", "uid": pod["metadata"]["uid"]}
    path = f"/api/v1/namespaces/{name}/serviceaccounts/lionrock-engine/token"
    token = objects.call("POST", path, {"spec": {"boundObjectRef": bound, "expirationSeconds": 600}})["status"]["token"]
    (account / "token").write_text(token)
    authority = DevelopmentCa.create(DOMAIN)
    (tmp_path / "trusted.crt").write_bytes(authority.certificate_pem)

    def enrolment(**changed: Any) -> Enrolment:
        asked: dict[str, Any] = {
            "service": "inference",
            "trust_domain": DOMAIN,
            "address": ADDRESS,
            "api_server": control_plane.api_url,
            "account_directory": account,
            "authority_file": tmp_path / "trusted.crt",
            "timeout_s": 45,
        }
        return Enrolment(**{**asked, **changed})

    def find(key: ObjectKey) -> Pod | None:
        found = objects.read("v1", "Pod", key.name, key.namespace)
        return None if found is None else parse_pod(found)

    facts = Facts(DOMAIN, find, lambda model, revision: True)
    approver = Approver(ApiServer.connect(control_plane.kubeconfig), facts, FixedAuthority(authority), lambda _: None)  # type: ignore[arg-type]
    site = Site(objects, name, pod, enrolment, approver)
    yield site
    for request in site.requests():
        objects.call("DELETE", f"{REQUESTS}/{request['metadata']['name']}")
    objects.delete(pod, grace_s=0)
    for manifest in reversed(made):
        objects.delete(manifest)


def _pod(namespace: str) -> Manifest:
    model = {"lionrock.io/model": "chat", "lionrock.io/revision": "0a1b2c3d", "lionrock.io/role": "head"}
    labels = {"app.kubernetes.io/part-of": "lionrock", **model}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "chat-head", "namespace": namespace, "labels": labels},
        "spec": {
            "serviceAccountName": "lionrock-engine",
            "automountServiceAccountToken": False,
            "nodeName": "n1",
            "containers": [{"name": "ray-head", "image": "engine"}],
        },
    }


def _api_authority(control_plane: Cluster) -> bytes:
    authority = control_plane.client().configuration.ssl_ca_cert
    return Path(authority).read_bytes()


def test_a_pod_gets_its_certificate_from_the_operator(site: Site, tmp_path: Path) -> None:
    issued = site.enrol(site.enrolment(lifetime_s=3600))
    tls = issued.write(tmp_path / "tls")
    assert tls.key_file.stat().st_mode & 0o777 == 0o600
    leaf = x509.load_pem_x509_certificate(tls.cert_file.read_bytes())
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(each.value) for each in names] == [f"spiffe://{DOMAIN}/service/inference", "inference.lionrock.internal", ADDRESS]
    (request,) = site.requests()
    assert request["spec"]["username"] == f"system:serviceaccount:{site.namespace}:lionrock-engine"


def test_a_pod_does_not_get_the_address_of_another(site: Site) -> None:
    with pytest.raises(EnrolmentFailed, match="is Denied: WrongAddress: the one address must be the pod's"):
        site.enrol(site.enrolment(address="10.9.9.9"))


def test_what_the_api_server_itself_refuses_is_told(site: Site) -> None:
    with pytest.raises(EnrolmentFailed, match="does not let this pod create the certificate request: 422 "):
        site.enrol(site.enrolment(lifetime_s=60))  # the API's least is ten minutes
