"""The commands of `lionrock keys`: their options and help. What they do is in keys.py."""

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
    help="API keys, for workloads that cannot hold a certificate. For administrators of a tenant.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

KeyIdArgument = Annotated[
    str, typer.Argument(metavar="KEY_ID", help="The part of the key after lrk_, as `lionrock keys list` says.")
]
_TIMEOUT_S = 30.0


@app.command(
    epilog=examples(
        'lionrock keys create "nightly summaries" --purpose demonstration > key.txt',
        'lionrock keys create "help desk" --purpose assistance --model smollm2 --days 7',
    )
)
def create(
    description: Annotated[str, typer.Argument(help="What it is for.")],
    purpose: Annotated[list[str], typer.Option(help="Purpose that it may state; the first is its default. May be repeated.")],
    role: Annotated[list[str] | None, typer.Option(help="Role. May be repeated. Default: user.", show_default=False)] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Model that it may call. May be repeated. Default: all of yours.", show_default=False)
    ] = None,
    data_class: Annotated[
        list[str] | None,
        typer.Option(help="Class of data. May be repeated. Default: public, internal, personal.", show_default=False),
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=366, help="Days until it expires.")] = 30,
    state_dir: StateDirOption = None,
    gateway: GatewayOption = None,
    certificates: CertificatesOption = None,
    timeout: TimeoutOption = _TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """Make a key within your own grant, and print it: it is shown this once."""
    from lionrock.cli import keys as command

    scope = command.Scope(description, role or ["user"], purpose, model or ["*"], data_class or [], timedelta(days=days))
    sys.exit(command.create(where(state_dir, gateway, certificates, timeout), scope, as_json=as_json))


@app.command("list", epilog=examples("lionrock keys list", "lionrock keys list --json"))
def list_keys(
    state_dir: StateDirOption = None,
    gateway: GatewayOption = None,
    certificates: CertificatesOption = None,
    timeout: TimeoutOption = _TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """List the tenant's keys, without their secrets; those that have ended too."""
    from lionrock.cli import keys as command

    sys.exit(command.show_all(where(state_dir, gateway, certificates, timeout), as_json=as_json))


@app.command(epilog=examples("lionrock keys rotate 0123456789abcdef --overlap-hours 24 > key.txt"))
def rotate(
    key_id: KeyIdArgument,
    overlap_hours: Annotated[float, typer.Option(min=0, max=720, help="Hours for which the old key goes on.")] = 24,
    state_dir: StateDirOption = None,
    gateway: GatewayOption = None,
    certificates: CertificatesOption = None,
    timeout: TimeoutOption = _TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """Make a key's successor, with the same scope and length of life, and print it."""
    from lionrock.cli import keys as command

    overlap = timedelta(hours=overlap_hours)
    sys.exit(command.rotate(where(state_dir, gateway, certificates, timeout), key_id, overlap, as_json=as_json))


@app.command(epilog=examples("lionrock keys revoke 0123456789abcdef"))
def revoke(
    key_id: KeyIdArgument,
    state_dir: StateDirOption = None,
    gateway: GatewayOption = None,
    certificates: CertificatesOption = None,
    timeout: TimeoutOption = _TIMEOUT_S,
) -> None:
    """End a key everywhere, within five seconds."""
    from lionrock.cli import keys as command

    sys.exit(command.revoke(where(state_dir, gateway, certificates, timeout), key_id))
