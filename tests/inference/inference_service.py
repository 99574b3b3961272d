"""The inference service as its users meet it: a process of its own, real Ray, mutual TLS, and a look at its processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lionrock.chassis.channel import open_channel
from lionrock.chassis.errors import RemoteError, remote_error
from lionrock.chassis.ids import uuid7
from lionrock.chassis.settings import PeerSettings, TlsSettings
from lionrock.common.v1 import context_pb2, sampling_pb2
from lionrock.inference.v1 import inference_pb2 as pb
from lionrock.inference.v1 import inference_pb2_grpc
from mesh_ca import DevCa

MODEL = "smollm2"
MAX_RUNNING, MAX_WAITING = 4, 2
RANKS = 2
PROMPT = (1, 4093, 198, 504, 3575, 282, 4649, 314, 2, 198, 1, 520, 9531, 198)
START_S = 110.0


def tls_settings(tls: TlsSettings) -> dict[str, str]:
    return {name: str(path) for name, path in tls.model_dump().items()}


def write_configuration(ca: DevCa, directory: Path, model: Path) -> Path:
    """Configuration of one model over two ranks in float32."""
    ray_identity = ca.authority.issue("spiffe://lionrock.local/service/ray", ip_addresses=("127.0.0.1", "127.0.0.2"))
    token = directory / "ray-token"
    token.write_text(os.urandom(32).hex())
    token.chmod(0o600)
    configuration = {
        "server": {
            "tls": tls_settings(ca.issue("inference")),
            "trust_domain": "lionrock.local",
            "ready_file": str(directory / "ready"),
            "drain_grace_s": 2,
        },
        "telemetry": {"span_dir": str(directory / "traces")},
        "models": {
            MODEL: {
                "path": str(model),
                "dtype": "float32",
                "tensor_parallel": RANKS,
                "threads_per_rank": 1,
                "kv_cache_bytes": 64 << 20,
                "limits": {"max_running": MAX_RUNNING, "max_waiting": MAX_WAITING},
            }
        },
        "ray": {"tls": tls_settings(ray_identity.write(directory / "certs" / "ray")), "token_file": str(token)},
    }
    path = directory / "inference.yaml"
    path.write_text(yaml.safe_dump(configuration))
    return path


def generate_request(*, max_tokens: int = 16, token_ids: tuple[int, ...] = PROMPT, **fields: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        **{
            "context": context_pb2.RequestContext(
                request_id=uuid7(),
                tenant="acme",
                actor="spiffe://lionrock.local/tenant/acme/user/ada",
                auth_method=context_pb2.AUTH_METHOD_MTLS,
                roles=["officer"],
                purpose="demonstration",
                territory="HK",
                profile="default",
            ),
            "model": MODEL,
            "token_ids": token_ids,
            "sampling": sampling_pb2.SamplingParams(max_tokens=max_tokens, ignore_eos=True),
            **fields,
        }
    )


@dataclass
class Answer:
    """What one stream brought."""

    tokens: list[int]
    started: pb.GenerateResponse.Started | None = None
    finished: pb.GenerateResponse.Finished | None = None
    error: RemoteError | None = None


class InferenceService:
    """A running service."""

    def __init__(self, directory: Path, model: Path) -> None:
        self.directory = directory
        self.ca = DevCa(directory)
        self.gateway = self.ca.issue("gateway")
        configuration = write_configuration(self.ca, directory, model)
        self.log_file = directory / "inference.log"
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "lionrock.inference", "--config", str(configuration)],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def target(self) -> str:
        return f"127.0.0.1:{(self.directory / 'ready').read_text().strip()}"

    def descendants(self, name: str = "") -> list[psutil.Process]:
        found = psutil.Process(self.process.pid).children(recursive=True)
        return [process for process in found if name in process_title(process)]

    def shards(self) -> list[psutil.Process]:
        """The ranks. A spare is always younger than the ranks whose places it waits for."""
        return sorted(self.descendants("ShardActor"), key=lambda process: process.create_time())[:RANKS]

    def stop(self) -> list[str]:
        """SIGTERM; returns the titles of processes that outlive the service."""
        family = self.descendants()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=60)
        return survivors(family, within_s=15)

    @contextlib.asynccontextmanager
    async def stub(self, tls: TlsSettings | None = None) -> AsyncIterator[inference_pb2_grpc.InferenceServiceAsyncStub]:
        peer = PeerSettings(target=self.target, service="inference")
        async with open_channel(peer, tls or self.gateway, name="gateway") as channel:
            yield inference_pb2_grpc.InferenceServiceStub(channel)  # type: ignore[misc]

    async def answer(self, stub: Any, request: pb.GenerateRequest, *, timeout_s: float = 60) -> Answer:
        answer = Answer([])
        try:
            async for message in stub.Generate(request, timeout=timeout_s):
                match message.WhichOneof("message"):
                    case "started":
                        answer.started = message.started
                    case "tokens":
                        answer.tokens += message.tokens.token_ids
                    case "finished":
                        answer.finished = message.finished
        except grpc.aio.AioRpcError as error:
            answer.error = remote_error(error)
        return answer

    async def served(self, stub: Any) -> pb.ServedModel:
        (model,) = (await stub.ListModels(pb.ListModelsRequest(), timeout=5)).models
        return model

    async def health(self) -> int:
        """Status that health checks get."""
        peer = PeerSettings(target=self.target, service="inference")
        async with open_channel(peer, self.gateway, name="gateway") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            return (await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)).status  # type: ignore[no-any-return]

    async def wait_ready(self, *, ready: bool = True, within_s: float = START_S) -> float:
        """Poll ListModels until it says so; returns the seconds that took."""
        begin_s = time.monotonic()
        while not (self.directory / "ready").exists():
            self._check_alive(begin_s, within_s)
            await asyncio.sleep(0.05)
        async with self.stub() as stub:
            while (await self.served(stub)).ready is not ready:
                self._check_alive(begin_s, within_s)
                await asyncio.sleep(0.05)
        return time.monotonic() - begin_s

    def _check_alive(self, begin_s: float, within_s: float) -> None:
        late = time.monotonic() - begin_s > within_s
        if late or self.process.poll() is not None:
            raise AssertionError(f"not in the awaited state after {within_s} s:\n{self.log_file.read_text()[-4000:]}")

    def spans(self) -> list[dict[str, Any]]:
        """All spans in the span files, with the service that wrote them under `service`."""
        return list(read_spans(self.directory / "traces"))

    async def wait_spans(self, trace_id: str, names: set[str], *, shards: int = 0, within_s: float = 10) -> list[dict[str, Any]]:
        """Spans of a trace once all the names are there, and that of a shard so many times."""
        begin_s = time.monotonic()
        while True:
            found = [span for span in self.spans() if span["traceId"] == trace_id]
            enough = sum(span["name"] == "shard.execute" for span in found) >= shards
            if enough and names <= {span["name"] for span in found}:
                return found
            assert time.monotonic() - begin_s < within_s, f"{names} are not all in {[span['name'] for span in found]}"
            await asyncio.sleep(0.05)


def read_spans(directory: Path) -> Iterator[dict[str, Any]]:
    for path in directory.glob("*.jsonl"):
        for line in path.read_text().splitlines():
            for resource in json.loads(line)["resourceSpans"]:
                attributes = {item["key"]: item["value"] for item in resource["resource"]["attributes"]}
                for scope in resource["scopeSpans"]:
                    for span in scope["spans"]:
                        instance = attributes["service.instance.id"]["stringValue"]
                        yield {**span, "service": attributes["service.name"]["stringValue"], "instance": instance}


def attributes_of(span: dict[str, Any]) -> dict[str, Any]:
    return {item["key"]: next(iter(item["value"].values())) for item in span.get("attributes", [])}


def process_title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()) or process.name()
    except psutil.Error:
        return ""


def survivors(family: list[psutil.Process], *, within_s: float) -> list[str]:
    """Titles of processes that live on; they are then killed, so that a failed test leaves nothing either."""
    _, alive = psutil.wait_procs(family, timeout=within_s)
    titles = [process_title(process) for process in alive]
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    return titles
