"""The commands of `lionrock consent`, `opt-out` and `notice`: their options and help. What they do is in consent.py."""

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

consent = typer.Typer(
    help="What people whose data are used agreed to.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)
opt_out = typer.Typer(
    help="People who want no answers by AI about them.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)
NOTICE_EXAMPLES = examples("lionrock notice", "lionrock notice marketing", "lionrock notice --json")

SubjectArgument = Annotated[str, typer.Argument(metavar="SUBJECT", help="The person, by your tenant's pseudonym.")]
PurposeOption = Annotated[str, typer.Option("--purpose", help="Purpose.")]
StatementOption = Annotated[str, typer.Option("--statement", help="Anything worth keeping about it; kept in the vault.")]
NeededStatementOption = Annotated[
    str, typer.Option("--statement", help="How it was said, such as a form's number; kept in the vault.")
]
_TIMEOUT_S = 30.0


@consent.command(
    epilog=examples(
        'lionrock consent record customer-17 --purpose marketing --notice-version 3 --statement "form 88-1203"',
        'lionrock consent record customer-17 --purpose marketing --notice-version 3 --statement "by phone" --days 365',
    )
)
def record(
    subject: SubjectArgument,
    purpose: PurposeOption,
    notice_version: Annotated[int, typer.Option(min=1, help="Version of the notice that the person was shown.")],
    statement: NeededStatementOption,
    language: Annotated[str, typer.Option(help="Language in which it was shown, such as zh-Hant.", show_default=False)] = "",
    days: Annotated[
        int | None, typer.Option(min=1, max=36500, help="Days until it ends by itself. Default: never.", show_default=False)
    ] = None,
    state_dir: StateDirOption = None,
    gateway: GatewayOption = None,
    certificates: CertificatesOption = None,
    timeout: TimeoutOption = _TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """Say that somebody agreed to a purpose. It is a leaf of the audit log before it counts."""
    from lionrock.cli import consent as command

    agreed = command.Agreed(subject, purpose, notice_version, language, statement, None if days is None else timedelta(days=days))
    sys.exit(command.record(where(state_dir, gateway, certificates, timeout), agreed, as_json=as_json))


@consent.command(epilog=examples("lionrock consent withdraw customer-17 --purpose marketing"))
def withdraw(
    subject: SubjectArgument,
    purpose: PurposeOption,
    statement: StatementOption = "",
    state_dir: StateDirOption = None,
    gateway: GatewayOption = None,
    certificates: CertificatesOption = None,
    timeout: TimeoutOption = _TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """Say that somebody no longer agrees."""
    from lionrock.cli import consent as command

    there = where(state_dir, gateway, certificates, timeout)
    sys.exit(command.withdraw(there, subject, purpose, statement, as_json=as_json))


@consent.command("list", epilog=examples("lionrock consent list customer-17", "lionrock consent list customer-17 --json"))
def list_consents(
    subject: SubjectArgument,
    state_dir: StateDirOption = None,
    gateway: GatewayOption = None,
    certificates: CertificatesOption = None,
    timeout: TimeoutOption = _TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """List what somebody agreed to, and whether they opted out."""
    from lionrock.cli import consent as command

    sys.exit(command.show(where(state_dir, gateway, certificates, timeout), subject, as_json=as_json))


@opt_out.command("set", epilog=examples("lionrock opt-out set customer-17"))
def set_opt_out(
    subject: SubjectArgument,
    statement: StatementOption = "",
    state_dir: StateDirOption = None,
    gateway: GatewayOption = None,
    certificates: CertificatesOption = None,
    timeout: TimeoutOption = _TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """Refuse questions that name this person from now on, at every gateway."""
    from lionrock.cli import consent as command

    sys.exit(command.opt_out(where(state_dir, gateway, certificates, timeout), subject, statement, as_json=as_json))


@opt_out.command("clear", epilog=examples('lionrock opt-out clear customer-17 --statement "letter of 2 November"'))
def clear_opt_out(
    subject: SubjectArgument,
    statement: NeededStatementOption,
    state_dir: StateDirOption = None,
    gateway: GatewayOption = None,
    certificates: CertificatesOption = None,
    timeout: TimeoutOption = _TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """Answer questions that name this person again."""
    from lionrock.cli import consent as command

    sys.exit(command.clear_opt_out(where(state_dir, gateway, certificates, timeout), subject, statement, as_json=as_json))


@opt_out.command("list", epilog=examples("lionrock opt-out list", "lionrock opt-out list --json"))
def list_opt_outs(
    state_dir: StateDirOption = None,
    gateway: GatewayOption = None,
    certificates: CertificatesOption = None,
    timeout: TimeoutOption = _TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """List the opt-outs that hold. Whose they are nobody kept: `lionrock consent list SUBJECT` says it of one person."""
    from lionrock.cli import consent as command

    sys.exit(command.show_opt_outs(where(state_dir, gateway, certificates, timeout), as_json=as_json))


def notice(
    purpose: Annotated[str, typer.Argument(help="Purpose. Default: all, without their texts.", show_default=False)] = "",
    state_dir: StateDirOption = None,
    gateway: GatewayOption = None,
    certificates: CertificatesOption = None,
    timeout: TimeoutOption = _TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """Show for which purposes your tenant uses which kinds of data, and what people are told."""
    from lionrock.cli import consent as command

    sys.exit(command.show_notices(where(state_dir, gateway, certificates, timeout), purpose, as_json=as_json))
