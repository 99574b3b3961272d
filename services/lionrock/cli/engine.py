"""`lionrock engine`: one model in this process, one prompt, its answer as it comes. No mesh, no guardrails, no audit.

The answer goes to standard output, what it took to standard error.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from lionrock.cli.errors import EXIT_USAGE, CommandError
from lionrock.cli.state import StateDir
from lionrock.inference.engine.async_engine import AsyncEngine
from lionrock.inference.engine.errors import EngineError
from lionrock.inference.engine.sequence import FinishReason, Request, RequestId, Sampling, Timings
from lionrock.inference.local_engine import LocalOptions, open_engine
from lionrock.inference.model.errors import ModelError
from lionrock.modelstore.errors import ModelStoreError
from lionrock.planner.chips import UnknownChip
from lionrock.planner.plan import PlanError
from lionrock.tokenization.chat_template import Message
from lionrock.tokenization.codec import Codec, open_codec
from lionrock.tokenization.codec_errors import CodecError


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What the command line said."""

    sampling: Sampling
    local: LocalOptions
    raw: bool = False
    """The prompt is text to be continued, not a question."""


def run(model: str, prompt: str | None, options: EngineOptions, *, as_json: bool) -> int:
    """Load, answer, print. Returns the exit status."""
    path = _path_of(model)
    question = sys.stdin.read() if prompt is None else prompt
    if not question:
        raise CommandError(
            "there is no prompt", fix='lionrock engine --model PATH "prompt", or one on standard input', exit_code=EXIT_USAGE
        )
    begin_s = time.monotonic()
    try:
        codec = open_codec("model", path)
        encoded = codec.encode_text(question) if options.raw else codec.encode_conversation([Message("user", question)])
        engine = _load(path, options.local)
        loaded_s = time.monotonic() - begin_s
        request = Request(RequestId("prompt"), tuple(encoded.token_ids), options.sampling)
        text, reason, timings = asyncio.run(_answer(engine, request, codec, as_json=as_json))
    except (ModelStoreError, ModelError, CodecError, UnknownChip, PlanError, EngineError) as error:
        raise CommandError(str(error)) from error
    if as_json:
        print(json.dumps({"text": text, "finish_reason": reason.value, **_figures(timings), "load_s": round(loaded_s, 3)}))
        return 0
    print()
    told = " · ".join(f"{name.replace('_', ' ')} {value}" for name, value in _figures(timings).items())
    print(f"{reason.value} · {told} · loaded in {loaded_s:.1f} s", file=sys.stderr)
    return 0


def _path_of(model: str) -> Path:
    """Take a path as it is, and a name from the model store."""
    path = Path(model)
    stored = StateDir.at(None).models / model
    if path.exists():
        return path
    if "/" not in model and stored.is_dir():
        return stored
    raise CommandError(
        f"there is no model {model}", fix="name a GGUF file, a directory with safetensors, or one of `lionrock models list`"
    )


def _load(path: Path, options: LocalOptions) -> AsyncEngine:
    console = Console(stderr=True)
    if not console.is_terminal:
        return open_engine(path, options)
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("loading", total=None)
        return open_engine(path, options, lambda done, total: bar.update(task, completed=done, total=total))


async def _answer(engine: AsyncEngine, request: Request, codec: Codec, *, as_json: bool) -> tuple[str, FinishReason, Timings]:
    decoder = codec.stream_decoder()
    text: list[str] = []

    def show(piece: str) -> None:
        text.append(piece)
        if not as_json:
            print(piece, end="", flush=True)

    async with engine:
        async for output in engine.generate(request):
            show(decoder.push(output.token_ids))
            if output.finish is not None:
                show(decoder.end())
                assert output.timings is not None, "the last output has timings"
                return "".join(text), output.finish, output.timings
    raise AssertionError("a stream ends with a reason")


def _figures(timings: Timings) -> dict[str, float]:
    first_s = timings.first_token_s or timings.total_s
    decode_s = timings.total_s - first_s
    later = timings.completion_tokens - 1
    return {
        "prompt_tokens": timings.prompt_tokens,
        "completion_tokens": timings.completion_tokens,
        "first_token_ms": round(1000 * first_s, 1),
        "tokens_per_s": round(later / decode_s, 1) if later > 0 and decode_s > 0 else 0.0,
    }
