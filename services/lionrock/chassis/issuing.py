"""Certificates of a mesh in Kubernetes, as Secrets: `python -m lionrock.chassis.issuing --plan FILE …`.

    authority     Secret with ca.key and ca.crt, made once; whoever reads it can be anyone in the trust domain
    certificates  a Secret of type kubernetes.io/tls each, with tls.crt, tls.key and ca.crt, as cert-manager writes them

Run it as often as you like: what is there and good stays; what is missing, ends soon, names somebody else or comes from another
authority is made anew. A Secret that this program did not make is never touched. Every Secret is owned by the object that the plan
names, so that it goes when that goes. The plan is a file because it says who is who; how it comes there is the chart's business.
"""

from __future__ import annotations

import argparse
import base64
import datetime as dt
import http.client
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

from cryptography import x509
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from lionrock.chassis.cluster_api import ACCOUNT_DIRECTORY, ApiServer, ApiUnusable
from lionrock.chassis.devca import DevelopmentCa, IssuedCertificate, renew_due

_FROZEN = ConfigDict(frozen=True, extra="forbid")
_Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")]
_CONFLICT = http.client.CONFLICT
_ATTEMPTS = 5
MANAGED_BY = "lionrock-issuing"
_LABEL = "app.kubernetes.io/managed-by"


class ApiRefused(Exception):
    """The API server refused, or nobody answered. `status`: the HTTP status, None when there was no answer."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class NotOurs(Exception):
    """A Secret of that name exists and was made by somebody else."""


class PlannedCertificate(BaseModel):
    """Whom a Secret is for."""

    model_config = _FROZEN

    secret: _Name
    spiffe_id: str = Field(min_length=1, max_length=2048)
    dns_names: tuple[_Name, ...] = Field(default=(), max_length=16)
    lifetime_s: float = Field(ge=60, le=90 * 86400)


class Owner(BaseModel):
    """A ConfigMap of the same namespace, which owns the Secrets."""

    model_config = _FROZEN

    config_map: _Name


class IssuePlan(BaseModel):
    """Everything that is issued in one namespace."""

    model_config = _FROZEN

    trust_domain: str = Field(pattern=r"^[a-z0-9._-]{1,255}$")
    authority_secret: _Name
    authority_lifetime_s: float = Field(ge=86400, le=20 * 366 * 86400)
    owner: Owner
    labels: dict[str, str] = Field(default_factory=dict, max_length=16)
    certificates: tuple[PlannedCertificate, ...] = Field(min_length=1, max_length=256)


class Objects(Protocol):
    """What issuing needs of the API: the API server's, or a simulation of them."""

    def get(self, path: str) -> dict[str, Any] | None:
        """Read an object."""

    def create(self, path: str, content: Mapping[str, Any]) -> dict[str, Any]:
        """Create an object."""

    def replace(self, path: str, content: Mapping[str, Any]) -> dict[str, Any]:
        """Replace an object as it was read."""


@dataclass(frozen=True, slots=True)
class ServedObjects:
    """Objects of the API server that the pod's service account may use."""

    server: ApiServer

    def get(self, path: str) -> dict[str, Any] | None:
        """Read an object; None where there is none. Raises ApiRefused."""
        try:
            return self._call("GET", path)
        except ApiRefused as error:
            if error.status == http.client.NOT_FOUND:
                return None
            raise

    def create(self, path: str, content: Mapping[str, Any]) -> dict[str, Any]:
        """Create an object in a collection. Raises ApiRefused, with status 409 where it exists."""
        return self._call("POST", path, content)

    def replace(self, path: str, content: Mapping[str, Any]) -> dict[str, Any]:
        """Replace an object as it was read. Raises ApiRefused, with status 409 where another has changed it since."""
        return self._call("PUT", path, content)

    def _call(self, method: str, path: str, content: Mapping[str, Any] | None = None) -> dict[str, Any]:
        try:
            status, answer = self.server.call(method, path, None if content is None else dict(content))
        except (ApiUnusable, OSError, http.client.HTTPException) as error:
            raise ApiRefused(f"{method} {path}: {error.__class__.__name__}: {error}") from error
        if not 200 <= status < 300:
            raise ApiRefused(f"{method} {path}: {status} {answer.get('message', '')}".rstrip(), status)
        return answer


@dataclass(frozen=True, slots=True)
class Issuer:
    """Issues a plan in a namespace."""

    objects: Objects
    namespace: str
    plan: IssuePlan

    def issue_all(self, now: dt.datetime | None = None) -> list[tuple[str, str]]:
        """Bring every Secret up to date. Returns (Secret, why) of those that were written.

        Raises ApiRefused, NotOurs, and ValueError for an authority that cannot be used.
        """
        owner = self._owner()
        authority = self._authority(owner)
        written = []
        for wanted in self.plan.certificates:
            for attempt in range(1, _ATTEMPTS + 1):
                present = self.objects.get(self._path(wanted.secret))
                why = due(present, wanted, authority.certificate_pem, now)
                if why is None:
                    break
                issued = authority.issue(
                    wanted.spiffe_id, dns_names=wanted.dns_names, ip_addresses=(), lifetime=dt.timedelta(seconds=wanted.lifetime_s)
                )
                try:
                    self._write(wanted.secret, "kubernetes.io/tls", _files(issued), owner, present)
                except ApiRefused as error:
                    if error.status != _CONFLICT or attempt == _ATTEMPTS:
                        raise
                    continue
                written.append((wanted.secret, why))
                break
        return written

    def _owner(self) -> dict[str, Any]:
        name = self.plan.owner.config_map
        found = self.objects.get(f"/api/v1/namespaces/{self.namespace}/configmaps/{name}")
        if found is None:
            raise ApiRefused(f"the ConfigMap {name} is not in the namespace {self.namespace}")
        return {"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": found["metadata"]["uid"]}

    def _authority(self, owner: Mapping[str, Any]) -> DevelopmentCa:
        """Load the authority or make it. Of two that make it at once, both use the one that was written first."""
        name = self.plan.authority_secret
        present = self.objects.get(self._path(name))
        if present is None:
            lifetime = dt.timedelta(seconds=self.plan.authority_lifetime_s)
            made = DevelopmentCa.create(self.plan.trust_domain, lifetime=lifetime)
            try:
                self._write(name, "Opaque", {"ca.key": made.private_key_pem, "ca.crt": made.certificate_pem}, owner, None)
            except ApiRefused as error:
                if error.status != _CONFLICT:
                    raise
                present = self.objects.get(self._path(name))
            else:
                return made
        if present is None:
            raise ApiRefused(f"the Secret {name} was deleted meanwhile")
        _must_be_ours(present)
        data = _data(present)
        try:
            return DevelopmentCa.load(data["ca.key"], data["ca.crt"], self.plan.trust_domain)
        except KeyError as missing:
            raise ValueError(f"the Secret {name} has no {missing.args[0]}") from None
        except ValueError as error:
            raise ValueError(f"the Secret {name}: {error}") from error

    def _path(self, secret: str = "") -> str:
        return f"/api/v1/namespaces/{self.namespace}/secrets" + (f"/{secret}" if secret else "")

    def _write(
        self, name: str, kind: str, files: Mapping[str, bytes], owner: Mapping[str, Any], present: Mapping[str, Any] | None
    ) -> None:
        metadata = {
            "name": name,
            "namespace": self.namespace,
            "labels": {**self.plan.labels, _LABEL: MANAGED_BY},
            "ownerReferences": [dict(owner)],
        }
        data = {file: base64.b64encode(content).decode() for file, content in files.items()}
        secret = {"apiVersion": "v1", "kind": "Secret", "type": kind, "metadata": metadata, "data": data}
        if present is None:
            self.objects.create(self._path(), secret)
            return
        _must_be_ours(present)
        metadata["resourceVersion"] = present["metadata"]["resourceVersion"]
        self.objects.replace(self._path(name), secret)


def due(
    present: Mapping[str, Any] | None, wanted: PlannedCertificate, authority: bytes, now: dt.datetime | None = None
) -> str | None:
    """Why a Secret must be written, None when it is good. Raises NotOurs."""
    if present is None:
        return "missing"
    _must_be_ours(present)
    data = _data(present)
    if not data.get("tls.key") or data.get("ca.crt") != authority:
        return "of another authority"
    try:
        certificate = x509.load_pem_x509_certificate(data.get("tls.crt", b""))
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        if renew_due(data["tls.crt"], now):
            return "two thirds of its life are over"
    except (ValueError, x509.ExtensionNotFound):
        return "unreadable"
    if names.get_values_for_type(x509.UniformResourceIdentifier) != [wanted.spiffe_id]:
        return "for another identity"
    if tuple(names.get_values_for_type(x509.DNSName)) != wanted.dns_names:
        return "for other names"
    return None


def _files(issued: IssuedCertificate) -> dict[str, bytes]:
    return {"tls.crt": issued.certificate, "tls.key": issued.private_key, "ca.crt": issued.authority}


def _data(secret: Mapping[str, Any]) -> dict[str, bytes]:
    return {name: base64.b64decode(content) for name, content in (secret.get("data") or {}).items()}


def _must_be_ours(secret: Mapping[str, Any]) -> None:
    metadata = secret["metadata"]
    if (metadata.get("labels") or {}).get(_LABEL) != MANAGED_BY:
        raise NotOurs(f"the Secret {metadata['name']} exists and was not made by this program; remove it, or choose another name")


def main(argv: Sequence[str]) -> int:
    """Issue what the plan says; one line for each Secret that was written."""
    parser = argparse.ArgumentParser(prog="python -m lionrock.chassis.issuing", description="Issue the certificates of a mesh.")
    parser.add_argument("--plan", type=Path, required=True, metavar="FILE", help="YAML or JSON; the chart writes it")
    parser.add_argument("--namespace", required=True, help="namespace of the Secrets")
    parser.add_argument("--api-server", required=True, metavar="URL", help="https://host:port of the API server")
    parser.add_argument(
        "--service-account",
        type=Path,
        default=ACCOUNT_DIRECTORY,
        metavar="DIRECTORY",
        help="token and ca.crt (default: %(default)s)",
    )
    arguments = parser.parse_args(argv)
    import yaml

    try:
        plan = IssuePlan.model_validate(yaml.safe_load(arguments.plan.read_text(encoding="utf-8")))
    except ValidationError as error:
        for found in error.errors(include_input=False, include_url=False):
            print(f"{arguments.plan}: {'.'.join(map(str, found['loc']))}: {found['msg']}", file=sys.stderr)
        return 2
    except (OSError, yaml.YAMLError) as error:
        print(f"{arguments.plan}: {error.__class__.__name__}", file=sys.stderr)
        return 2
    try:
        objects = ServedObjects(ApiServer(arguments.api_server, arguments.service_account))
        written = Issuer(objects, arguments.namespace, plan).issue_all()
    except (ApiRefused, ApiUnusable, NotOurs, ValueError) as error:
        print(f"issuing: {error}", file=sys.stderr)
        return 1
    for secret, why in written:
        print(f"{secret}: {why}; issued")
    print(f"{len(plan.certificates)} certificates are good, {len(written)} of them new")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
