"""The operator with exactly the rights that the chart gives it: nothing is refused, and nothing is granted that it does not use.

Rights are those that the chart renders; what was used is read from the API server's audit log. On the way pods get certificates
from it, by their own enrolment with tokens that the API server bound to them.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fault_proxy import Fault, Request, no_faults
from operators import REGION, Place, TestedOperator, make_place, model, node, operating, play_kuberay, settings_for
from testcluster.audit import AuditLog
from testcluster.commands import Command
from testcluster.control_plane import ControlPlane
from testcluster.objects import Manifest, Objects
from testcluster.waiting import wait_for

from lionrock.chassis.devca import DevelopmentCa
from lionrock.chassis.enrolment import Enrolment, EnrolmentFailed, enrol
from lionrock.operator.actions import Event, ObjectRef, Severity
from lionrock.operator.event_recorder import EventRecorder
from tenant_files import document

ROOT = Path(__file__).resolve().parents[2]
RELEASE = "rights"
Right = tuple[str, str, str]
"""API group, resource, verb."""

CHECKED_WITHOUT_A_REQUEST: frozenset[Right] = frozenset(
    {
        # The API server asks its authoriser itself: whether who approves or signs may do so for this signer …
        ("certificates.k8s.io", "signers", "approve"),
        ("certificates.k8s.io", "signers", "sign"),
        # … and, where an admission plug-in wants it, whether who sets an owner may hold up the owner's deletion.
        ("lionrock.io", "modeldeployments/finalizers", "update"),
    }
)


@pytest.fixture
def place(objects: Objects, lionrock_crds: list[str], ray_crds: list[str]) -> Iterator[Place]:
    place = make_place(objects)
    yield place
    place.close()


def rendered(helm: Command, namespace: str) -> list[Manifest]:
    """Roles as the chart renders them for the built-in authority."""
    text = helm("template", RELEASE, ROOT / "charts" / "lionrock", "--namespace", namespace, "--values", minimal_values())
    roles = [each for each in yaml.safe_load_all(text) if each and each["kind"] in ("ClusterRole", "Role")]
    return [role for role in roles if "operator" in role["metadata"]["name"]]


def minimal_values() -> Path:
    return ROOT / "charts" / "lionrock" / "ci" / "minimal.yaml"


def rights(roles: list[Manifest]) -> set[Right]:
    return {
        (group, resource, verb)
        for role in roles
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def bind(objects: Objects, roles: list[Manifest], user: str, namespace: str) -> None:
    """Give the user these roles and nothing else."""
    subject = {"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": user}
    for role in roles:
        kind = role["kind"]
        metadata: dict[str, Any] = {"name": f"{user}-{kind.lower()}"}
        if kind == "Role":
            metadata["namespace"] = namespace
        rbac = "rbac.authorization.k8s.io/v1"
        objects.create({"apiVersion": rbac, "kind": kind, "metadata": metadata, "rules": role["rules"]})
        reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": metadata["name"]}
        objects.create(
            {"apiVersion": rbac, "kind": f"{kind}Binding", "metadata": metadata, "roleRef": reference, "subjects": [subject]}
        )


def test_every_right_is_used_and_none_is_missing(
    own_control_plane: ControlPlane, place: Place, objects: Objects, helm: Command, audit_log: AuditLog, tmp_path: Path
) -> None:
    user = f"operator-{place.region}"
    roles = rendered(helm, place.namespace)
    bind(objects, roles, user, place.namespace)
    begun = audit_log.position()
    settings = settings_for(
        place.namespace,
        place.region,
        lease={"name": f"{RELEASE}-lionrock-operator", "duration_s": 6, "renew_deadline_s": 5, "retry_s": 0.5},
        certificates={"mode": "builtin", "authority_secret": f"{RELEASE}-lionrock-ca"},
    )
    make_authority(place, f"{RELEASE}-lionrock-ca")
    kubeconfig = own_control_plane.user_kubeconfig(user)
    with play_kuberay(place), operating(own_control_plane, settings, kubeconfig=kubeconfig) as operator:
        operator.wait_leads()
        live(place, operator, own_control_plane, tmp_path)
    asked = list(audit_log.since(begun, user=user))
    assert [each for each in asked if each.refused_by_rbac or each.status == 403] == []
    used: set[Right] = {(each.group, each.resource, each.verb) for each in asked}
    # Applying what is not there creates it, for which the API server wants that right too.
    used |= {(each.group, each.resource, "create") for each in asked if each.verb == "patch" and each.status == 201}
    assert rights(roles) - used == CHECKED_WITHOUT_A_REQUEST


def live(place: Place, operator: TestedOperator, control_plane: ControlPlane, directory: Path) -> None:
    """Have the operator do everything that it ever does."""
    objects = place.objects
    # A pool is proposed for chips that no pool has.
    objects.create(node(f"{place.nodes[0]}-mlu", place.region) | _chips("cambricon.com/mlu", f"{place.nodes[0]}-mlu", place.region))
    place.nodes.append(f"{place.nodes[0]}-mlu")
    # A model's answer is lost, so that it must be read.
    lost: list[Request] = []

    def lose_one(request: Request) -> Fault | None:
        if not lost and "modeldeployments/chat/status" in request.path:
            lost.append(request)
            return Fault(cut_after=True)
        return None

    operator.proxy.plan = lose_one
    objects.create(model("chat", place.namespace))
    wait_for(lambda: place.condition("chat", "Scheduled").get("status") == "True", "the model is placed")
    operator.proxy.plan = no_faults
    # It grows.
    objects.merge(place.model("chat"), {"spec": {"replicas": 2}})
    wait_for(lambda: len(let_go(place)) == 2, "the second replica is let go")
    # One whose config is read by a pod.
    unknown = model("unknown", place.namespace)
    del unknown["spec"]["model"]["config"]
    objects.create(unknown)
    wait_for(lambda: [pod for pod in place.pods() if "facts" in pod["metadata"]["name"]], "a pod reads the config")
    # Its pods get certificates.
    enrol_pod(place, control_plane, let_go(place)[0], directory)
    # A node leaves the territory.
    moved = next(pod for pod in place.model("chat")["status"]["placement"]["pods"])["node"]
    objects.merge(
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": moved}}, {"metadata": {"labels": {REGION: "elsewhere"}}}
    )
    wait_for(lambda: moved not in {pod["node"] for pod in _slots(place)} and len(let_go(place)) == 2, "its pods are moved")
    # What happens again and again is told with a number.
    now = [0.0]
    recorder = EventRecorder(operator.cluster, "operator", clock=lambda: now[0])
    about = ObjectRef(api_version="v1", kind="Namespace", namespace=place.namespace, name=place.namespace)
    event = Event(about=about, severity=Severity.NORMAL, reason="Again", message="again")
    for now[0] in (1.0, 100.0):
        recorder.record(event)
    told = [each for each in objects.list("events.k8s.io/v1", "Event", place.namespace) if each["reason"] == "Again"]
    assert [each["series"]["count"] for each in told] == [2]
    # A tenant comes and goes.
    objects.create({**document("retail", "lionrock.test"), "metadata": {"name": "retail", "namespace": place.namespace}})
    wait_for(lambda: "ConfigMap/lionrock-tenants" in place.children(), "the tenant is published")
    objects.delete({**document("retail"), "metadata": {"name": "retail", "namespace": place.namespace}})
    wait_for(lambda: not place.children()["ConfigMap/lionrock-tenants"].get("data"), "the tenant is taken away")
    # Everything ends.
    for name in ("chat", "unknown"):
        objects.delete(place.model(name))
    wait_for(
        lambda: not objects.list("lionrock.io/v1alpha1", "ModelDeployment", place.namespace),
        "the models are gone",
        seen=lambda: (
            sorted(place.children()),
            [(pod["metadata"]["name"], pod["metadata"].get("finalizers")) for pod in place.pods()],
        ),
    )
    wait_for(
        lambda: not objects.list("v1", "Secret", place.namespace, labels="app.kubernetes.io/part-of=lionrock"), "the token is gone"
    )
    kept = ("proposed", "lionrock-tenants")
    wait_for(lambda: not [name for name in place.children() if not any(word in name for word in kept)], "the routes are gone")


def _chips(resource: str, name: str, region: str) -> Manifest:
    capacity = {"cpu": "64", "memory": "1Ti", "pods": "110", resource: "8"}
    made = node(name, region)
    return {"status": {**made["status"], "capacity": capacity, "allocatable": capacity}}


def _slots(place: Place) -> list[Manifest]:
    found: list[Manifest] = place.model("chat")["status"]["placement"]["pods"]
    return found


def let_go(place: Place) -> list[Manifest]:
    workers = [pod for pod in place.pods() if pod["metadata"]["labels"].get("lionrock.io/role") == "worker"]
    return [pod for pod in workers if not pod["spec"].get("schedulingGates")]


def make_authority(place: Place, name: str) -> DevelopmentCa:
    authority = DevelopmentCa.create("lionrock.test")
    files = {"ca.key": authority.private_key_pem.decode(), "ca.crt": authority.certificate_pem.decode()}
    metadata = {"name": name, "namespace": place.namespace}
    place.objects.create({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": files})
    return authority


def enrol_pod(place: Place, control_plane: ControlPlane, pod: Manifest, directory: Path, **changes: Any) -> bytes:
    """Let a pod ask for its certificate, as its init container does. Returns the authority that it trusts then."""
    objects, name, address = place.objects, pod["metadata"]["name"], "10.77.0.9"
    found = objects.read("v1", "Pod", name, place.namespace)
    assert found is not None
    account = pod["spec"]["serviceAccountName"]
    rbac = "rbac.authorization.k8s.io/v1"
    role = f"enrolment-{place.region}"
    rule = {"apiGroups": ["certificates.k8s.io"], "resources": ["certificatesigningrequests"], "verbs": ["create", "get"]}
    objects.apply({"apiVersion": rbac, "kind": "ClusterRole", "metadata": {"name": role}, "rules": [rule]})
    subject = {"kind": "ServiceAccount", "name": account, "namespace": place.namespace}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role}
    objects.apply(
        {"apiVersion": rbac, "kind": "ClusterRoleBinding", "metadata": {"name": role}, "roleRef": reference, "subjects": [subject]}
    )
    path = f"/api/v1/namespaces/{place.namespace}"
    if not found["spec"].get("nodeName"):
        target = {"apiVersion": "v1", "kind": "Node", "name": place.nodes[0]}
        binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": target}
        objects.call("POST", f"{path}/pods/{name}/binding", binding)
    objects.merge(pod, {"status": {"phase": "Pending", "podIP": address, "podIPs": [{"ip": address}]}}, subresource="status")
    bound = {"kind": "Pod", "apiVersion": "v1", "name": name, "uid": pod["metadata"]["uid"]}
    wanted = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"boundObjectRef": bound, "audiences": []}}
    token = objects.call("POST", f"{path}/serviceaccounts/{account}/token", wanted)["status"]["token"]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "token").write_text(token)
    (directory / "ca.crt").write_bytes(control_plane.ca.ca_file.read_bytes())
    settings: dict[str, Any] = {
        "service": "inference",
        "trust_domain": "lionrock.test",
        "address": address,
        "lifetime_s": 86400,
        "timeout_s": 30,
        "directory": directory / "tls",
        "api_server": control_plane.api_url,
        "account_directory": directory,
    }
    issued = enrol(Enrolment(**(settings | changes)))
    tls = issued.write(directory / "tls")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.cert_file, tls.key_file)
    return issued.authority


def test_pods_get_their_own_names_and_no_others(own_control_plane: ControlPlane, place: Place, tmp_path: Path) -> None:
    authority = make_authority(place, "lionrock-ca")
    with play_kuberay(place), operating(own_control_plane, settings_for(place.namespace, place.region)) as operator:
        operator.wait_leads()
        place.objects.create(model("chat", place.namespace))
        (worker,) = wait_for(lambda: let_go(place), "the worker is let go")
        assert enrol_pod(place, own_control_plane, worker, tmp_path / "good") == authority.certificate_pem
        for case, wrong in {
            "WrongAddress": {"address": "10.77.0.10"},
            "WrongIdentity": {"service": "gateway"},
            "WrongDnsName": {"dns_names": ("audit.lionrock.internal",)},
            "WrongLifetime": {"lifetime_s": 100 * 86400},
        }.items():
            with pytest.raises(EnrolmentFailed, match=f"is Denied: {case}"):
                enrol_pod(place, own_control_plane, worker, tmp_path / case, **wrong)
        # A pod that anybody made, without a model.
        container = {"name": "c", "image": "none"}
        spec = {"containers": [container], "serviceAccountName": "lionrock-engine"}
        forged: Manifest = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": "forged",
                "namespace": place.namespace,
                "labels": worker["metadata"]["labels"] | {"lionrock.io/role": "me"},
            },
            "spec": spec,
        }
        forged = place.objects.create(forged)
        with pytest.raises(EnrolmentFailed, match="is Denied: NotAModelsPod"):
            enrol_pod(place, own_control_plane, forged, tmp_path / "forged")


def test_a_missing_authority_is_told_and_waited_for(
    own_control_plane: ControlPlane, place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with play_kuberay(place), operating(own_control_plane, settings_for(place.namespace, place.region)) as operator:
        operator.wait_leads()
        place.objects.create(model("chat", place.namespace))
        (worker,) = wait_for(lambda: let_go(place), "the worker is let go")
        with pytest.raises(EnrolmentFailed, match="nobody has approved it"):
            enrol_pod(place, own_control_plane, worker, tmp_path / "early", timeout_s=1.0)
        assert any("is missing" in record.getMessage() for record in caplog.records)
        make_authority(place, "lionrock-ca")
        assert enrol_pod(place, own_control_plane, worker, tmp_path / "late")
