"""Options that the commands of `lionrock audit` share, and how a command line becomes a `Where`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lionrock.cli.audit_door import Where

StateDirOption = Annotated[
    Path | None, typer.Option("--state-dir", help="State directory. Default: $XDG_STATE_HOME/lionrock.", show_default=False)
]
GatewayOption = Annotated[
    str | None, typer.Option("--gateway", metavar="HOST:PORT", help="Gateway of a mesh elsewhere. Default: that of this machine.")
]
CertificatesOption = Annotated[
    Path | None,
    typer.Option("--certificates", metavar="DIRECTORY", help="Your tls.crt, tls.key and ca.crt. Default: in the state directory."),
]
TimeoutOption = Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds until a call is given up.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]
SubjectOption = Annotated[str, typer.Option("--subject", help="Pseudonymous id of a person, as the tenant uses it.")]
CaseOption = Annotated[str, typer.Option("--case", help="Case or ticket.")]
RequestOption = Annotated[str, typer.Option("--request", help="Id of one request.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
KeyOption = Annotated[list[str] | None, typer.Option("--key", help="Verifier key that you trust. May be repeated.")]
KeysFileOption = Annotated[Path | None, typer.Option("--keys-file", help="File with verifier keys, one a line.")]
OutputOption = Annotated[Path | None, typer.Option("--output", "-o", help="File to write.", show_default=False)]


def where(state_dir: Path | None, gateway: str | None, certificates: Path | None, timeout: float) -> Where:
    """Read which mesh, as whom, and how long a call may take."""
    from lionrock.cli.audit_door import Where
    from lionrock.cli.chat import Door

    return Where(state_dir, Door(gateway, certificates), timeout)


def examples(*lines: str) -> str:
    """Write an epilog with examples, a line each."""
    return "[bold]Examples[/bold]\n\n" + "\n\n".join(f"[cyan]{line}[/cyan]" for line in lines)
