"""Commands of `lionrock audit` that change records or the log book: their options and help. The work is in audit_changing.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lionrock.cli.audit_options import (
    CaseOption,
    CertificatesOption,
    GatewayOption,
    JsonOption,
    RequestOption,
    StateDirOption,
    SubjectOption,
    TimeoutOption,
    YesOption,
    examples,
    where,
)

app = typer.Typer()
hold = typer.Typer(help="Holds keep records from erasure and expiry.", no_args_is_help=True)
app.add_typer(hold, name="hold")
refusals = typer.Typer(help="The log book of refused data requests (PDPO, section 27).", no_args_is_help=True)
app.add_typer(refusals, name="refusals")


@app.command(epilog=examples("lionrock audit erase --subject c-77 --basis 'PDPO s.26'"))
def erase(
    basis: Annotated[str, typer.Option(help="Legal basis, for the leaf.")],
    subject: SubjectOption = "",
    case: CaseOption = "",
    request: RequestOption = "",
    partial: Annotated[bool, typer.Option("--partial", help="Erase what may go, leave what retention or a hold keeps.")] = False,
    yes: YesOption = False,
    receipt: Annotated[Path | None, typer.Option(help="File for the proof. Default: in the state directory.")] = None,
    state_dir: StateDirOption = None,
    gateway: GatewayOption = None,
    certificates: CertificatesOption = None,
    timeout: TimeoutOption = 120.0,
    as_json: JsonOption = False,
) -> None:
    """Destroy the keys and salts of records, for ever. Their leaves stay and still verify; the proof of the erasure is kept."""
    from lionrock.cli import audit_changing as command

    at = where(state_dir, gateway, certificates, timeout)
    done = command.erase(at, subject, case, request, basis, partial=partial, yes=yes, receipt=receipt, as_json=as_json)
    raise typer.Exit(done)


@hold.command("place", epilog=examples("lionrock audit hold place --case CASE-2026-00117 --reason 'HCA 1234/2026'"))
def hold_place(
    reason: Annotated[str, typer.Option(help="Reason, for the leaf.")],
    subject: SubjectOption = "",
    case: CaseOption = "",
    request: RequestOption = "",
    state_dir: StateDirOption = None,
    gateway: GatewayOption = None,
    certificates: CertificatesOption = None,
    timeout: TimeoutOption = 30.0,
    as_json: JsonOption = False,
) -> None:
    """Keep records, and those that come, until the hold is released."""
    from lionrock.cli import audit_changing as command

    at = where(state_dir, gateway, certificates, timeout)
    raise typer.Exit(command.place_hold(at, subject, case, request, reason, as_json=as_json))


@hold.command("release", epilog=examples("lionrock audit hold release 01a208fb-673a-7caa-ad7d-8d2a3885deee"))
def hold_release(
    hold_id: Annotated[str, typer.Argument(metavar="HOLD-ID", help="As `hold place` printed it.")],
    yes: YesOption = False,
    state_dir: StateDirOption = None,
    gateway: GatewayOption = None,
    certificates: CertificatesOption = None,
    timeout: TimeoutOption = 30.0,
    as_json: JsonOption = False,
) -> None:
    """End a hold."""
    from lionrock.cli import audit_changing as command

    raise typer.Exit(command.release_hold(where(state_dir, gateway, certificates, timeout), hold_id, yes=yes, as_json=as_json))


@hold.command("list", epilog=examples("lionrock audit hold list --json"))
def hold_list(
    state_dir: StateDirOption = None,
    gateway: GatewayOption = None,
    certificates: CertificatesOption = None,
    timeout: TimeoutOption = 30.0,
    as_json: JsonOption = False,
) -> None:
    """List the holds in force."""
    from lionrock.cli import audit_changing as command

    raise typer.Exit(command.list_holds(where(state_dir, gateway, certificates, timeout), as_json=as_json))


@app.command(epilog=examples("lionrock audit correct 01a208fb-673a-7caa-ad7d-8d2a3885deee 'My address is another.'"))
def correct(
    request_id: Annotated[str, typer.Argument(metavar="REQUEST-ID", help="The record.")],
    statement: Annotated[
        str | None, typer.Argument(help="What the data subject says is right. Without one: standard input.")
    ] = None,
    state_dir: StateDirOption = None,
    gateway: GatewayOption = None,
    certificates: CertificatesOption = None,
    timeout: TimeoutOption = 30.0,
    as_json: JsonOption = False,
) -> None:
    """Add a statement of correction to a record (PDPO, section 23). What was said stays as it was said."""
    from lionrock.cli import audit_changing as command

    raise typer.Exit(command.correct(where(state_dir, gateway, certificates, timeout), request_id, statement, as_json=as_json))


@refusals.command("add", epilog=examples("lionrock audit refusals add access --subject c-77 --ground 'PDPO s.20(3)(d)' 'Why.'"))
def refusals_add(
    refused: Annotated[str, typer.Argument(metavar="REQUEST", help="access, correction or erasure.")],
    ground: Annotated[str, typer.Option(help="Provision that the refusal rests on.")],
    subject: SubjectOption,
    particulars: Annotated[str | None, typer.Argument(help="Particulars of the reason. Without them: standard input.")] = None,
    state_dir: StateDirOption = None,
    gateway: GatewayOption = None,
    certificates: CertificatesOption = None,
    timeout: TimeoutOption = 30.0,
    as_json: JsonOption = False,
) -> None:
    """Enter a refused data request. Its particulars are kept for four years at least."""
    from lionrock.cli import audit_changing as command

    at = where(state_dir, gateway, certificates, timeout)
    raise typer.Exit(command.add_refusal(at, refused, subject, ground, particulars, as_json=as_json))


@refusals.command("list", epilog=examples("lionrock audit refusals list --json"))
def refusals_list(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Entries at most.")] = 100,
    state_dir: StateDirOption = None,
    gateway: GatewayOption = None,
    certificates: CertificatesOption = None,
    timeout: TimeoutOption = 30.0,
    as_json: JsonOption = False,
) -> None:
    """Read the log book, newest first. Reading it is itself recorded."""
    from lionrock.cli import audit_changing as command

    raise typer.Exit(command.list_refusals(where(state_dir, gateway, certificates, timeout), limit, as_json=as_json))
