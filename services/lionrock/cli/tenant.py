"""The commands of `lionrock tenant`: their options and help.

What each does is in tenant_files.py, tenant_onboarding.py and tenant_offboarding.py.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from lionrock.cli.audit_options import (
    CertificatesOption,
    GatewayOption,
    KeyOption,
    KeysFileOption,
    TimeoutOption,
    YesOption,
    examples,
)

app = typer.Typer(help="Tenants: who may come in, and what each of them may do.", no_args_is_help=True, rich_markup_mode="rich")

Files = Annotated[list[Path], typer.Argument(metavar="FILE...", help="Tenant files, YAML or JSON; one may hold several tenants.")]
StateDirOption = Annotated[
    Path | None, typer.Option("--state-dir", help="State directory. Default: $XDG_STATE_HOME/lionrock.", show_default=False)
]
TokenFileOption = Annotated[
    Path | None,
    typer.Option("--token-file", help="File with your bearer token or API key. Default: LIONROCK_TOKEN_FILE or LIONROCK_TOKEN."),
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


@app.command(
    epilog=examples(
        "lionrock tenant offboard retail --out ./retail-left --certificates ./admin",
        "lionrock tenant offboard retail --out ./retail-left --certificates ./officer --basis 'contract of 2024 ended'",
    )
)
def offboard(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The tenant that leaves: that of your own certificate or token.")],
    out: Annotated[
        Path, typer.Option("--out", help="Directory of the export, the proofs and the report; made if it is not there.")
    ],
    basis: Annotated[str, typer.Option(help="Legal basis of the erasure, for the leaves.")] = "the tenant leaves",
    cancel: Annotated[bool, typer.Option("--cancel", help="Let the tenant stay, as long as the erasure is not decided.")] = False,
    accept_left_out: Annotated[
        bool, typer.Option("--accept-left-out", help="Go on although one archive does not hold the payloads of all records.")
    ] = False,
    key: KeyOption = None,
    keys_file: KeysFileOption = None,
    gateway: GatewayOption = None,
    certificates: CertificatesOption = None,
    token_file: TokenFileOption = None,
    timeout: TimeoutOption = 600.0,
    wait: Annotated[float, typer.Option(min=1, help="Seconds to wait for requests that have not ended.")] = 900.0,
    yes: YesOption = False,
    state_dir: StateDirOption = None,
) -> None:
    """Off-board a tenant: nothing new is answered, it is exported, erased, and its log sealed; the report proves it.

    Two people run it: first a tenant_admin, then a privacy_officer, who is somebody else. It does what is next, so run it again
    after whatever went wrong. What retention or a hold keeps is listed with its reason, and goes later.

    Exit status: 0 done, 1 something failed, 3 your roles do not permit it, 4 no mesh runs.
    """
    from lionrock.cli import tenant_offboarding as command
    from lionrock.cli.audit_door import Where
    from lionrock.cli.chat import Door

    where = Where(state_dir, Door(gateway, certificates, token_file), timeout)
    if cancel:
        sys.exit(command.cancel(where, name))
    choices = command.Choices(out, basis, key or [], keys_file, wait, yes, accept_left_out)
    sys.exit(command.run(where, name, choices))


@app.command("check-report", epilog=examples("lionrock tenant check-report ./retail-left --keys-file logs.txt"))
def check_report(
    directory: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="What `offboard` wrote.")],
    key: KeyOption = None,
    keys_file: KeysFileOption = None,
) -> None:
    """Check the report of an off-boarding without any mesh: the export, every proof, and that they belong together.

    Exit status: 0 everything holds, 1 something does not.
    """
    from lionrock.cli import tenant_offboarding as command

    sys.exit(command.check(directory, key or [], keys_file))


@app.command(
    epilog=examples("lionrock tenant certificate spiffe://lionrock.local/tenant/retail/workload/officer --out ./officer"),
)
def certificate(
    principal: Annotated[str, typer.Argument(metavar="SPIFFE-ID", help="A principal whom a tenant of this machine's mesh lists.")],
    out: Annotated[Path, typer.Option("--out", help="Directory for tls.crt, tls.key and ca.crt; made if it is not there.")],
    state_dir: StateDirOption = None,
) -> None:
    """Issue a certificate of one of a tenant's principals by the development authority of this machine, for twelve hours.

    Exit status: 0 done, 1 no tenant lists this principal.
    """
    from lionrock.cli import tenant_onboarding as command

    sys.exit(command.certify(state_dir, principal, out))
