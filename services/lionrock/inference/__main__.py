"""`python -m lionrock.inference --config FILE`: the front, with Ray and the deployments behind it."""

from __future__ import annotations

import asyncio
import logging
import sys

from lionrock.chassis.server import Registration, serve
from lionrock.chassis.settings import load_settings
from lionrock.inference.backends.choice import check_backend
from lionrock.inference.backends.vllm_options import BackendUnavailable
from lionrock.inference.front import Front, RayUnavailable
from lionrock.inference.model.errors import ModelError
from lionrock.inference.served_model import describe_model
from lionrock.inference.servicer import InferenceServicer
from lionrock.inference.settings import InferenceSettings
from lionrock.inference.v1 import inference_pb2_grpc
from lionrock.modelstore.errors import ModelStoreError
from lionrock.planner.chips import UnknownChip
from lionrock.planner.plan import PlanError

log = logging.getLogger("lionrock.inference")


async def run(settings: InferenceSettings) -> None:
    """Serve until told to stop. Raises SystemExit(1), having said why, when a model or Ray is unusable."""
    try:
        # Where somebody else declares the applications, their replicas say what they serve: the files need not be here.
        described = settings.models.items() if settings.ray.deploy else ()
        models = {name: describe_model(name, model) for name, model in described}
        for model in models.values():
            check_backend(model, settings.application(model.name), runs_here=settings.ray.address is None)
    except (ModelStoreError, ModelError, UnknownChip, PlanError, BackendUnavailable) as error:
        raise SystemExit(f"lionrock inference: {error}") from None
    front = Front(settings, models)
    servicer = InferenceServicer(front.models)
    registration = Registration(
        inference_pb2_grpc.add_InferenceServiceServicer_to_server,
        servicer,
        "lionrock.inference.v1.InferenceService",
        frozenset({"gateway"}),
    )
    starting = asyncio.create_task(front.start(), name="lionrock-start")
    serving = asyncio.create_task(serve(settings, "inference", [registration], readiness=front.readiness()), name="lionrock-serve")
    try:
        await asyncio.wait({starting, serving}, return_when=asyncio.FIRST_COMPLETED)
        if not serving.done():
            await starting
        await serving
    except RayUnavailable as error:
        log.error("%s", error)
        raise SystemExit(f"lionrock inference: {error}") from None
    finally:
        starting.cancel()
        serving.cancel()
        await asyncio.gather(starting, serving, return_exceptions=True)
        await front.close()


if __name__ == "__main__":
    asyncio.run(run(load_settings(InferenceSettings, sys.argv[1:])))
