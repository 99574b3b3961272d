"""The commands of `lionrock emergency`: their options and help. What they do is in emergency.py."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import Annotated

import typer

from lionrock.cli.audit_options import (
    CertificatesOption,
    GatewayOption,
    JsonOption,
    StateDirOption,
    TimeoutOption,
    examples,
    where,
)

app = typer.Typer(
    help="Emergency access to records, opened by two people for a time.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

IdArgument = Annotated[str, typer.Argument(metavar="EMERGENCY_ID", help="As `lionrock emergency list` says.")]
ReasonArgument = Annotated[str, typer.Argument(help="Why. It is kept in the audit log's vault.")]
_TIMEOUT_S = 30.0


@app.command(
    epilog=examples(
        'lionrock emergency request "records may have left the house, incident 4711"',
        'lionrock emergency request "incident 4711" --minutes 30 --suspicion',
    )
)
def request(
    reason: ReasonArgument,
    minutes: Annotated[int, typer.Option(min=1, max=240, help="How long it lasts from its approval.")] = 60,
    suspicion: Annotated[bool, typer.Option("--suspicion", help="Records of suspicion too: then an mlro decides.")] = False,
    state_dir: StateDirOption = None,
    gateway: GatewayOption = None,
    certificates: CertificatesOption = None,
    timeout: TimeoutOption = _TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """Ask for it, for yourself, and print its id. It opens nothing until somebody else approves it."""
    from lionrock.cli import emergency as command

    place = where(state_dir, gateway, certificates, timeout)
    sys.exit(command.request(place, reason, timedelta(minutes=minutes), suspicion=suspicion, as_json=as_json))


@app.command(
    epilog=examples(
        "lionrock audit show EMERGENCY_ID   # why it is asked for", 'lionrock emergency approve EMERGENCY_ID "spoke to the desk"'
    )
)
def approve(
    emergency_id: IdArgument,
    reason: ReasonArgument,
    state_dir: StateDirOption = None,
    gateway: GatewayOption = None,
    certificates: CertificatesOption = None,
    timeout: TimeoutOption = _TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """Open what somebody else asked for, everywhere within five seconds."""
    from lionrock.cli import emergency as command

    sys.exit(command.approve(where(state_dir, gateway, certificates, timeout), emergency_id, reason, as_json=as_json))


@app.command(epilog=examples('lionrock emergency deny EMERGENCY_ID "the auditor can look this up"'))
def deny(
    emergency_id: IdArgument,
    reason: ReasonArgument,
    state_dir: StateDirOption = None,
    gateway: GatewayOption = None,
    certificates: CertificatesOption = None,
    timeout: TimeoutOption = _TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """Refuse what somebody else asked for."""
    from lionrock.cli import emergency as command

    sys.exit(command.deny(where(state_dir, gateway, certificates, timeout), emergency_id, reason, as_json=as_json))


@app.command(epilog=examples("lionrock emergency end EMERGENCY_ID"))
def end(
    emergency_id: IdArgument,
    state_dir: StateDirOption = None,
    gateway: GatewayOption = None,
    certificates: CertificatesOption = None,
    timeout: TimeoutOption = _TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """End one that is asked for or in force, everywhere within five seconds."""
    from lionrock.cli import emergency as command

    sys.exit(command.end(where(state_dir, gateway, certificates, timeout), emergency_id, as_json=as_json))


@app.command("list", epilog=examples("lionrock emergency list", "lionrock emergency list --all --json"))
def list_emergencies(
    closed: Annotated[bool, typer.Option("--all", help="Those that are over too.")] = False,
    state_dir: StateDirOption = None,
    gateway: GatewayOption = None,
    certificates: CertificatesOption = None,
    timeout: TimeoutOption = _TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """List the tenant's emergencies, newest first."""
    from lionrock.cli import emergency as command

    sys.exit(command.show_all(where(state_dir, gateway, certificates, timeout), closed=closed, as_json=as_json))
