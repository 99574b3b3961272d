"""The commands of `lionrock review`: their options and help. What they do is in review.py."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lionrock.cli.audit_options import CertificatesOption, GatewayOption, JsonOption, StateDirOption, TimeoutOption, examples

if TYPE_CHECKING:
    from lionrock.cli.audit_door import Where

app = typer.Typer(
    help="Answers that wait for a reviewer: see them, release or refuse them, fetch your own.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

RequestArgument = Annotated[str, typer.Argument(metavar="REQUEST_ID", help="Id of the request, as `lionrock chat` prints it.")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why, for the record; it is kept in the audit vault.")]
TokenFileOption = Annotated[
    Path | None, typer.Option("--token-file", metavar="FILE", help="File with your token. Default: $LIONROCK_TOKEN_FILE.")
]
_TIMEOUT_S = 30.0


@app.command("list", epilog=examples("lionrock review list", "lionrock review list --all --json"))
def list_reviews(
    every: Annotated[bool, typer.Option("--all", help="Those that were decided too.")] = False,
    state_dir: StateDirOption = None,
    gateway: GatewayOption = None,
    certificates: CertificatesOption = None,
    token_file: TokenFileOption = None,
    timeout: TimeoutOption = _TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """List the answers that wait, oldest first. For reviewers."""
    from lionrock.cli import review as command

    sys.exit(command.show_all(_where(state_dir, gateway, certificates, token_file, timeout), decided=every, as_json=as_json))


@app.command(epilog=examples("lionrock review show REQUEST_ID"))
def show(
    request_id: RequestArgument,
    state_dir: StateDirOption = None,
    gateway: GatewayOption = None,
    certificates: CertificatesOption = None,
    token_file: TokenFileOption = None,
    timeout: TimeoutOption = _TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """Show one with question and answer, as the guardrails masked them. The audit log says that you read it."""
    from lionrock.cli import review as command

    sys.exit(command.show(_where(state_dir, gateway, certificates, token_file, timeout), request_id, as_json=as_json))


@app.command(epilog=examples('lionrock review release REQUEST_ID --reason "figures checked against the tariff"'))
def release(
    request_id: RequestArgument,
    reason: ReasonOption,
    state_dir: StateDirOption = None,
    gateway: GatewayOption = None,
    certificates: CertificatesOption = None,
    token_file: TokenFileOption = None,
    timeout: TimeoutOption = _TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """Let an answer be shown to who asked. The decision is in the audit log before it takes effect."""
    from lionrock.cli import review as command
    from lionrock.gateway.v1 import review_pb2 as pb

    found = _where(state_dir, gateway, certificates, token_file, timeout)
    sys.exit(command.decide(found, request_id, pb.REVIEW_DECISION_RELEASE, reason, as_json=as_json))


@app.command(epilog=examples('lionrock review refuse REQUEST_ID --reason "advice that we are not licensed to give"'))
def refuse(
    request_id: RequestArgument,
    reason: ReasonOption,
    state_dir: StateDirOption = None,
    gateway: GatewayOption = None,
    certificates: CertificatesOption = None,
    token_file: TokenFileOption = None,
    timeout: TimeoutOption = _TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """Let an answer not be shown."""
    from lionrock.cli import review as command
    from lionrock.gateway.v1 import review_pb2 as pb

    found = _where(state_dir, gateway, certificates, token_file, timeout)
    sys.exit(command.decide(found, request_id, pb.REVIEW_DECISION_REFUSE, reason, as_json=as_json))


@app.command(epilog=examples("lionrock review answer REQUEST_ID"))
def answer(
    request_id: RequestArgument,
    state_dir: StateDirOption = None,
    gateway: GatewayOption = None,
    certificates: CertificatesOption = None,
    token_file: TokenFileOption = None,
    timeout: TimeoutOption = _TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """Fetch an answer to your own question that was held.

    Exit status: 0 released and printed, 5 it waits still, 3 it was refused or nobody decided in time.
    """
    from lionrock.cli import review as command

    sys.exit(command.answer(_where(state_dir, gateway, certificates, token_file, timeout), request_id, as_json=as_json))


def _where(
    state_dir: Path | None, gateway: str | None, certificates: Path | None, token_file: Path | None, timeout: float
) -> Where:
    """Read which mesh, as whom, and how long a call may take."""
    from lionrock.cli.audit_door import Where
    from lionrock.cli.chat import Door

    return Where(state_dir, Door(gateway, certificates, token_file), timeout)
