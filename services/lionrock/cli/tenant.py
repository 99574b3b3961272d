"""The commands of `lionrock tenant`: their options and help. What each does is in tenant_files.py and tenant_onboarding.py."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from lionrock.cli.audit_options import examples

app = typer.Typer(help="Tenants: who may come in, and what each of them may do.", no_args_is_help=True, rich_markup_mode="rich")

Files = Annotated[list[Path], typer.Argument(metavar="FILE...", help="Tenant files, YAML or JSON; one may hold several tenants.")]
StateDirOption = Annotated[
    Path | None, typer.Option("--state-dir", help="State directory. Default: $XDG_STATE_HOME/lionrock.", show_default=False)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]


@app.command(
    epilog=examples("lionrock tenant check retail.yaml", "lionrock tenant check tenants/*.yaml --trust-domain bank.example")
)
def check(
    files: Files,
    trust_domain: Annotated[
        str | None,
        typer.Option(help="Trust domain of the gateway that is to follow them. Default: the files'.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check Tenant files without a mesh: everything that is wrong is told by file, line and field. Changes nothing.

    Exit status: 0 good, 1 not.
    """
    from lionrock.cli import tenant_files as command

    sys.exit(command.check(files, trust_domain, as_json=as_json))


@app.command("list", epilog=examples("lionrock tenant list", "lionrock tenant list --json"))
def list_(as_json: JsonOption = False, state_dir: StateDirOption = None) -> None:
    """List the tenants of the mesh of this machine, and the files that it does not follow.

    Exit status: 0 all files are followed, 1 one is not.
    """
    from lionrock.cli import tenant_files as command

    sys.exit(command.show(state_dir, as_json=as_json))


@app.command(epilog=examples("lionrock tenant onboard retail.yaml", "lionrock tenant onboard retail.yaml broker.yaml --dry-run"))
def onboard(
    files: Files,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change, and change nothing.")] = False,
    chat: Annotated[bool, typer.Option(help="End with a chat as each tenant.")] = True,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds until the mesh must answer each tenant.")] = 60.0,
    state_dir: StateDirOption = None,
) -> None:
    """Bring tenants into the running mesh of this machine, or change them.

    Validates everything before it changes anything, prints what it did, and ends with a chat as each tenant, whose receipt it
    checks. What is there already is left alone, so it can be repeated. On Kubernetes: kubectl apply --filename FILE.

    Exit status: 0 done, 1 a file is not good or the chat failed, 4 no mesh runs.
    """
    from lionrock.cli import tenant_onboarding as command

    sys.exit(command.run(state_dir, files, dry_run=dry_run, chat=chat, timeout_s=timeout))
