"""The wire's side of inference: requests to a model's replicas, frames to messages, nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc

from lionrock.chassis.calls import current_call
from lionrock.chassis.telemetry import set_request_id, tracer
from lionrock.inference.errors import ModelNotFound
from lionrock.inference.front import ModelFront
from lionrock.inference.spans import current_traceparent
from lionrock.inference.v1 import inference_pb2 as pb
from lionrock.inference.v1 import inference_pb2_grpc


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """See protos/lionrock/inference/v1/inference.proto."""

    def __init__(self, models: Mapping[str, ModelFront]) -> None:
        self._models = models

    async def Generate(  # noqa: N802
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.GenerateResponse]:
        """See the proto."""
        del context
        set_request_id(request.context.request_id)
        front = self._models.get(request.model)
        if front is None:
            raise ModelNotFound("no model of that name is served here")
        call = current_call()
        assert call is not None, "the chassis admitted this RPC"
        with tracer().start_as_current_span("inference.generate", record_exception=False) as span:
            span.set_attribute("gen_ai.request.model", request.model)
            timeout_s = call.deadline - asyncio.get_running_loop().time()
            messages = front.generate(request.SerializeToString(), current_traceparent(), timeout_s)
            try:
                async for message in messages:
                    yield message
            finally:
                await messages.aclose()  # type: ignore[attr-defined]

    async def ListModels(  # noqa: N802
        self, request: pb.ListModelsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.ListModelsResponse:
        """See the proto."""
        del request, context
        return pb.ListModelsResponse(models=[self._served(name) for name in sorted(self._models)])

    def _served(self, name: str) -> pb.ServedModel:
        front = self._models[name]
        served = pb.ServedModel(ready=front.ready, replicas=front.replicas)
        served.MergeFrom(front.served)
        return served
