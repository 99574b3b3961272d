"""The commands of `lionrock audit`: their options and help. What each does is in the module of its name.

With options of its own in place of a command, `lionrock audit` is the service, as every other service's name is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from lionrock.cli.audit_changing_commands import app as changing
from lionrock.cli.audit_options import examples
from lionrock.cli.audit_reading_commands import app as reading
from lionrock.cli.services import run_service


class ServiceOrCommand(TyperGroup):
    """Leaves options to the service: `lionrock audit --config FILE`, `lionrock audit --help`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Become the service, or go on to a command."""
        if args and args[0].startswith("-"):
            run_service("audit", args)
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=ServiceOrCommand,
    help="The audit logs: read, prove, export, erase, check. With the service's options: run it; lionrock audit --help lists them.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


app.add_typer(reading)
app.add_typer(changing)


@app.callback()
def _commands() -> None:
    """Keep the name of a command even while there is one alone."""


@app.command(
    epilog=examples("lionrock audit migrate --from sqlite:/var/lib/lionrock/store/logs.sqlite --to postgresql:/etc/lionrock/dsn")
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


@app.command(
    "rotate-key",
    epilog=examples(
        "lionrock audit rotate-key --config audit.yaml --tenant retail", "lionrock audit rotate-key --config audit.yaml --platform"
    ),
)
def rotate_key(
    config: Annotated[Path, typer.Option(help="Settings of the audit service, as it is run with.")],
    tenant: Annotated[str | None, typer.Option(help="Tenant whose log gets another key.")] = None,
    platform: Annotated[bool, typer.Option("--platform", help="The platform's log gets another key.")] = False,
) -> None:
    """Make the key that is to follow a log's; the running service changes to it within its sweep_interval_s.

    Prints the new verifier key. Witnesses must be told of the platform's before the service changes.
    """
    from lionrock.cli.audit_rotate_key import run

    raise typer.Exit(run(config, tenant, platform=platform))


@app.command(
    epilog=examples(
        "lionrock audit monitor --once --state-dir ./seen --source ./tiles/bank.example/audit --key 'bank.example/audit+1f2e…'",
        "lionrock audit monitor --config monitor.yaml   # keys: docs/audit.md",
    )
)
def monitor(
    config: Annotated[Path | None, typer.Option(help="YAML file with the logs to follow.")] = None,
    source: Annotated[
        str | None, typer.Option(help="Directory or address with the log's checkpoint in it, for one log without a file.")
    ] = None,
    key: Annotated[list[str] | None, typer.Option(help="Verifier key of that log. May be repeated.")] = None,
    witness: Annotated[list[str] | None, typer.Option(help="Key of a witness that must have cosigned. May be repeated.")] = None,
    stall_after: Annotated[float | None, typer.Option(min=0.001, help="Seconds for which the log may stand still.")] = None,
    state_dir: Annotated[Path | None, typer.Option(help="Directory for what was seen last, and for evidence.")] = None,
    interval: Annotated[float, typer.Option(min=0.01, help="Seconds between two looks.")] = 30.0,
    once: Annotated[bool, typer.Option("--once", help="Look once and end.")] = False,
    everything: Annotated[
        bool,
        typer.Option("--everything", help="At the first look, read again what passed before: all tiles and leaves."),
    ] = False,
) -> None:
    """Follow logs from outside, and shout when one forks, rolls back, stands still, or shows what its key did not sign.

    Events are JSON lines on standard output. Exit status: 0 all well, 1 an alarm, 2 wrong use, 4 a log could not be read.
    Without --once it goes on until it is told to stop.
    """
    from lionrock.cli import audit_monitor as command

    one = command.OneLog(source, key or [], witness or [], stall_after, state_dir, interval)
    raise typer.Exit(command.run(config, one, once=once, everything=everything))


@app.command(epilog=examples("lionrock audit evidence fork.json --key 'bank.example/audit+1f2e…'"))
def evidence(
    file: Annotated[Path, typer.Argument(help="Evidence of a fork, as the monitor writes it.")],
    key: Annotated[list[str], typer.Option(help="Verifier key of the log. May be repeated.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check evidence of a fork offline. Exit status: 0 the log forked, 1 the file does not prove it."""
    from lionrock.cli import audit_monitor as command

    raise typer.Exit(command.check_evidence(file, key, as_json=as_json))
