"""Who gets a certificate, and everybody who does not; requests are those that a pod's own enrolment makes."""

from __future__ import annotations

import base64
import datetime as dt
import ipaddress
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from lionrock.chassis.devca import DevelopmentCa
from lionrock.operator.certificate_signer import UnusableRequest, parse_request, sign
from lionrock.operator.resources import ObjectKey, Pod, Revision, parse_pod
from lionrock.operator.signing_requests import Denied, Facts, Granted, NotYet, Verdict, judge

UID = "0b9f6c1e-6d6f-4c9e-9b62-0f7a9c9d1a11"
DOMAIN = "lionrock.local"
IDENTITY = f"spiffe://{DOMAIN}/service/inference"
ADDRESS = "10.1.2.3"
KEY = ec.generate_private_key(ec.SECP256R1())
NAMES: tuple[x509.GeneralName, ...] = (
    x509.UniformResourceIdentifier(IDENTITY),
    x509.DNSName("inference.lionrock.internal"),
    x509.DNSName("chat-0a1b2c3d.models.svc"),
    x509.IPAddress(ipaddress.ip_address(ADDRESS)),
)


def pod(**changes: Any) -> Pod:
    labels = {
        "app.kubernetes.io/part-of": "lionrock",
        "lionrock.io/model": "chat",
        "lionrock.io/revision": "0a1b2c3d",
        "lionrock.io/role": "worker",
    }
    return replace(
        parse_pod(
            {
                "metadata": {"name": "chat-worker", "namespace": "models", "uid": UID, "resourceVersion": "1", "labels": labels},
                "spec": {"nodeName": "n1", "serviceAccountName": "lionrock-engine", "containers": []},
                "status": {"phase": "Pending", "podIP": ADDRESS},
            }
        ),
        **changes,
    )


def pem(
    names: tuple[x509.GeneralName, ...] = NAMES,
    key: Any = KEY,
    extensions: tuple[x509.ExtensionType, ...] = (),
) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def request(content: bytes | None = None, name: str = f"lionrock-{UID}-x7k2p", **changes: Any) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "request": base64.b64encode(content if content is not None else pem()).decode(),
        "signerName": "lionrock.io/mesh",
        "usages": ["digital signature", "server auth", "client auth"],
        "expirationSeconds": 86400,
        "username": "system:serviceaccount:models:lionrock-engine",
        "extra": {
            "authentication.kubernetes.io/pod-name": ["chat-worker"],
            "authentication.kubernetes.io/pod-uid": [UID],
            "authentication.kubernetes.io/node-name": ["n1"],
        },
    }
    return {"metadata": {"name": name}, "spec": spec | changes}


def judged(asked: dict[str, Any], known: Pod | None = None, *, runs: bool = True, there: bool = True) -> Verdict:
    known = known or pod()

    def find(key: ObjectKey) -> Pod | None:
        return known if there and key == known.key else None

    def runs_there(model: ObjectKey, revision: Revision) -> bool:
        return runs and (model, revision) == (ObjectKey("models", "chat"), "0a1b2c3d")

    return judge(asked, Facts(DOMAIN, find, runs_there))


def test_a_pod_of_a_model_gets_the_names_that_are_its_own() -> None:
    verdict = judged(request())
    assert isinstance(verdict, Granted)
    authority = DevelopmentCa.create(DOMAIN)
    chain = x509.load_pem_x509_certificates(sign(authority, verdict.requested, dt.timedelta(seconds=verdict.lifetime_s)))
    leaf, root = chain
    leaf.verify_directly_issued_by(root)
    assert root.public_bytes(serialization.Encoding.PEM) == authority.certificate_pem
    assert leaf.public_key() == KEY.public_key()
    assert set(leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value) == set(NAMES)
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


HEAD_SERVICE = "chat-0a1b2c3d-x7k2p-head-svc.models.svc.cluster.local"


def in_ray_cluster(name: str, role: str) -> Pod:
    return pod(labels=pod().labels | {"lionrock.io/role": role, "ray.io/cluster": name})


def test_the_head_gets_the_name_by_which_workers_join_it() -> None:
    asked = request(pem((*NAMES, x509.DNSName(HEAD_SERVICE))))
    assert isinstance(judged(asked, in_ray_cluster("chat-0a1b2c3d-x7k2p", "head")), Granted)


TOKENIZATION = pod(labels=pod().labels | {"lionrock.io/role": "tokenization"})
TOKENIZATION_NAMES: tuple[x509.GeneralName, ...] = (
    x509.UniformResourceIdentifier(f"spiffe://{DOMAIN}/service/tokenization"),
    x509.DNSName("tokenization.lionrock.internal"),
    x509.DNSName("chat-0a1b2c3d-tok.models.svc"),
    x509.IPAddress(ipaddress.ip_address(ADDRESS)),
)


def test_tokenization_gets_its_own_identity() -> None:
    assert isinstance(judged(request(pem(TOKENIZATION_NAMES)), TOKENIZATION), Granted)


REFUSALS: dict[str, tuple[str, Callable[[], Verdict]]] = {
    "a user": ("NotAPod", lambda: judged(request(username="alice"))),
    "a token of no pod": ("NotAPod", lambda: judged(request(extra={}))),
    "two pods' names": (
        "NotAPod",
        lambda: judged(
            request(
                extra={
                    "authentication.kubernetes.io/pod-name": ["a", "b"],
                    "authentication.kubernetes.io/pod-uid": [UID],
                }
            )
        ),
    ),
    "another service account": ("WrongServiceAccount", lambda: judged(request(username="system:serviceaccount:models:default"))),
    "a name of another pod": ("WrongName", lambda: judged(request(name="lionrock-another-x7k2p"))),
    "a pod without a model": ("NotAModelsPod", lambda: judged(request(), pod(labels={}))),
    "a pod in another role": ("NotAModelsPod", lambda: judged(request(), pod(labels=pod().labels | {"lionrock.io/role": "facts"}))),
    "a pod that has ended": ("PodEnding", lambda: judged(request(), pod(phase="Failed"))),
    "a pod that is deleted": ("PodEnding", lambda: judged(request(), pod(deleted_at=dt.datetime.now(dt.UTC)))),
    "another address": ("WrongAddress", lambda: judged(request(), pod(pod_ip="10.1.2.4"))),
    "one address more": (
        "WrongAddress",
        lambda: judged(request(pem((*NAMES, x509.IPAddress(ipaddress.ip_address("127.0.0.1")))))),
    ),
    "another identity": (
        "WrongIdentity",
        lambda: judged(request(pem((x509.UniformResourceIdentifier(f"spiffe://{DOMAIN}/service/gateway"), *NAMES[1:])))),
    ),
    "another trust domain": (
        "WrongIdentity",
        lambda: judged(request(pem((x509.UniformResourceIdentifier("spiffe://evil/service/inference"), *NAMES[1:])))),
    ),
    "two identities": (
        "WrongIdentity",
        lambda: judged(request(pem((*NAMES, x509.UniformResourceIdentifier(f"spiffe://{DOMAIN}/service/audit"))))),
    ),
    "another service's DNS name": (
        "WrongDnsName",
        lambda: judged(request(pem((*NAMES, x509.DNSName("audit.lionrock.internal"))))),
    ),
    "another model's Service": (
        "WrongDnsName",
        lambda: judged(request(pem((*NAMES, x509.DNSName("other-0a1b2c3d.models.svc"))))),
    ),
    "the head's Service for a worker": (
        "WrongDnsName",
        lambda: judged(request(pem((*NAMES, x509.DNSName(HEAD_SERVICE)))), in_ray_cluster("chat-0a1b2c3d-x7k2p", "worker")),
    ),
    "the head's Service of another model": (
        "WrongDnsName",
        lambda: judged(
            request(pem((*NAMES, x509.DNSName("other-0a1b2c3d-x-head-svc.models.svc")))), in_ray_cluster("other-0a1b2c3d-x", "head")
        ),
    ),
    "the engine's identity for tokenization": ("WrongIdentity", lambda: judged(request(), TOKENIZATION)),
    "tokenization's identity for a worker": ("WrongIdentity", lambda: judged(request(pem(TOKENIZATION_NAMES)))),
    "tokenization's identity for a head": (
        "WrongIdentity",
        lambda: judged(request(pem(TOKENIZATION_NAMES)), in_ray_cluster("chat-0a1b2c3d-x7k2p", "head")),
    ),
    "the engine's name for tokenization": (
        "WrongDnsName",
        lambda: judged(request(pem((*TOKENIZATION_NAMES, x509.DNSName("inference.lionrock.internal")))), TOKENIZATION),
    ),
    "the engine's Service for tokenization": (
        "WrongDnsName",
        lambda: judged(request(pem((*TOKENIZATION_NAMES, x509.DNSName("chat-0a1b2c3d.models.svc")))), TOKENIZATION),
    ),
    "another model's tokenization": (
        "WrongDnsName",
        lambda: judged(request(pem((*TOKENIZATION_NAMES, x509.DNSName("other-0a1b2c3d-tok.models.svc")))), TOKENIZATION),
    ),
    "tokenization's Service for a worker": (
        "WrongDnsName",
        lambda: judged(request(pem((*NAMES, x509.DNSName("chat-0a1b2c3d-tok.models.svc"))))),
    ),
    "no DNS name": ("WrongDnsName", lambda: judged(request(pem((NAMES[0], NAMES[3]))))),
    "an e-mail address": ("UnusableRequest", lambda: judged(request(pem((*NAMES, x509.RFC822Name("a@example.com")))))),
    "no names": ("UnusableRequest", lambda: judged(request(pem(())))),
    "an RSA key": ("UnusableRequest", lambda: judged(request(pem(key=rsa.generate_private_key(65537, 2048))))),
    "a weak curve": ("UnusableRequest", lambda: judged(request(pem(key=ec.generate_private_key(ec.SECP192R1()))))),
    "an authority": (
        "UnusableRequest",
        lambda: judged(request(pem(extensions=(x509.BasicConstraints(ca=True, path_length=None),)))),
    ),
    "an unknown extension": (
        "UnusableRequest",
        lambda: judged(request(pem(extensions=(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"),)))),
    ),
    "a broken signature": ("UnusableRequest", lambda: judged(request(_tampered()))),
    "no base64": ("UnusableRequest", lambda: judged(request() | {"spec": request()["spec"] | {"request": "%%%"}})),
    "other usages": ("WrongUsages", lambda: judged(request(usages=["digital signature", "cert sign"]))),
    "no lifetime": ("WrongLifetime", lambda: judged(request(expirationSeconds=None))),
    "a year": ("WrongLifetime", lambda: judged(request(expirationSeconds=365 * 86400))),
}


def _tampered() -> bytes:
    der = bytearray(x509.load_pem_x509_csr(pem()).public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    body = base64.encodebytes(bytes(der)).decode()
    return f"-----BEGIN CERTIFICATE REQUEST-----\n{body}-----END CERTIFICATE REQUEST-----\n".encode()


@pytest.mark.parametrize("case", REFUSALS)
def test_whatever_is_not_exactly_the_pods_own_is_refused_for_its_reason(case: str) -> None:
    reason, ask = REFUSALS[case]
    verdict = ask()
    assert isinstance(verdict, Denied)
    assert verdict.reason == reason


@pytest.mark.parametrize(
    ("verdict", "reason"),
    [
        (judged(request(), there=False), "PodUnknown"),
        (judged(request(), pod(uid="another")), "PodUnknown"),
        (judged(request(), pod(pod_ip=None)), "PodHasNoAddress"),
        (judged(request(), runs=False), "NotAModelsPod"),
    ],
)
def test_what_may_appear_within_moments_is_waited_for(verdict: Verdict, reason: str) -> None:
    assert isinstance(verdict, NotYet)
    assert verdict.otherwise.reason == reason


@given(st.binary(max_size=400))
def test_hostile_requests_are_unusable_and_nothing_else(content: bytes) -> None:
    with pytest.raises(UnusableRequest):
        parse_request(content)


@given(st.integers(0, 10_000), st.integers(0, 7))
def test_no_flipped_bit_makes_a_request_that_is_granted(position: int, bit: int) -> None:
    der = bytearray(x509.load_pem_x509_csr(pem()).public_bytes(serialization.Encoding.DER))
    der[position % len(der)] ^= 1 << bit
    body = base64.encodebytes(bytes(der)).decode()
    verdict = judged(request(f"-----BEGIN CERTIFICATE REQUEST-----\n{body}-----END CERTIFICATE REQUEST-----\n".encode()))
    assert isinstance(verdict, Denied)
