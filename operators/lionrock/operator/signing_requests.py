"""Who may have which certificate: the judgement on a CertificateSigningRequest of a model's pod. Pure.

The API server vouches for `spec.username` and `spec.extra`: a token that is bound to a pod carries that pod's name and uid. All
else is a claim. A request is granted when the pod that the token is bound to runs, is one of a model's, belongs to the service
account that asked, and when the names are exactly this pod's. Whatever does not hold is refused by name; what may come to hold
within moments, because a kubelet reports a pod's address after its first container began, is waited for.
Does not know how verdicts are written (`approver`) nor how certificates are made (`certificate_signer`).
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from lionrock.operator.certificate_signer import RequestedCertificate, UnusableRequest, parse_request
from lionrock.operator.desired_state import child_name
from lionrock.operator.resources import TOKENIZATION_ROLE, ObjectKey, Pod, Revision
from lionrock.operator.tokenization import tokenization_name

POD_NAME: Final = "authentication.kubernetes.io/pod-name"
POD_UID: Final = "authentication.kubernetes.io/pod-uid"
USAGES: Final = frozenset({"digital signature", "server auth", "client auth"})
MAX_LIFETIME_S: Final = 90 * 24 * 3600
MIN_LIFETIME_S: Final = 600  # the API server's own bound
RAY_CLUSTER_LABEL: Final = "ray.io/cluster"
SERVICES: Final = MappingProxyType({"head": "inference", "worker": "inference", TOKENIZATION_ROLE: "tokenization"})
"""What pods of each role may be."""
CLUSTER_DOMAINS: Final = (".svc", ".svc.cluster.local")


@dataclass(frozen=True, slots=True)
class Granted:
    """The request may be signed."""

    requested: RequestedCertificate
    lifetime_s: int


@dataclass(frozen=True, slots=True)
class Denied:
    """The request is refused. reason: CamelCase, for programs; neither holds what the request claims."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class NotYet:
    """What is missing may appear by itself; if it does not, the request is refused for that."""

    otherwise: Denied


Verdict = Granted | Denied | NotYet


@dataclass(frozen=True, slots=True)
class Facts:
    """What the operator knows by itself. pod: by namespace and name; runs: whether the model has a RayService of that revision."""

    trust_domain: str
    pod: Callable[[ObjectKey], Pod | None]
    runs: Callable[[ObjectKey, Revision], bool]


def judge(request: Mapping[str, Any], facts: Facts) -> Verdict:
    """Judge a CertificateSigningRequest. Raises nothing: what cannot be read is denied."""
    spec = request.get("spec") or {}
    try:
        requested = parse_request(base64.b64decode(spec.get("request") or "", validate=True))
    except binascii.Error:
        return Denied("UnusableRequest", "the request is not base64")
    except UnusableRequest as error:
        return Denied("UnusableRequest", str(error))
    if frozenset(spec.get("usages") or ()) != USAGES:
        return Denied("WrongUsages", f"usages must be exactly {', '.join(sorted(USAGES))}")
    lifetime_s = spec.get("expirationSeconds")
    if not isinstance(lifetime_s, int) or not MIN_LIFETIME_S <= lifetime_s <= MAX_LIFETIME_S:
        return Denied("WrongLifetime", f"expirationSeconds must be stated, from {MIN_LIFETIME_S} to {MAX_LIFETIME_S}")
    found = _requester(str(request["metadata"]["name"]), spec, facts)
    if not isinstance(found, Pod):
        return found
    wrong = _wrong_names(requested, found, facts.trust_domain)
    if wrong is not None:
        return wrong
    return Granted(requested, lifetime_s)


def _requester(request_name: str, spec: Mapping[str, Any], facts: Facts) -> Pod | Denied | NotYet:
    """Find the pod that the requester's token is bound to."""
    extra = spec.get("extra") or {}
    match extra.get(POD_NAME), extra.get(POD_UID):
        case [str(name)], [str(uid)] if name and uid:
            pass
        case _:
            return Denied("NotAPod", "the request was not made with a token that is bound to a pod")
    match str(spec.get("username")).split(":"):
        case ["system", "serviceaccount", namespace, account] if namespace and account:
            pass
        case _:
            return Denied("NotAPod", "the request was not made by a service account")
    if not request_name.startswith(f"lionrock-{uid}-"):
        return Denied("WrongName", "the request's name does not begin with lionrock- and the uid of the pod that asks")
    pod = facts.pod(ObjectKey(namespace, name))
    if pod is None or pod.uid != uid:
        return NotYet(Denied("PodUnknown", "the pod is not there, or is none of a model's"))
    if pod.model is None or pod.revision is None or pod.role not in SERVICES:
        return Denied("NotAModelsPod", "the pod does not carry the labels of a model's pod")
    if pod.service_account != account:
        return Denied("WrongServiceAccount", "the request was made by another service account than the pod's")
    if pod.has_ended or pod.deleted_at is not None:
        return Denied("PodEnding", "the pod has ended or is being deleted")
    if not facts.runs(pod.model, pod.revision):
        return NotYet(Denied("NotAModelsPod", "no model runs that revision"))
    if pod.node is None or pod.pod_ip is None:
        return NotYet(Denied("PodHasNoAddress", "the pod has no address yet"))
    return pod


def service_names(pod: Pod, model: ObjectKey, revision: Revision) -> frozenset[str]:
    """DNS names of the Service before a pod and, for the head, of the one that KubeRay makes, by which workers join."""
    tokenizes = pod.role == TOKENIZATION_ROLE
    names = [tokenization_name(model.name, revision) if tokenizes else child_name(model.name, revision)]
    cluster = pod.labels.get(RAY_CLUSTER_LABEL, "")
    if pod.role == "head" and cluster.startswith(f"{names[0]}-"):
        names.append(f"{cluster}-head-svc")
    return frozenset(
        each for name in names for each in (name, *(f"{name}.{model.namespace}{domain}" for domain in ("", *CLUSTER_DOMAINS)))
    )


def _wrong_names(requested: RequestedCertificate, pod: Pod, trust_domain: str) -> Denied | None:
    assert pod.model is not None, "checked by _requester"
    assert pod.revision is not None, "checked by _requester"
    assert pod.pod_ip is not None, "checked by _requester"
    assert pod.role is not None, "checked by _requester"
    if requested.addresses != (str(ipaddress.ip_address(pod.pod_ip)),):
        return Denied("WrongAddress", "the one address must be the pod's")
    service = SERVICES[pod.role]
    if requested.uris != (f"spiffe://{trust_domain}/service/{service}",):
        return Denied("WrongIdentity", f"the one URI must be the SPIFFE id of the {service} service in this trust domain")
    mesh_name = f"{service}.lionrock.internal"
    others = frozenset(requested.dns_names) - {mesh_name}
    if mesh_name not in requested.dns_names or not others <= service_names(pod, pod.model, pod.revision):
        return Denied("WrongDnsName", f"the DNS names must be {mesh_name} and names of the revision's own Services")
    return None
