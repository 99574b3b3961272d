"""The engine that only the benchmark of the gateway uses: it says what it was told to say, as fast as it was told.

A gRPC service with a certificate of the mesh, written to inference.proto. What it costs is nobody's concern here: it runs in a
process of its own, and its spans say how long it had each call.

    python -m benchmarks.gateway_engine --config FILE
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from lionrock.chassis.server import Registration, serve
from lionrock.chassis.settings import ServiceSettings, load_settings
from lionrock.common.v1 import model_pb2 as model
from lionrock.common.v1 import sampling_pb2 as sampling
from lionrock.inference.v1 import inference_pb2 as inf
from lionrock.inference.v1 import inference_pb2_grpc as rpc


class EngineSettings(ServiceSettings):
    """What it says."""

    model_config = SettingsConfigDict(env_prefix="LIONROCK_BENCHMARK_")

    model: str = Field(description="name of the model that it says it is")
    token_ids: tuple[int, ...] = Field(description="the answer to everything")
    token_s: float = Field(default=0.0, ge=0, description="time from one token to the next; 0: all in one message")


class Said(rpc.InferenceServiceServicer):
    """Says its answer."""

    def __init__(self, settings: EngineSettings) -> None:
        self._ids = settings.token_ids
        self._token_s = settings.token_s
        self._identity = model.ModelIdentity(model=settings.model, weights_digest="sha256:" + "0" * 64, engine="benchmark/1")

    async def Generate(self, request: inf.GenerateRequest, context: Any) -> AsyncIterator[inf.GenerateResponse]:  # noqa: N802
        """Answer."""
        del context
        yield inf.GenerateResponse(started=inf.GenerateResponse.Started(model=self._identity))
        if not self._token_s:
            yield inf.GenerateResponse(tokens=inf.GenerateResponse.Tokens(token_ids=self._ids))
        else:
            for one in self._ids:
                await asyncio.sleep(self._token_s)
                yield inf.GenerateResponse(tokens=inf.GenerateResponse.Tokens(token_ids=[one]))
        usage = sampling.TokenUsage(prompt_tokens=len(request.token_ids), completion_tokens=len(self._ids))
        yield inf.GenerateResponse(finished=inf.GenerateResponse.Finished(reason=sampling.FINISH_REASON_STOP, usage=usage))

    async def ListModels(self, request: inf.ListModelsRequest, context: Any) -> inf.ListModelsResponse:  # noqa: N802
        """List the one model."""
        del request, context
        return inf.ListModelsResponse(models=[inf.ServedModel(identity=self._identity, context_window=8192, ready=True)])


async def main() -> None:
    """Serve until told to stop."""
    settings = load_settings(EngineSettings, sys.argv[1:])
    name = "lionrock.inference.v1.InferenceService"
    entry = Registration(rpc.add_InferenceServiceServicer_to_server, Said(settings), name, frozenset({"gateway"}))
    await serve(settings, "inference", [entry])


if __name__ == "__main__":
    asyncio.run(main())
