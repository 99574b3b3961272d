"""What the gateway itself costs with everything on: tokens of people, Cedar, quotas, audit log, guardrails, receipts.

Requests a second and core: short questions, 64 at a time, as fast as they are answered; processor seconds of the gateway's process
a request. What the other services need beside it does not count, and what the client needs neither.

The gateway's own time: 64 answers open at a time, written at the pace of an engine, so that the machine is not full. From the spans
of all services: the gateway's span of a request, less the time in which another service had the request (Inspect, Encode, Append,
Generate by their own server spans). Wires, waiting for a turn of the event loop, and the exchanges of the streams that decode and
judge the answer are in it: an upper bound.

    python -m benchmarks.gateway_overhead [--quick] [--profile FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import ssl
import statistics
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from benchmarks.gateway_mesh import MODEL, GatewayMesh, gateway_mesh
from benchmarks.report import Row, row, write
from lionrock.cli.spans import Span, parse_line
from lionrock.common.v1 import chat_pb2 as chat
from lionrock.common.v1 import sampling_pb2 as sampling
from lionrock.gateway.v1 import gateway_pb2 as gw
from lionrock.gateway.v1.gateway_pb2_grpc import GatewayServiceStub
from lionrock.modelstore.store import ModelStore
from lionrock.tokenization.codec import open_codec

QUESTION = "Which rivers flow into the Pearl River Delta? Answer in a few words."
ANSWER = "The Xi, the Bei and the Dong, and some smaller ones."
CONCURRENT = 64
PEOPLE = 8
OWN_LIMIT_MS, CORE_LIMIT, HTTP_LIMIT = 3.0, 300.0, 1.3
TOKEN_S = 0.05
"""Pace of the engine where the gateway's own time is measured."""
SERVED = frozenset({"lionrock.gateway.v1.GatewayService/Chat", "lionrock.gateway.openai/ChatCompletions"})
WAITED_FOR = frozenset({"Inspect", "Encode", "Append", "Generate"})

Ask = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Load:
    """One run: processor seconds of the gateway, seconds by the wall, and of each answer the seconds that it took."""

    cpu_s: float
    wall_s: float
    took_s: list[float]

    @property
    def per_core(self) -> float:
        """Requests a second and core of the gateway."""
        return len(self.took_s) / self.cpu_s


class GrpcClients:
    """People who ask over gRPC."""

    def __init__(self, mesh: GatewayMesh) -> None:
        credentials = grpc.ssl_channel_credentials(mesh.ca_file.read_bytes())
        options = [("grpc.ssl_target_name_override", "gateway.lionrock.internal"), ("grpc.use_local_subchannel_pool", 1)]
        self._channels = [grpc.aio.secure_channel(mesh.token_target, credentials, options=options) for _ in range(PEOPLE)]
        self._stubs = [GatewayServiceStub(channel) for channel in self._channels]
        self._tokens = [mesh.issuer.token(f"person-{number}") for number in range(PEOPLE)]
        self._next = 0
        self._request = gw.ChatRequest(
            model=MODEL,
            messages=[chat.ChatMessage(role=chat.CHAT_ROLE_USER, content=QUESTION)],
            sampling=sampling.SamplingParams(max_tokens=64),
        )

    async def ask(self) -> None:
        """Ask, and read the answer."""
        person = self._next = (self._next + 1) % PEOPLE
        metadata = (("authorization", f"Bearer {self._tokens[person]}"),)
        last = None
        async for response in self._stubs[person].Chat(self._request, metadata=metadata, timeout=60):
            last = response
        assert last is not None
        assert last.finished.receipt.tlog_proof, "answered, with a receipt"

    async def close(self) -> None:
        """Hang up."""
        for channel in self._channels:
            await channel.close()


class HttpClients:
    """People who ask over HTTP/1.1, by hand: a client library would cost more than the gateway."""

    def __init__(self, mesh: GatewayMesh) -> None:
        self._port = mesh.http_port
        self._context = ssl.create_default_context(cafile=str(mesh.ca_file))
        question = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 64, "temperature": 0}
        body = json.dumps(question).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        head += f"content-length: {len(body)}\r\n"
        self._requests = [
            f"{head}authorization: Bearer {mesh.issuer.token(f'person-{number}')}\r\ncontent-length: {len(body)}\r\n\r\n".encode()
            + body
            for number in range(PEOPLE)
        ]
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._next = 0

    async def ask(self) -> None:
        """Ask, and read the answer."""
        person = self._next = (self._next + 1) % PEOPLE
        if self._free:
            reader, writer = self._free.pop()
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port, ssl=self._context, server_hostname="localhost")
        writer.write(self._requests[person])
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        lines = (line.partition(b":") for line in head.lower().split(b"\r\n"))
        size = next(int(value) for name, _, value in lines if name == b"content-length")
        answer = json.loads(await reader.readexactly(size))
        assert answer["lionrock"]["answers"][0]["receipt"], "answered, with a receipt"
        self._free.append((reader, writer))

    async def close(self) -> None:
        """Hang up."""
        for _, writer in self._free:
            writer.close()


async def load(mesh: GatewayMesh, ask: Ask, requests: int) -> Load:
    """Ask so many times, 64 at a time, after an eighth of it for warming up."""
    left = 0
    took: list[float] = []

    async def one_after_the_other() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            began = time.perf_counter()
            await ask()
            took.append(time.perf_counter() - began)

    async def all_of(number: int) -> None:
        nonlocal left
        left = number
        async with asyncio.TaskGroup() as group:
            for _ in range(CONCURRENT):
                group.create_task(one_after_the_other())

    await all_of(max(CONCURRENT, requests // 8))
    took.clear()
    used, began = sum(mesh.gateway.cpu_times()[:2]), time.perf_counter()
    await all_of(requests)
    return Load(sum(mesh.gateway.cpu_times()[:2]) - used, time.perf_counter() - began, took)


def own_ms(spans: Iterable[Span]) -> dict[str, list[float]]:
    """Milliseconds of each request that only the gateway had it, by the name of its RPC."""
    waits: dict[str, list[tuple[int, int]]] = defaultdict(list)
    served: list[Span] = []
    for span in spans:
        if span.service == "gateway":
            served += [span] if span.name in SERVED else []
        elif span.name.rpartition("/")[2] in WAITED_FOR:
            waits[span.trace_id].append((span.start_ns, span.end_ns))
    found: dict[str, list[float]] = defaultdict(list)
    for span in served:
        own = span.duration_ns - _covered(waits[span.trace_id], span.start_ns, span.end_ns)
        found[span.name].append(own / 1e6)
    return found


def _covered(intervals: Sequence[tuple[int, int]], start: int, end: int) -> int:
    """How much of [start, end) the intervals cover together."""
    covered, until = 0, start
    for begin, stop in sorted(intervals):
        begin, stop = max(begin, until), min(stop, end)
        if stop > begin:
            covered += stop - begin
            until = stop
    return covered


def read_spans(directory: Path) -> list[Span]:
    """All spans of all services."""
    return [
        span for path in sorted(directory.glob("*.jsonl*")) for line in path.read_text().splitlines() for span in parse_line(line)
    ]


async def both_doors(mesh: GatewayMesh, requests: int, runs: int) -> dict[str, list[Load]]:
    """Take turns at the doors."""
    doors: dict[str, GrpcClients | HttpClients] = {"gRPC": GrpcClients(mesh), "HTTP": HttpClients(mesh)}
    found: dict[str, list[Load]] = {name: [] for name in doors}
    for _ in range(runs):
        for name, door in doors.items():
            found[name].append(await load(mesh, door.ask, requests))
    for door in doors.values():
        await door.close()
    return found


@contextmanager
def profiled(mesh: GatewayMesh, file: Path | None) -> Iterator[None]:
    """Sample the gateway's stacks, if a file is given, by py-spy, which must be there."""
    if file is None:
        yield
        return
    sampling_it = ["py-spy", "record", "--pid", str(mesh.gateway.pid), "--rate", "200", "--format", "raw", "--output", str(file)]
    process = subprocess.Popen([*sampling_it, "--duration", "600"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def measure(tokenizer: Path, *, quick: bool, profile: Path | None) -> list[Row]:
    """All cases."""
    ids = list(open_codec(MODEL, tokenizer, max_tokens=1024).encode_text(ANSWER).token_ids)
    requests, runs = (400, 2) if quick else (2000, 5)
    rows: list[Row] = []
    for spans in (False,) if profile else (False, True):
        with (
            tempfile.TemporaryDirectory(prefix="lionrock-bench-") as directory,
            gateway_mesh(Path(directory), tokenizer, ids, token_s=0, spans=spans) as mesh,
            profiled(mesh, profile),
        ):
            found = asyncio.run(both_doors(mesh, requests, runs))
        how = "spans written" if spans else "no spans written"
        for door, loads in found.items():
            per_core = [run.per_core for run in loads]
            rows.append(
                row(
                    f"{door}, {how}: requests/s a core", per_core, "req/s", "higher", baseline="limit", baseline_values=[CORE_LIMIT]
                )
            )
            rows.append(row(f"{door}, {how}: CPU a request", [1000 / value for value in per_core], "ms", "lower"))
        ratio = [http.cpu_s / rpc.cpu_s for http, rpc in zip(found["HTTP"], found["gRPC"], strict=True)]
        rows.append(row(f"HTTP by gRPC, {how}: CPU a request", ratio, "", "lower", baseline="limit", baseline_values=[HTTP_LIMIT]))
    if profile:
        return rows
    with (
        tempfile.TemporaryDirectory(prefix="lionrock-bench-") as directory,
        gateway_mesh(Path(directory), tokenizer, ids, token_s=TOKEN_S, spans=True) as mesh,
    ):
        paced = asyncio.run(both_doors(mesh, requests // 2, runs))
        time.sleep(2)  # spans are written behind
        own = own_ms(read_spans(Path(directory) / "spans"))
    for name, values in own.items():
        door = "gRPC" if name.endswith("/Chat") else "HTTP"
        values.sort()
        rows.append(
            row(
                f"{door}: own time, p50",
                [statistics.median(values)],
                "ms",
                "lower",
                baseline="limit",
                baseline_values=[OWN_LIMIT_MS],
            )
        )
        rows.append(row(f"{door}: own time, p99", [values[int(len(values) * 0.99)]], "ms", "lower"))
    for door, loads in paced.items():
        added = [(statistics.median(run.took_s) - TOKEN_S * len(ids)) * 1000 for run in loads]
        rows.append(row(f"{door}: added to the engine's time, all services, p50", added, "ms", "lower"))
    took = [
        statistics.median(http.took_s) / statistics.median(rpc.took_s)
        for http, rpc in zip(paced["HTTP"], paced["gRPC"], strict=True)
    ]
    rows.append(row("HTTP by gRPC: time of an answer, p50", took, "", "lower", baseline="limit", baseline_values=[HTTP_LIMIT]))
    return rows


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer requests")
    parser.add_argument("--tokenizer", type=Path, help="a GGUF file; unset: SmolLM2's is pulled")
    parser.add_argument("--profile", type=Path, help="write where the gateway spends its time, by py-spy, and measure less")
    arguments = parser.parse_args()
    tokenizer = arguments.tokenizer
    if tokenizer is None:
        (tokenizer,) = ModelStore(Path(".cache/benchmarks/models")).pull(MODEL).files
    rows = measure(tokenizer, quick=arguments.quick, profile=arguments.profile)
    if arguments.profile:
        for entry in rows:
            print(f"{entry.case}: {entry.value:.4g} {entry.unit}, slowed by the profiler")
    else:
        print(write("gateway_overhead", rows))


if __name__ == "__main__":
    main()
