"""`lionrock tenant onboard`: tenants into the running mesh of this machine, and a chat as each of them.

First everything is judged, as the gateway will judge it; only then is anything written, a file a tenant, each in one step. The
services follow by themselves. The chat at the end goes the whole way, certificate to receipt, as a principal of the tenant: the
development CA of this mesh issues the certificate, which stays in certs/tenants/<tenant>/ for whoever tries the tenant next.
"""

from __future__ import annotations

import datetime as dt
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lionrock.audit.verify import VerificationFailed, check_opening, verify_receipt
from lionrock.chassis.devca import DevelopmentCa
from lionrock.cli.call_errors import explained
from lionrock.cli.errors import CommandError
from lionrock.cli.state import StateDir, write_atomically
from lionrock.cli.tenant_files import Followed, followed_by, misfits, read_files, summary
from lionrock.client import CallError, Client, LionrockError, Tls
from lionrock.common.v1.context_pb2 import DataClass
from lionrock.tenancy.spec import NamedTenant, PrincipalSpec, TenantResource

_ASKING_ROLES = frozenset({"user", "reviewer", "mlro", "model_risk"})
_TRIAL_NAME = "onboarding"
_CERTIFICATE_LIFETIME = dt.timedelta(hours=12)
# What a tenant is refused with until gateway and audit service have seen its file.
_NOT_YET = frozenset({"UNKNOWN_PRINCIPAL", "AUDIT_UNAVAILABLE"})
_PAUSE_S = 0.25


def run(state_dir: Path | None, files: Sequence[Path], *, dry_run: bool, chat: bool, timeout_s: float) -> int:
    """Onboard the tenants of the files. Returns the exit status. Raises CommandError, having changed nothing."""
    state = StateDir.at(state_dir)
    target = state.read_mesh().endpoints["gateway"].target
    followed = followed_by(state)
    stated = _judged(files, followed)
    there = {tenant.name: tenant for tenant in followed.tenants}
    for file, tenant in stated:
        changes = list(changed(_document(there[tenant.name]), _document(tenant))) if tenant.name in there else None
        if changes == []:
            print(f"tenant {tenant.name}: as it was ({file})")
            continue
        print(f"tenant {tenant.name}: {'new' if changes is None else 'changed'}: {summary(tenant.spec)}")
        for line in changes or ():
            print(f"  {line}")
        if not dry_run:
            place = followed.directory / (followed.file_of(tenant.name) or _file_name(tenant.name))
            write_atomically(place, json.dumps(_document(tenant), indent=2) + "\n")
            print(f"  written to {place}")
    if dry_run:
        print("nothing was changed: --dry-run")
        return 0
    if not chat:
        return 0
    return max([_try(state, target, tenant, timeout_s) for _, tenant in stated], default=0)


def certify(state_dir: Path | None, spiffe_id: str, out: Path) -> int:
    """Issue a certificate of a principal. Returns the exit status. Raises CommandError."""
    state = StateDir.at(state_dir)
    followed = followed_by(state)
    tenants = [*followed.named, *(tenant.spec for tenant in followed.tenants)]
    kind = spiffe_id.rpartition("/")[0] + "/*"
    listed = {principal.spiffe_id for tenant in tenants for principal in tenant.principals}
    if listed.isdisjoint({spiffe_id, kind}) or spiffe_id.endswith("/*"):
        raise CommandError(f"no tenant lists the principal {spiffe_id}", fix="lionrock tenant list, and the files that it names")
    try:
        authority = DevelopmentCa.load_or_create(state.ca, followed.trust_domain)
        authority.issue(spiffe_id, dns_names=(), ip_addresses=(), lifetime=_CERTIFICATE_LIFETIME).write(out)
    except (ValueError, OSError) as error:
        raise CommandError(f"the certificate cannot be issued: {error}", fix=f"look at {state.ca} and {out}") from error
    print(f"{out}: {spiffe_id}, for twelve hours")
    return 0


def changed(before: object, after: object, path: str = "") -> Iterator[str]:
    """Say what differs between two documents, a line a value."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in sorted({*before, *after}):
            yield from changed(before.get(key), after.get(key), f"{path}.{key}" if path else str(key))
    elif isinstance(before, list) and isinstance(after, list):
        for index in range(max(len(before), len(after))):
            yield from changed(
                before[index] if index < len(before) else None, after[index] if index < len(after) else None, f"{path}[{index}]"
            )
    elif before != after:
        if before is None:
            yield f"+ {path}: {json.dumps(after, ensure_ascii=False)}"
        elif after is None:
            yield f"- {path}: {json.dumps(before, ensure_ascii=False)}"
        else:
            yield f"~ {path}: {json.dumps(before, ensure_ascii=False)} → {json.dumps(after, ensure_ascii=False)}"


def _judged(files: Sequence[Path], followed: Followed) -> Sequence[tuple[Path, TenantResource]]:
    """Read and judge all files. Raises CommandError that says everything that is wrong."""
    stated, complaints = read_files(files)
    told = [str(complaint) for complaint in complaints]
    names = {tenant.name for _, tenant in stated}
    others: list[NamedTenant | TenantResource] = [
        *followed.named,
        *(tenant for tenant in followed.tenants if tenant.name not in names),
    ]
    told += misfits(stated, others, followed.trust_domain)
    told += [
        f"{file}: tenant {tenant.name}: spec.tenancy: this machine has one engine for all: Dedicated is for clusters"
        for file, tenant in stated
        if tenant.spec.tenancy.type == "Dedicated"
    ]
    told += [
        f"{file}: tenant {tenant.name}: spec.keys: this machine has tenants' keys in files: a key of transit is for clusters"
        for file, tenant in stated
        if tenant.spec.keys is not None
    ]
    for refusal in followed.refused:
        if refusal.file is not None and refusal.file in {_file_name(name) for name in names}:
            told.append(f"{followed.directory / refusal.file} is not followed: repair or remove it first")
    for _, tenant in stated:
        place = followed.file_of(tenant.name)
        if place is not None and len(followed.files[place]) > 1:
            told.append(f"tenant {tenant.name} shares {followed.directory / place} with others: change it there")
    if told:
        raise CommandError("\n".join(["nothing was changed:", *(f"  {line}" for line in told)]), fix="correct the files")
    return stated


def _document(tenant: TenantResource) -> dict[str, Any]:
    return tenant.model_dump(mode="json", by_alias=True, exclude_unset=True)


def _file_name(tenant: str) -> str:
    return f"{tenant}.json"


def _try(state: StateDir, target: str, tenant: TenantResource, timeout_s: float) -> int:
    """Chat as the tenant and check the receipt. Returns the exit status."""
    principal = next((each for each in tenant.spec.principals if _ASKING_ROLES.intersection(each.roles)), None)
    if principal is None:
        print(f"tenant {tenant.name}: no chat: none of its principals may ask by mTLS")
        return 0
    if _purpose(tenant, principal) is None:
        print(f"tenant {tenant.name}: no chat: every purpose of {principal.spiffe_id} needs somebody's consent")
        return 0
    deadline = time.monotonic() + timeout_s
    tls = _certificate(state, principal)
    with Client(target, tls=tls) as client:
        while True:
            try:
                answer, keys = _ask(client, tenant, principal, deadline)
                break
            except CallError as error:
                if error.reason in _NOT_YET and time.monotonic() + _PAUSE_S < deadline:
                    time.sleep(_PAUSE_S)
                    continue
                print(f"tenant {tenant.name}: the chat failed: {explained(error)}")
                return 1
            except (LionrockError, VerificationFailed) as error:
                print(f"tenant {tenant.name}: the chat failed: {error}")
                return 1
    print(f"tenant {tenant.name}: {principal.spiffe_id} was answered by {answer}; receipt verified under {keys}")
    print(f"  try it: lionrock chat --state-dir {state.root} --certificates {Path(tls.cert).parent} 'Name three rivers.'")
    return 0


def _ask(client: Client, tenant: TenantResource, principal: PrincipalSpec, deadline: float) -> tuple[str, str]:
    """Return the model that answered and the log that vouches for it. Raises LionrockError, VerificationFailed."""
    left_s = deadline - time.monotonic()
    models = [model.identity.model for model in client.list_models(deadline_s=left_s) if model.ready]
    if not models:
        raise LionrockError("no model that the tenant may use is ready")
    classes = principal.data_classes or tenant.spec.data_classes or ()
    options: dict[str, Any] = {"model": models[0], "max_tokens": 8, "temperature": 0.0, "purpose": _purpose(tenant, principal)}
    if classes and "personal" not in classes:
        options["data_class"] = DataClass.Value(f"DATA_CLASS_{classes[0].upper()}")
    with client.chat("Say hello.", deadline_s=left_s, **options) as chat:
        text = "".join(delta.text for delta in chat)
        if chat.receipt is None or chat.finished is None or chat.started is None:
            raise LionrockError("the answer came without a receipt")
        told = client.list_audit_keys(deadline_s=left_s)
        leaf = verify_receipt(chat.receipt.tlog_proof, list(told.verifier_keys))
        check_opening(leaf, "answer", chat.finished.answer_salt, text.encode())
    return models[0], told.origin


def _purpose(tenant: TenantResource, principal: PrincipalSpec) -> str | None:
    """Return a purpose for which nobody's consent is needed; None: there is none."""
    asking = {rule.purpose for rule in tenant.spec.purpose_rules if rule.requires_consent}
    return next((purpose for purpose in principal.purposes if purpose not in asking), None)


def _certificate(state: StateDir, principal: PrincipalSpec) -> Tls:
    """Issue a certificate of the principal. Raises CommandError."""
    directory = state.certs("tenants") / principal.tenant
    trust_domain = principal.spiffe_id.split("/")[2]
    try:
        authority = DevelopmentCa.load_or_create(state.ca, trust_domain)
        whom = principal.spiffe_id.replace("/*", f"/{_TRIAL_NAME}")
        authority.issue(whom, dns_names=(), ip_addresses=(), lifetime=_CERTIFICATE_LIFETIME).write(directory)
    except (ValueError, OSError) as error:
        raise CommandError(f"the development CA cannot be used: {error}", fix=f"look at {state.ca}") from error
    return Tls(directory / "tls.crt", directory / "tls.key", directory / "ca.crt")
