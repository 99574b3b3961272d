"""A whole service in a process of its own, for tests of its life: `python small_service.py --config FILE`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from lionrock.chassis.server import AnyTenant, Registration, serve
from lionrock.chassis.settings import ServiceSettings, load_settings
from lionrock.guardrails.v1 import guardrails_pb2 as pb
from lionrock.guardrails.v1 import guardrails_pb2_grpc as rpc


class SmallServiceSettings(ServiceSettings):
    """A service that echoes."""

    model_config = SettingsConfigDict(env_prefix="LIONROCK_SMALL_")

    for_tenants: bool = Field(default=False, description="let tenants call, and no service")


class Echo(rpc.GuardrailsServiceServicer):
    """Releases every chunk as it comes."""

    async def Inspect(self, request: Any, context: Any) -> Any:
        return pb.InspectResponse(action=pb.ACTION_ALLOW)

    async def InspectStream(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        async for request in request_iterator:
            if request.chunk.text == "raise":
                raise ValueError("canary-4f1d")
            yield pb.InspectStreamResponse(released=request.chunk.text)


if __name__ == "__main__":
    settings = load_settings(SmallServiceSettings, sys.argv[1:])
    registration = Registration(
        rpc.add_GuardrailsServiceServicer_to_server,
        Echo(),
        "lionrock.guardrails.v1.GuardrailsService",
        AnyTenant() if settings.for_tenants else frozenset({"gateway"}),
    )
    asyncio.run(serve(settings, "guardrails", [registration]))
