"""The commands of `lionrock policy`: their options and help. What they do is in policy.py."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from lionrock.cli.audit_options import JsonOption, StateDirOption, examples
from lionrock.cli.errors import EXIT_USAGE, CommandError

app = typer.Typer(
    help="Access policies: who may ask what. Check a set, explain a decision, compare two sets, run a set's tests.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

PolicyDirArgument = Annotated[
    Path | None, typer.Argument(metavar="[DIRECTORY]", help="Directory with *.cedar files. Default: the packaged roles.")
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="The gateway's settings. Default: those of the mesh in the state directory.")
]


@app.command(epilog=examples("lionrock policy check", "lionrock policy check ./policies --json"))
def check(directory: PolicyDirArgument = None, as_json: JsonOption = False) -> None:
    """Say whether a gateway would follow a set, and its digest. Exit status: 0 it would, 1 it would not."""
    from lionrock.cli import policy as command

    sys.exit(command.check(directory, as_json=as_json))


@app.command(
    epilog=examples(
        "lionrock policy explain spiffe://lionrock.local/tenant/demo/user/me --purpose assistance",
        "lionrock policy explain --role auditor --action read_record --policy-dir ./policies",
        "lionrock policy explain --role user --purpose research --data-class suspicion",
        "lionrock policy explain --role security --action read_record --emergency",
    )
)
def explain(
    caller: Annotated[
        str | None, typer.Argument(help="SPIFFE id of a caller whom the gateway's settings know. Without one: --role.")
    ] = None,
    role: Annotated[
        list[str] | None, typer.Option(help="Instead of a caller: somebody with this role who was granted all that is asked.")
    ] = None,
    action: Annotated[str, typer.Option(help="What is asked.")] = "chat",
    purpose: Annotated[str | None, typer.Option(help="Purpose. Default for a chat: the first of the grant.")] = None,
    data_class: Annotated[str | None, typer.Option(help="Class of data. Default for a chat: personal.")] = None,
    model: Annotated[str | None, typer.Option(help="Name of a model.")] = None,
    author: Annotated[str | None, typer.Option(help="Whose answer a review decides on, or who asked for an emergency.")] = None,
    emergency: Annotated[bool, typer.Option("--emergency", help="While emergency access of the caller is in force.")] = False,
    at: Annotated[datetime | None, typer.Option(help="When, in UTC. Default: now.", show_default=False)] = None,
    not_after: Annotated[datetime | None, typer.Option(help="With --role: the end of the grant, in UTC.")] = None,
    policy_dir: Annotated[
        Path | None, typer.Option(help="Decide by this directory. Default: as the gateway's settings say, or the packaged roles.")
    ] = None,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say how a question is decided, and show the policies that decide it.

    Exit status: 0 permitted, 3 refused.
    """
    from lionrock.cli import policy as command

    if (caller is None) == (not role):
        raise CommandError("who asks?", fix="name a caller, or give --role", exit_code=EXIT_USAGE)
    asked = command.Asked(action, purpose, data_class, model, author, at, emergency)
    if caller is None:
        sys.exit(command.explain_role(role or [], not_after, asked, policy_dir, as_json=as_json))
    sys.exit(command.explain_caller(caller, asked, policy_dir, config, state_dir, as_json=as_json))


@app.command(
    epilog=examples("lionrock policy diff packaged ./policies", "lionrock policy diff ./before ./after --purpose marketing --json")
)
def diff(
    before: Annotated[str, typer.Argument(help='Directory of a set, or "packaged".')],
    after: Annotated[str, typer.Argument(help='Directory of a set, or "packaged".')],
    purpose: Annotated[list[str] | None, typer.Option(help="A purpose that policies single out. May be repeated.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="A model that policies single out. May be repeated.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Say which policies and which decisions change between two sets, over every role, action and class of data.

    Exit status: 0 the same decisions, 1 others.
    """
    from lionrock.cli import policy as command

    sys.exit(command.diff(before, after, purpose or [], model or [], as_json=as_json))


@app.command("test", epilog=examples("lionrock policy test", "lionrock policy test ./policies   # and ./policies/tests/*.yaml"))
def run_tests(directory: PolicyDirArgument = None, as_json: JsonOption = False) -> None:
    """Run a set's tests, DIRECTORY/*.yaml and DIRECTORY/tests/*.yaml, and those of the walls. Exit status: 0 all pass, 1 not."""
    from lionrock.cli import policy as command

    sys.exit(command.run_all_tests(directory, as_json=as_json))
