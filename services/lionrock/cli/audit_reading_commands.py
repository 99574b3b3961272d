"""Commands of `lionrock audit` that read, prove and check: their options and help. The work is in the modules that they name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lionrock.cli.audit_options import (
    CaseOption,
    CertificatesOption,
    GatewayOption,
    JsonOption,
    KeyOption,
    KeysFileOption,
    OutputOption,
    RequestOption,
    StateDirOption,
    SubjectOption,
    TimeoutOption,
    examples,
    where,
)

app = typer.Typer()


@app.command(epilog=examples("lionrock audit tail", "lionrock audit tail -n 100 --follow --json | jq .leaf.type"))
def tail(
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, max=10_000, help="Leaves from the end.")] = 10,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes; Ctrl-C ends it.")] = False,
    interval: Annotated[float, typer.Option(min=0.05, help="Seconds between two looks.")] = 1.0,
    state_dir: StateDirOption = None,
    gateway: GatewayOption = None,
    certificates: CertificatesOption = None,
    timeout: TimeoutOption = 30.0,
    as_json: JsonOption = False,
) -> None:
    """Print the newest leaves of the tenant's log."""
    from lionrock.cli import audit_reading as command

    at = where(state_dir, gateway, certificates, timeout)
    raise typer.Exit(command.tail(at, lines=lines, follow=follow, interval_s=interval, as_json=as_json))


@app.command(epilog=examples("lionrock audit show 4711", "lionrock audit show 01a208fb-673a-7caa-ad7d-8d2a3885deee --json"))
def show(
    wanted: Annotated[str, typer.Argument(metavar="INDEX|REQUEST-ID", help="A leaf, or a request whose payloads are kept.")],
    state_dir: StateDirOption = None,
    gateway: GatewayOption = None,
    certificates: CertificatesOption = None,
    timeout: TimeoutOption = 30.0,
    as_json: JsonOption = False,
) -> None:
    """Print one leaf, or what was said in one request. Reading a record is itself recorded."""
    from lionrock.cli import audit_reading as command

    raise typer.Exit(command.show(where(state_dir, gateway, certificates, timeout), wanted, as_json=as_json))


@app.command(epilog=examples("lionrock audit search --subject c-77", "lionrock audit search --case CASE-2026-00117 --json"))
def search(
    subject: SubjectOption = "",
    case: CaseOption = "",
    request: RequestOption = "",
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Records at most.")] = 100,
    state_dir: StateDirOption = None,
    gateway: GatewayOption = None,
    certificates: CertificatesOption = None,
    timeout: TimeoutOption = 30.0,
    as_json: JsonOption = False,
) -> None:
    """List the records of a person, a case or a request, newest first (a data access request begins here)."""
    from lionrock.cli import audit_reading as command

    at = where(state_dir, gateway, certificates, timeout)
    raise typer.Exit(command.search(at, subject, case, request, limit, as_json=as_json))


@app.command(
    epilog=examples(
        "lionrock audit prove ~/.local/state/lionrock/receipts/ID.tlog-proof",
        "lionrock audit prove 4711 --output ./proofs",
    )
)
def prove(
    wanted: Annotated[
        str, typer.Argument(metavar="RECEIPT|EVENT-ID|INDEX", help="A leaf; by its index only with a role that reads logs.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIRECTORY", help="Where the two files go.")] = Path(),
    state_dir: StateDirOption = None,
    gateway: GatewayOption = None,
    certificates: CertificatesOption = None,
    timeout: TimeoutOption = 30.0,
    as_json: JsonOption = False,
) -> None:
    """Write the proofs of a leaf, for any program that reads c2sp.org/tlog-proof.

    leaf-INDEX.tlog-proof: the leaf in its log. leaf-INDEX.platform.tlog-proof: its log's checkpoint in the platform's log, whose
    checkpoint witnesses cosigned. A leaf that is too new for the second is waited for.
    """
    from lionrock.cli import audit_reading as command

    raise typer.Exit(command.prove(where(state_dir, gateway, certificates, timeout), wanted, output, as_json=as_json))


@app.command(
    epilog=examples(
        "lionrock audit verify export.zip --key 'bank.example/audit/bank+1f2e…' --key 'bank.example/audit+3d4c…'",
        "lionrock audit verify export.zip --keys-file keys.txt --witnesses-file witnesses.txt --witnesses 1",
        "lionrock audit verify export.zip --keys-file keys.txt --extract 4711",
    )
)
def verify(
    file: Annotated[Path, typer.Argument(help="An export, or a receipt.")],
    key: KeyOption = None,
    keys_file: KeysFileOption = None,
    witness_key: Annotated[list[str] | None, typer.Option(help="Verifier key of a witness. May be repeated.")] = None,
    witnesses_file: Annotated[Path | None, typer.Option(help="File with keys of witnesses, one a line.")] = None,
    witnesses: Annotated[
        int | None, typer.Option(min=0, help="Witnesses that must have cosigned. Default: all that are given.", show_default=False)
    ] = None,
    platform_proof: Annotated[Path | None, typer.Option(help="Of a receipt: its checkpoint's proof in the platform's log.")] = None,
    extract: Annotated[int | None, typer.Option(min=0, help="Write the proof of this leaf of an export.")] = None,
    output: OutputOption = None,
    state_dir: StateDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check an export or a receipt offline, all of it, as verify.py in an export does. Exit status: 0 proven, 1 not.

    Without --key and --keys-file the keys kept at first contact with the log are used.
    """
    from lionrock.cli import audit_export as command
    from lionrock.cli.state import StateDir

    trusted = command.Trusted.given(key or [], keys_file, witness_key or [], witnesses_file, witnesses)
    given = StateDir.at(state_dir)
    raise typer.Exit(
        command.verify(given, file, trusted, platform_proof=platform_proof, extract=extract, output=output, as_json=as_json)
    )


@app.command(
    epilog=examples(
        "lionrock audit export --from 2026-11-01 --to 2026-12-01 --output november.zip",
        "lionrock audit export --case CASE-2026-00117 --payloads --output case.zip",
    )
)
def export(
    output: Annotated[Path, typer.Option("--output", "-o", help="The archive; it must not exist yet.")],
    start: Annotated[str, typer.Option("--from", help="First day or instant, ISO 8601; UTC without a zone.")] = "",
    end: Annotated[str, typer.Option("--to", help="Day or instant before which it ends. Default: now.")] = "",
    case: Annotated[str, typer.Option("--case", help="Only this case.")] = "",
    payloads: Annotated[bool, typer.Option("--payloads", help="With what was said, as far as your role may see it.")] = False,
    tenant: Annotated[str, typer.Option("--tenant", help="Stop unless your certificate is of this tenant.")] = "",
    state_dir: StateDirOption = None,
    gateway: GatewayOption = None,
    certificates: CertificatesOption = None,
    timeout: TimeoutOption = 600.0,
    as_json: JsonOption = False,
) -> None:
    """Fetch one ZIP archive that verifies offline: leaves, proofs, keys, payloads, a page to read, verify.py.

    The export is itself recorded, before its first byte comes.
    """
    from lionrock.cli import audit_export as command

    chosen = command.Chosen(start, end, case, payloads, tenant)
    raise typer.Exit(command.export(where(state_dir, gateway, certificates, timeout), chosen, output, as_json=as_json))


@app.command(epilog=examples("lionrock audit stats", "lionrock audit stats --json"))
def stats(
    state_dir: StateDirOption = None,
    gateway: GatewayOption = None,
    certificates: CertificatesOption = None,
    timeout: TimeoutOption = 30.0,
    as_json: JsonOption = False,
) -> None:
    """Count what the tenant's log and vault hold."""
    from lionrock.cli import audit_reading as command

    raise typer.Exit(command.stats(where(state_dir, gateway, certificates, timeout), as_json=as_json))


@app.command(epilog=examples("lionrock audit keys > keys.txt   # then compare them with what the operator published"))
def keys(
    state_dir: StateDirOption = None,
    gateway: GatewayOption = None,
    certificates: CertificatesOption = None,
    timeout: TimeoutOption = 30.0,
    links: Annotated[Path | None, typer.Option(help="Directory for what leads from earlier keys to the later ones.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Print the verifier keys of the tenant's log and of the platform's log, newest first."""
    from lionrock.cli import audit_reading as command

    raise typer.Exit(command.keys(where(state_dir, gateway, certificates, timeout), links, as_json=as_json))


@app.command(
    epilog=examples(
        "lionrock audit check --store audit.sqlite --signed keys/signed-checkpoints.jsonl --keys-file keys.txt",
        "lionrock audit check --store postgresql:/etc/lionrock/reader-dsn --signed signed.jsonl --keys-file keys.txt",
        "lionrock audit check --store audit.sqlite --signed signed.jsonl --keys-file keys.txt --checkpoint from-a-witness.txt",
    )
)
def check(
    store: Annotated[
        str,
        typer.Option(
            metavar="STORE", help="SQLite file of the logs (or sqlite:FILE); postgresql:FILE, which holds a connection string."
        ),
    ],
    signed: Annotated[Path, typer.Option(help="The second place: signed-checkpoints.jsonl in the service's key directory.")],
    key: KeyOption = None,
    keys_file: KeysFileOption = None,
    checkpoint: Annotated[list[Path] | None, typer.Option(help="Signed note that somebody else kept. May be repeated.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Check a whole store: every leaf read, every hash computed again, every kept checkpoint, record and hold held against it.

    Changes nothing, takes no lock, may run beside the service. Exit status: 0 nothing is wrong, 1 something is, 2 wrong use,
    4 the store could not be read.
    """
    from lionrock.cli import audit_check as command

    raise typer.Exit(command.run(store, signed, key or [], keys_file, checkpoint or [], as_json=as_json))
