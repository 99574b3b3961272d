"""What the mesh costs: time to first token, tokens a second, start, idle memory; against the engine alone in the same run.

The engine alone is the same shard group (same plan, ranks in Ray actors, same scheduler) without gRPC, Serve, guardrails, tokenizer
and audit, in a Ray cluster of its own. Rounds of the two alternate, so that a slow minute of the machine hits both. Idle, each
burns a little of the other's time; that is part of the noise.

    python -m benchmarks.mesh [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks.report import Row, row, write
from lionrock.client import AsyncClient, SamplingParams, connect_local_async
from lionrock.inference.settings import InferenceSettings
from lionrock.modelstore.source import open_source
from lionrock.tokenization.chat_template import Message
from lionrock.tokenization.codec import open_codec

QUESTION = "Write a long story about a fisherman, a lighthouse and a letter that arrived too late. Case number {number}."
STREAMS = 16
TTFT_LIMIT_MS = 15.0
IDLE_LIMIT_MIB = 80.0
READY_LIMIT_S = 20.0


@dataclass(frozen=True, slots=True)
class Heard:
    """One answer: seconds from the question to the first and to the last token, and how many came."""

    first_s: float
    total_s: float
    tokens: int


class Mesh:
    """`lionrock up` on a new state directory."""

    def __init__(self, state: Path, config: Path) -> None:
        self.state = state
        self._command = [str(Path(sys.executable).parent / "lionrock"), "up", "--state-dir", str(state), "--port", "0"]
        self._command += ["--config", str(config)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> float:
        """Start it and return the seconds until it is ready."""
        begun = time.monotonic()
        self._output = self.state.with_name("up.log")
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(self._command, stdout=output, stderr=output)
        while not (self.state / "mesh.json").exists():
            if self._process.poll() is not None or time.monotonic() - begun > 180:
                raise SystemExit(f"the mesh did not start:\n{self._output.read_text()}")
            time.sleep(0.02)
        return time.monotonic() - begun

    def stop(self) -> None:
        """End it and wait."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)

    def services(self) -> dict[str, psutil.Process]:
        """Return the processes of the services by name."""
        assert self._process is not None
        found = {}
        for process in psutil.Process(self._process.pid).children(recursive=True):
            words = process.cmdline()
            for word in words:
                if word.startswith("lionrock.") and "-m" in words:
                    found[word.removeprefix("lionrock.")] = process
        return found


class EngineAlone:
    """Runs in a Ray actor: the shard group and the engine's public asynchronous interface, nothing around it."""

    def __init__(self, config: dict[str, Any], name: str) -> None:
        from lionrock.inference.backends.choice import engine_backend
        from lionrock.inference.placement import place
        from lionrock.inference.serve_application import rank_settings
        from lionrock.inference.served_model import describe_model
        from lionrock.inference.shard_actors import actor_group_builder
        from lionrock.inference.sharding import ShardGroup

        settings = InferenceSettings(**config).application(name)
        model = describe_model(name, settings.model)
        self._builder = builder = actor_group_builder(rank_settings(model, settings), settings.health, place(settings.model))

        async def start(on_lost: Callable[[str], None]) -> ShardGroup:
            return await builder.build(lambda _, reason: on_lost(reason))

        self._engine = engine_backend(model, settings, start)

    async def start(self) -> None:
        """Build the group."""
        await self._engine.start(lambda reason: sys.exit(f"the engine alone lost its ranks: {reason}"))

    async def ask(self, prompts: Sequence[tuple[int, ...]], max_tokens: int) -> list[Heard]:
        """Answer all prompts at once."""
        return list(await asyncio.gather(*(self._one(prompt, max_tokens) for prompt in prompts)))

    async def _one(self, prompt: tuple[int, ...], max_tokens: int) -> Heard:
        from lionrock.chassis.ids import uuid7
        from lionrock.inference.engine.sequence import Request, RequestId, Sampling

        request = Request(RequestId(uuid7()), prompt, Sampling(max_tokens=max_tokens, ignore_eos=True))
        begun, first_s, tokens = time.perf_counter(), 0.0, 0
        stream = self._engine.submit(request)
        try:
            async for output in stream:
                if output.token_ids and not tokens:
                    first_s = time.perf_counter() - begun
                tokens += len(output.token_ids)
        finally:
            stream.close()
        return Heard(first_s, time.perf_counter() - begun, tokens)


@asynccontextmanager
async def engine_alone(mesh: Mesh, name: str) -> AsyncIterator[Any]:
    """Start the engine in a Ray cluster of its own, with the mesh's settings of the model and its certificates."""
    from lionrock.inference import placement
    from lionrock.inference.ray_cluster import RayCluster, prepare_environment

    config = yaml.safe_load((mesh.state / "config" / "inference.yaml").read_text())
    config["telemetry"] = {}
    settings = InferenceSettings(**config)
    ranks = settings.models[name].tensor_parallel * settings.models[name].pipeline_parallel
    prepare_environment(settings.ray)
    cluster = RayCluster(settings.ray, local_cpus=1 + ranks)
    await cluster.start()
    try:

        def place() -> Any:
            # Here, because Ray reads its settings when it is imported, and starting the cluster writes them.
            import ray
            from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

            wanted = placement.place(settings.models[name])
            group = ray.util.placement_group([dict(bundle) for bundle in wanted.bundles], strategy=wanted.strategy)
            ray.get(group.ready(), timeout=60)
            strategy = PlacementGroupSchedulingStrategy(
                placement_group=group, placement_group_bundle_index=0, placement_group_capture_child_tasks=True
            )
            actor = (
                ray.remote(EngineAlone).options(num_cpus=1, scheduling_strategy=strategy, max_concurrency=64).remote(config, name)
            )
            ray.get(actor.start.remote(), timeout=120)
            return actor

        actor = await cluster.call(place)

        async def ask(prompts: Sequence[tuple[int, ...]], max_tokens: int) -> list[Heard]:
            import ray

            answer: list[Heard] = await cluster.call(lambda: ray.get(actor.ask.remote(prompts, max_tokens), timeout=600))
            return answer

        yield ask
    finally:
        await cluster.close()


async def ask_mesh(client: AsyncClient, questions: Sequence[str], max_tokens: int) -> list[Heard]:
    """Ask all questions at once."""

    async def one(question: str) -> Heard:
        chat = client.chat(question, sampling=SamplingParams(max_tokens=max_tokens, ignore_eos=True))
        begun, first_s = time.perf_counter(), 0.0
        async for _ in chat:
            first_s = first_s or time.perf_counter() - begun
        assert chat.finished is not None
        return Heard(first_s, time.perf_counter() - begun, chat.finished.usage.completion_tokens)

    return list(await asyncio.gather(*(one(question) for question in questions)))


def cpu_s(services: dict[str, psutil.Process]) -> float:
    """Processor seconds that the services have used so far, without Ray's and the shards'."""
    return sum(sum(process.cpu_times()[:2]) for process in services.values())


async def measure(mesh: Mesh, ready_s: float, *, quick: bool) -> list[Row]:
    """All cases."""
    services = mesh.services()
    await asyncio.sleep(5)  # what start-up left behind settles
    rows = [row("ready after `lionrock up`", [ready_s], "s", "lower", baseline="limit", baseline_values=[READY_LIMIT_S])]
    for name, process in sorted(services.items()):
        memory = process.memory_full_info()
        if name != "inference":
            unique = [memory.pss / 2**20]
            rows.append(
                row(f"idle memory of {name}, PSS", unique, "MiB", "lower", baseline="limit", baseline_values=[IDLE_LIMIT_MIB])
            )
            rows.append(
                row(
                    f"idle memory of {name}, RSS",
                    [memory.rss / 2**20],
                    "MiB",
                    "lower",
                    baseline="limit",
                    baseline_values=[IDLE_LIMIT_MIB],
                )
            )
        else:
            rows.append(row(f"idle memory of {name}, PSS (Ray's client in it)", [memory.pss / 2**20], "MiB", "lower"))
    config = yaml.safe_load((mesh.state / "config" / "inference.yaml").read_text())
    (name,) = config["models"]
    source = open_source(name, Path(config["models"][name]["path"]))
    codec = open_codec(name, source.files[0] if source.format == "gguf" else source.directory, max_tokens=65536)

    def ids(question: str) -> tuple[int, ...]:
        return tuple(codec.encode_conversation([Message("user", question)]).token_ids)

    singles, rounds, long = (8, 2, 64) if quick else (24, 5, 128)
    first: dict[str, list[float]] = {"engine": [], "mesh": []}
    alone: dict[str, list[float]] = {"engine": [], "mesh": []}
    many: dict[str, list[float]] = {"engine": [], "mesh": []}
    many_first: dict[str, list[float]] = {"engine": [], "mesh": []}
    spent: list[float] = []
    async with connect_local_async(mesh.state) as client, engine_alone(mesh, name) as ask_engine:
        number = 0

        def questions(count: int) -> list[str]:
            nonlocal number
            number += count
            return [QUESTION.format(number=1000 + number - index) for index in range(count)]

        await ask_mesh(client, questions(2), 16)
        await ask_engine([ids(question) for question in questions(2)], 16)
        for _ in range(singles):
            (heard,) = await ask_engine([ids(question) for question in questions(1)], 24)
            first["engine"].append(heard.first_s * 1000)
            alone["engine"].append((heard.tokens - 1) / (heard.total_s - heard.first_s))
            (heard,) = await ask_mesh(client, questions(1), 24)
            first["mesh"].append(heard.first_s * 1000)
            alone["mesh"].append((heard.tokens - 1) / (heard.total_s - heard.first_s))
        for _ in range(rounds):
            begun = time.perf_counter()
            answers = await ask_engine([ids(question) for question in questions(STREAMS)], long)
            many["engine"].append(sum(answer.tokens for answer in answers) / (time.perf_counter() - begun))
            many_first["engine"] += [answer.first_s * 1000 for answer in answers]
            begun, used = time.perf_counter(), cpu_s(services)
            answers = await ask_mesh(client, questions(STREAMS), long)
            tokens = sum(answer.tokens for answer in answers)
            many["mesh"].append(tokens / (time.perf_counter() - begun))
            many_first["mesh"] += [answer.first_s * 1000 for answer in answers]
            spent.append((cpu_s(services) - used) / tokens * 1e6)
    added = [mesh_ms - engine_ms for mesh_ms, engine_ms in zip(first["mesh"], first["engine"], strict=True)]
    engine = "engine alone"
    return [
        *rows,
        row("first token, 1 stream", first["mesh"], "ms", "lower", baseline=engine, baseline_values=first["engine"]),
        row("first token added by the mesh, 1 stream", added, "ms", "lower", baseline="limit", baseline_values=[TTFT_LIMIT_MS]),
        row(
            "tokens/s after the first, 1 stream", alone["mesh"], "tok/s", "higher", baseline=engine, baseline_values=alone["engine"]
        ),
        row(
            f"first token, {STREAMS} streams",
            many_first["mesh"],
            "ms",
            "lower",
            baseline=engine,
            baseline_values=many_first["engine"],
        ),
        row(f"tokens/s, {STREAMS} streams", many["mesh"], "tok/s", "higher", baseline=engine, baseline_values=many["engine"]),
        row(f"CPU of the services a token, {STREAMS} streams", spent, "µs", "lower"),
    ]


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="at most five minutes")
    parser.add_argument("--config", type=Path, help="settings for `lionrock up`")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lionrock-bench-") as directory:
        state = Path(directory) / "state"
        config = arguments.config or Path(directory) / "up.yaml"
        if arguments.config is None:
            config.write_text("{}\n")
        subprocess.run(
            [str(Path(sys.executable).parent / "lionrock"), "models", "pull", "smollm2-135m-instruct", "--state-dir", str(state)],
            check=True,
            env=os.environ,
        )
        mesh = Mesh(state, config)
        ready_s = mesh.start()
        try:
            rows = asyncio.run(measure(mesh, ready_s, quick=arguments.quick))
        finally:
            mesh.stop()
    print(write("mesh", rows))


if __name__ == "__main__":
    main()
