"""Certificates as Secrets: made once, renewed in time, never over what somebody else made."""

from __future__ import annotations

import base64
import copy
import datetime as dt
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from cryptography import x509

from lionrock.chassis.issuing import ApiRefused, IssuePlan, Issuer, NotOurs

NAMESPACE = "bank"
SECRETS = f"/api/v1/namespaces/{NAMESPACE}/secrets"
CONFIG_MAPS = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
DAY_S = 86400.0


class SimulatedApi:
    """Keeps objects as an API server does: names are unique, a stale resourceVersion is refused."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self._versions = itertools.count(1)
        self.before_write: Callable[[str], None] = lambda path: None
        self.put(f"{CONFIG_MAPS}/plan", {"metadata": {"name": "plan", "uid": "uid-of-the-plan"}})

    def put(self, path: str, content: Mapping[str, Any]) -> dict[str, Any]:
        stored = copy.deepcopy(dict(content))
        stored["metadata"]["resourceVersion"] = str(next(self._versions))
        self.objects[path] = stored
        return copy.deepcopy(stored)

    def get(self, path: str) -> dict[str, Any] | None:
        return copy.deepcopy(self.objects.get(path))

    def create(self, path: str, content: Mapping[str, Any]) -> dict[str, Any]:
        full = f"{path}/{content['metadata']['name']}"
        self.before_write(full)
        if full in self.objects:
            raise ApiRefused("exists", 409)
        return self.put(full, content)

    def replace(self, path: str, content: Mapping[str, Any]) -> dict[str, Any]:
        self.before_write(path)
        if self.objects[path]["metadata"]["resourceVersion"] != content["metadata"]["resourceVersion"]:
            raise ApiRefused("changed", 409)
        return self.put(path, content)

    def files(self, secret: str) -> dict[str, bytes]:
        return {name: base64.b64decode(text) for name, text in self.objects[f"{SECRETS}/{secret}"]["data"].items()}


def plan(*services: str, trust_domain: str = "bank.example", lifetime_s: float = DAY_S) -> IssuePlan:
    certificates = [
        {
            "secret": f"mesh-{service}-tls",
            "spiffe_id": f"spiffe://{trust_domain}/service/{service}",
            "dns_names": [f"{service}.lionrock.internal"],
            "lifetime_s": lifetime_s,
        }
        for service in services or ("gateway", "audit")
    ]
    return IssuePlan.model_validate(
        {
            "trust_domain": trust_domain,
            "authority_secret": "mesh-ca",
            "authority_lifetime_s": 365 * DAY_S,
            "owner": {"config_map": "plan"},
            "labels": {"app.kubernetes.io/part-of": "lionrock"},
            "certificates": certificates,
        }
    )


@pytest.fixture
def api() -> SimulatedApi:
    return SimulatedApi()


def issue(api: SimulatedApi, wanted: IssuePlan | None = None, now: dt.datetime | None = None) -> dict[str, str]:
    return dict(Issuer(api, NAMESPACE, wanted or plan()).issue_all(now))


def test_every_identity_gets_a_secret_that_the_chassis_can_use(api: SimulatedApi) -> None:
    assert issue(api) == {"mesh-gateway-tls": "missing", "mesh-audit-tls": "missing"}
    files = api.files("mesh-audit-tls")
    leaf, authority = (x509.load_pem_x509_certificate(files[name]) for name in ("tls.crt", "ca.crt"))
    leaf.verify_directly_issued_by(authority)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://bank.example/service/audit"]
    assert names.get_values_for_type(x509.DNSName) == ["audit.lionrock.internal"]
    assert not names.get_values_for_type(x509.IPAddress)
    metadata = api.objects[f"{SECRETS}/mesh-audit-tls"]["metadata"]
    assert metadata["ownerReferences"] == [{"apiVersion": "v1", "kind": "ConfigMap", "name": "plan", "uid": "uid-of-the-plan"}]
    assert metadata["labels"]["app.kubernetes.io/part-of"] == "lionrock"


def test_the_authoritys_key_is_in_its_own_secret_alone(api: SimulatedApi) -> None:
    issue(api)
    key = api.files("mesh-ca")["ca.key"]
    assert all(key not in api.files(path.rpartition("/")[2]).values() for path in api.objects if "-tls" in path)


def test_a_second_run_changes_nothing(api: SimulatedApi) -> None:
    issue(api)
    before = copy.deepcopy(api.objects)
    assert issue(api) == {}
    assert api.objects == before


def test_a_certificate_is_renewed_when_two_thirds_of_its_life_are_over(api: SimulatedApi) -> None:
    issue(api)
    authority = api.files("mesh-ca")
    now = dt.datetime.now(dt.UTC)
    assert issue(api, now=now + dt.timedelta(hours=15)) == {}
    old = api.files("mesh-gateway-tls")["tls.crt"]
    assert set(issue(api, now=now + dt.timedelta(hours=17))) == {"mesh-gateway-tls", "mesh-audit-tls"}
    assert api.files("mesh-gateway-tls")["tls.crt"] != old
    assert api.files("mesh-ca") == authority


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda data: data.pop("tls.key"), "of another authority"),
        (lambda data: data.update({"tls.crt": base64.b64encode(b"no").decode()}), "unreadable"),
        (lambda data: data.update({"ca.crt": ""}), "of another authority"),
        (dict.clear, "of another authority"),
    ],
)
def test_a_spoilt_secret_is_made_anew(api: SimulatedApi, spoil: Callable[[dict[str, str]], object], why: str) -> None:
    issue(api)
    spoil(api.objects[f"{SECRETS}/mesh-audit-tls"]["data"])
    assert issue(api) == {"mesh-audit-tls": why}
    assert issue(api) == {}


def test_a_secret_that_names_somebody_else_is_made_anew(api: SimulatedApi) -> None:
    issue(api, plan("gateway", "audit"))
    api.objects[f"{SECRETS}/mesh-audit-tls"]["data"] = dict(api.objects[f"{SECRETS}/mesh-gateway-tls"]["data"])
    assert issue(api) == {"mesh-audit-tls": "for another identity"}


def test_a_new_authority_replaces_every_certificate(api: SimulatedApi) -> None:
    issue(api)
    del api.objects[f"{SECRETS}/mesh-ca"]
    assert issue(api) == {"mesh-gateway-tls": "of another authority", "mesh-audit-tls": "of another authority"}


@pytest.mark.parametrize("secret", ["mesh-ca", "mesh-audit-tls"])
def test_somebody_elses_secret_is_refused_and_left_alone(api: SimulatedApi, secret: str) -> None:
    foreign = {"metadata": {"name": secret, "labels": {"app.kubernetes.io/managed-by": "somebody"}}, "data": {"tls.key": ""}}
    kept = api.put(f"{SECRETS}/{secret}", foreign)
    with pytest.raises(NotOurs, match=secret):
        issue(api)
    assert api.get(f"{SECRETS}/{secret}") == kept


def test_an_authority_of_another_trust_domain_is_not_used(api: SimulatedApi) -> None:
    issue(api)
    with pytest.raises(ValueError, match=r"mesh-ca: .*another trust domain"):
        issue(api, plan(trust_domain="other.example"))


def test_two_runs_at_once_agree_on_one_authority(api: SimulatedApi) -> None:
    def another_run_first(path: str) -> None:
        api.before_write = lambda path: None
        issue(api)

    api.before_write = another_run_first
    issue(api)
    authority = api.files("mesh-ca")["ca.crt"]
    assert {api.files(f"mesh-{service}-tls")["ca.crt"] for service in ("gateway", "audit")} == {authority}


def test_a_write_that_meets_a_newer_one_looks_again(api: SimulatedApi) -> None:
    issue(api)
    later = dt.datetime.now(dt.UTC) + dt.timedelta(hours=17)

    def changed_meanwhile(path: str) -> None:
        api.before_write = lambda path: None
        api.put(path, api.objects[path])

    api.before_write = changed_meanwhile
    assert "mesh-gateway-tls" in issue(api, now=later)


def test_refusals_of_the_api_server_are_not_hidden(api: SimulatedApi) -> None:
    def refuse(path: str) -> None:
        raise ApiRefused("POST: 403 secrets is forbidden", 403)

    api.before_write = refuse
    with pytest.raises(ApiRefused, match="forbidden"):
        issue(api)
