"""Output tokens a second at 1, 8 and 32 streams, and the prefill of one long prompt: ours against what people would use instead."""

from __future__ import annotations

import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from benchmarks.engine_cases.bench import CONTEXT, KV_CACHE_BYTES, Bench, counted, settle, timed
from benchmarks.peers import environments
from benchmarks.peers.checkpoint import half_precision_gguf
from benchmarks.peers.environments import NotInstalled
from benchmarks.peers.process import Command, Peer
from benchmarks.report import Row, row
from lionrock.tokenization.codec import open_codec

STREAMS = (1, 8, 32)
PROMPT, OUTPUT, LONG_PROMPT = 128, 128, 512
DECODE = "decode alone, 1 stream"
SINGLE_RUNS, PREFILL_RUNS = 2, 3  # in each round: short runs are noisier

BF16, W8A8, INT4 = "lionrock bf16", "lionrock w8a8", "lionrock int4"
VLLM, OPENVINO, LLAMA_CPP, TRANSFORMERS = "vllm bf16", "openvino bf16", "llama.cpp q4_1", "transformers bf16"
REFERENCE, SAID = BF16, 16
TEXT = Path(__file__).parents[1] / "texts" / "english.txt"
AT_STREAMS = {LLAMA_CPP: (1, 8), TRANSFORMERS: (1, 8)}
"""Where not all of STREAMS are asked of an engine."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What we want to reach: so many times the peer's figure."""

    case: str
    ours: str
    peer: str
    times: float


GOALS = (
    *(Goal(counted(n), BF16, VLLM, times) for n, times in zip(STREAMS, (1.3, 1.1, 1.0), strict=True)),
    *(Goal(counted(n), BF16, OPENVINO, 1.0) for n in STREAMS),
    *(Goal(counted(n), W8A8, VLLM, times) for n, times in zip(STREAMS, (2.0, 1.5, 1.3), strict=True)),
    Goal(DECODE, INT4, LLAMA_CPP, 1.0),
    Goal("prefill of 512 tokens", BF16, VLLM, 1.2),
)


def commands(bench: Bench) -> list[Command]:
    """Every engine that can be had here; the others are noted as absent."""
    ours = [
        bench.lionrock(BF16),
        bench.lionrock(W8A8, quantisation="int8-w8a8"),
        bench.lionrock(INT4, quantisation="int4-weight-only"),
    ]
    peers = {VLLM: _vllm, OPENVINO: _openvino, LLAMA_CPP: _llama_cpp, TRANSFORMERS: _transformers}
    found = list(ours)
    for name, make in peers.items():
        if bench.only_engines is not None and name not in bench.only_engines:
            continue
        try:
            found.append(make(bench))
        except NotInstalled as error:
            bench.note_absent(name, f"not installed: {error}")
    return [command for command in found if bench.only_engines is None or command.name in bench.only_engines]


def measure(bench: Bench) -> list[Row]:
    """Measure all engines, case by case, engine by engine, round by round."""
    runs: dict[tuple[str, str], list[float]] = defaultdict(list)
    with bench.running(commands(bench)) as peers:
        alike = _alike(bench, list(peers.values()))
        for number in range(1, bench.rounds + 1):
            for streams in STREAMS:
                for peer in peers.values():
                    if streams in AT_STREAMS.get(peer.name, STREAMS):
                        _measure_streams(bench, peer, streams, number, runs)
            for peer in peers.values():
                for repeat in range(PREFILL_RUNS):
                    settle()
                    (prompt,) = bench.prompts(1000 * number + repeat, 1, LONG_PROMPT)
                    runs["prefill of 512 tokens", peer.name].append(LONG_PROMPT / timed(peer, [prompt], 1).first_s[0])
            print(f"round {number} of {bench.rounds}", flush=True)
        memory = {peer.name: [peer.memory_mib()] for peer in peers.values()}
    rows = [row(f"{case}: {name}", values, "tok/s", "higher") for (case, name), values in _by_case(runs)]
    rows += [row(f"memory after it, PSS: {name}", values, "MiB", "lower") for name, values in memory.items()]
    case = f"first tokens equal to those of {REFERENCE}, of {SAID}"
    rows += [row(f"{case}: {name}", [count], "tok", "higher") for name, count in alike.items()]
    return rows + _against_goals(runs)


def _alike(bench: Bench, peers: list[Peer]) -> dict[str, float]:
    """Ask for the same text's continuation: engines that hold one model begin alike, and part later where two tokens nearly tie."""
    codec = open_codec("model", bench.gguf)
    prompt = codec.encode_text(TEXT.read_text("utf-8")).token_ids[:LONG_PROMPT]
    said: dict[str, list[int]] = {}
    for peer in peers:
        peer.release()
        (answer,) = peer.answer([list(prompt)], SAID)
        peer.hold()
        said[peer.name] = answer.token_ids
    reference = said.get(REFERENCE)
    if reference is None:
        return {}
    equal = {name: [mine == theirs for mine, theirs in zip(tokens, reference, strict=True)] for name, tokens in said.items()}
    return {name: float([*flags, False].index(False)) for name, flags in equal.items() if name != REFERENCE}


def _measure_streams(bench: Bench, peer: Peer, streams: int, number: int, runs: dict[tuple[str, str], list[float]]) -> None:
    for repeat in range(SINGLE_RUNS if streams == 1 else 1):
        settle()
        result = timed(peer, bench.prompts(1000 * number + repeat, streams, PROMPT), OUTPUT)
        runs[counted(streams), peer.name].append(result.rate)
        if streams == 1:
            runs[DECODE, peer.name].append(result.decode_rate)


def _by_case(runs: dict[tuple[str, str], list[float]]) -> list[tuple[tuple[str, str], list[float]]]:
    order = list(dict.fromkeys(case for case, _ in runs))
    return sorted(runs.items(), key=lambda item: order.index(item[0][0]))


def _against_goals(runs: dict[tuple[str, str], list[float]]) -> list[Row]:
    return [
        row(
            f"{goal.case}: {goal.ours} / {goal.peer}, goal {goal.times}",
            runs[goal.case, goal.ours],
            "tok/s",
            "higher",
            baseline=goal.peer,
            baseline_values=runs[goal.case, goal.peer],
        )
        for goal in GOALS
        if (goal.case, goal.ours) in runs and (goal.case, goal.peer) in runs
    ]


def _vllm(bench: Bench) -> Command:
    cores = ",".join(map(str, bench.cores))
    told = {"model": str(bench.bfloat16), "kv_cache_bytes": KV_CACHE_BYTES, "context": CONTEXT}
    environment = {
        "VLLM_CPU_OMP_THREADS_BIND": cores,
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "VLLM_CACHE_ROOT": str(environments.CACHE / "vllm"),
        "HF_HUB_OFFLINE": "1",
    }
    return Command(VLLM, environments.vllm(), "vllm_engine", told, environment)


def _openvino(bench: Bench) -> Command:
    model = half_precision_gguf(bench.gguf, environments.CACHE)
    told = {"model": str(model), "kv_cache_bytes": KV_CACHE_BYTES, "threads": len(bench.cores)}
    return Command(OPENVINO, environments.openvino(), "openvino_engine", told)


def _llama_cpp(bench: Bench) -> Command:
    told = {
        "model": str(bench.gguf),
        "threads": len(bench.cores),
        "context": LONG_PROMPT + OUTPUT,
        "streams": max(AT_STREAMS[LLAMA_CPP]),
    }
    return Command(LLAMA_CPP, environments.llama_cpp(), "llama_cpp_engine", told)


def _transformers(bench: Bench) -> Command:
    told = {"model": str(bench.bfloat16), "threads": len(bench.cores)}
    return Command(TRANSFORMERS, Path(sys.executable), "transformers_engine", told, {"HF_HUB_OFFLINE": "1"})
