"""`lionrock tenant check` and `list`: Tenant files, and where a mesh on this machine has its own.

Knows the files that `lionrock up` writes and the directory that its services follow. Judges by the gateway's own directory of
tenants, so that what is good here is good there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table

from lionrock.cli.errors import CommandError
from lionrock.cli.state import StateDir
from lionrock.gateway.granting import refuse_undivided_engine, tenant_of
from lionrock.gateway.tenants import TenantDirectory
from lionrock.tenancy.documents import MAX_BYTES, TenantsInvalid, parse_tenants
from lionrock.tenancy.following import Refusal, TenantFiles
from lionrock.tenancy.spec import NamedTenant, TenantResource, TenantSpec

_NAMED = TypeAdapter(tuple[NamedTenant, ...])


@dataclass(frozen=True, slots=True)
class Complaint:
    """What is wrong with a file. `line` is None where it is not about one line."""

    file: str
    line: int | None
    tenant: str | None
    reason: str

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{where}: {f'tenant {self.tenant}: ' if self.tenant else ''}{self.reason}"


@dataclass(frozen=True, slots=True)
class Followed:
    """What a mesh on this machine knows: tenants of its settings, tenants by file, and files that it does not follow."""

    trust_domain: str
    directory: Path
    named: tuple[NamedTenant, ...]
    files: Mapping[str, tuple[TenantResource, ...]]
    refused: tuple[Refusal, ...]

    @property
    def tenants(self) -> tuple[TenantResource, ...]:
        """Tenants of all files."""
        return tuple(tenant for name in sorted(self.files) for tenant in self.files[name])

    def file_of(self, tenant: str) -> str | None:
        """Return the file that states a tenant; None: no file does."""
        return next((file for file, tenants in self.files.items() if any(each.name == tenant for each in tenants)), None)


def read_files(files: Sequence[Path]) -> tuple[tuple[tuple[Path, TenantResource], ...], tuple[Complaint, ...]]:
    """Read Tenant files. Returns their tenants, and everything that is wrong with them."""
    tenants: list[tuple[Path, TenantResource]] = []
    complaints: list[Complaint] = []
    for file in files:
        try:
            with file.open("rb") as opened:
                found = parse_tenants(opened.read(MAX_BYTES + 1))
        except OSError as error:
            complaints.append(Complaint(str(file), None, None, error.strerror or "cannot be read"))
            continue
        except TenantsInvalid as invalid:
            complaints += [
                Complaint(str(file), each.line, each.tenant, f"{each.field}: {each.reason}" if each.field else each.reason)
                for each in invalid.problems
            ]
            continue
        if not found:
            complaints.append(Complaint(str(file), None, None, "holds no tenant"))
        tenants += [(file, tenant) for tenant in found]
    return tuple(tenants), tuple(complaints)


def misfits(
    stated: Sequence[tuple[Path, TenantResource]], others: Sequence[NamedTenant | TenantResource], domain: str
) -> list[str]:
    """Say which tenants do not fit to each other, to others and to the trust domain."""
    known = [tenant_of(each.name, _spec(each), trust_domain=domain) for each in others]
    reasons: list[str] = []
    for file, tenant in stated:
        try:
            known.append(tenant_of(tenant.name, tenant.spec, trust_domain=domain))
            TenantDirectory(known)
        except ValueError as error:
            known = [each for each in known if each.name != tenant.name]
            reasons.append(f"{file}: tenant {tenant.name}: {error}")
    return reasons


def check(files: Sequence[Path], trust_domain: str | None, *, as_json: bool) -> int:
    """Check files on their own. Returns the exit status."""
    tenants, complaints = read_files(files)
    domains = {tenant.spec.principals[0].spiffe_id.split("/")[2] for _, tenant in tenants if tenant.spec.principals}
    told = [str(complaint) for complaint in complaints]
    if trust_domain is not None or len(domains) == 1:
        told += misfits(tenants, (), trust_domain or domains.pop())
    elif len(domains) > 1:
        told.append(f"principals are of several trust domains: {', '.join(sorted(domains))}")
    if as_json:
        for _, tenant in tenants:
            print(json.dumps({"tenant": tenant.name, **_facts(tenant.spec)}))
        for line in told:
            print(json.dumps({"error": line}))
    else:
        for file, tenant in tenants:
            print(f"{file}: tenant {tenant.name}: {summary(tenant.spec)}")
        for line in told:
            print(f"not good: {line}")
    return 1 if told else 0


def show(state_dir: Path | None, *, as_json: bool) -> int:
    """Print the tenants of the mesh of this machine. Returns the exit status. Raises CommandError."""
    followed = followed_by(StateDir.at(state_dir))
    rows: list[tuple[str, TenantSpec, str]] = [(each.name, each, "settings") for each in followed.named]
    rows += [(each.name, each.spec, file) for file, tenants in sorted(followed.files.items()) for each in tenants]
    if as_json:
        for name, spec, where in rows:
            print(json.dumps({"tenant": name, **_facts(spec), "stated_in": where}))
    else:
        table = Table(box=None, pad_edge=False)
        for column in ("TENANT", "CALLED", "TERRITORY", "PROFILE", "STREAMS", "PRINCIPALS", "ISSUERS", "STATED IN"):
            table.add_column(column, overflow="fold")
        for name, spec, where in rows:
            counts = (str(spec.max_streams), str(len(spec.principals)), str(len(spec.issuers)))
            table.add_row(name, spec.display_name or "-", spec.territory, spec.profile, *counts, where)
        Console(highlight=False, markup=False).print(table)
    for refusal in followed.refused:
        what = str(followed.directory / (refusal.file or ""))
        print(json.dumps({"not_followed": what, "why": refusal.why}) if as_json else f"not followed: {what}: {refusal.why}")
    return 1 if followed.refused else 0


def followed_by(state: StateDir) -> Followed:
    """Read what the services of the mesh on this machine follow. Raises CommandError."""
    path = state.config("gateway")
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        domain, directory = settings["server"]["trust_domain"], settings.get("tenants_dir")
        named = _NAMED.validate_python(settings.get("tenants", ()))
    except FileNotFoundError:
        raise CommandError(f"no mesh has run on {state.root}", fix=f"start one: lionrock up --state-dir {state.root}") from None
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, ValidationError):
        raise CommandError(f"{path} is not what `lionrock up` writes", fix="stop the mesh and start it again") from None
    if directory is None:
        raise CommandError("the gateway's settings name no tenants_dir", fix="stop the mesh and start it again")
    own = [tenant_of(tenant.name, tenant, trust_domain=domain) for tenant in named]
    files = TenantFiles(Path(directory))

    def accept(tenants: Sequence[TenantResource]) -> None:
        stated = [tenant_of(tenant.name, tenant.spec, trust_domain=domain) for tenant in tenants]
        refuse_undivided_engine(stated)
        TenantDirectory([*own, *stated])

    try:
        refused = files.start(accept)
    except OSError as error:
        raise CommandError(f"{directory}: {error.strerror}", fix="stop the mesh and start it again") from error
    return Followed(domain, Path(directory), named, files.by_file, tuple(refused))


def summary(spec: TenantSpec) -> str:
    """Say in a line what a tenant is."""
    facts = _facts(spec)
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts.items() if value is not None)


def _facts(spec: TenantSpec) -> dict[str, str | int | None]:
    return {
        "called": spec.display_name,
        "territory": spec.territory,
        "profile": spec.profile,
        "max_streams": spec.max_streams,
        "principals": len(spec.principals),
        "issuers": len(spec.issuers),
    }


def _spec(tenant: NamedTenant | TenantResource) -> TenantSpec:
    return tenant if isinstance(tenant, NamedTenant) else tenant.spec
