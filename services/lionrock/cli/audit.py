"""The commands of `lionrock audit`: their options and help. What each does is in the module of its name."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(help="The audit logs: move, prove, check.", no_args_is_help=True)


@app.callback()
def _commands() -> None:
    """Keep the name of a command even while there is one alone."""


@app.command(
    epilog="[bold]Example[/bold]\n\n"
    "[cyan]lionrock audit migrate --from sqlite:/var/lib/lionrock/store/logs.sqlite --to postgresql:/etc/lionrock/dsn[/cyan]"
)
def migrate(
    source: Annotated[str, typer.Option("--from", metavar="STORE", help="sqlite:FILE, or postgresql:FILE (see --to).")],
    target: Annotated[
        str, typer.Option("--to", metavar="STORE", help="sqlite:FILE, or postgresql:FILE, which holds a connection string.")
    ],
) -> None:
    """Move all logs to another store, every leaf and root checked on the way.

    Proofs that verified before verify after it. Stop the service first. Start an interrupted move again: it goes on where it was.
    """
    from lionrock.cli.audit_migrate import migrate as run

    raise typer.Exit(run(source, target))
