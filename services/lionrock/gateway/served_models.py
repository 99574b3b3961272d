"""Which models the engine serves, as lately seen: what an empty model name means, and what ListModels shows.

Knows names and placements; does not decide who may use them. The list is asked for at most once a `fresh_s`, by one request at a
time, so that a crowd of callers costs the engine one call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from lionrock.chassis.errors import InvalidField
from lionrock.gateway import errors
from lionrock.gateway.peers import Deadline, Inference
from lionrock.gateway.tenants import Principal
from lionrock.inference.v1 import inference_pb2 as inf


class ServedModels:
    """A short memory of the engine's ListModels."""

    def __init__(self, inference: Inference, fresh_s: float) -> None:
        """`fresh_s`: seconds for which an answer is believed."""
        self._inference = inference
        self._fresh_s = fresh_s
        self._models: Sequence[inf.ServedModel] = ()
        self._fresh_until = float("-inf")
        self._asking = asyncio.Lock()

    async def usable_by(self, principal: Principal, deadline: Deadline) -> Sequence[inf.ServedModel]:
        """Return the served models that the grant names, by name. Raises InferenceUnavailable."""
        return [model for model in await self._listed(deadline) if principal.may_use(model.identity.model)]

    async def offers(self, name: str, option: str, deadline: Deadline) -> bool:
        """Whether a model's engine lately said that it offers a sampling option. Raises InferenceUnavailable."""
        models = await self._listed(deadline)
        return any(model.identity.model == name and option in model.sampling_options for model in models)

    async def _listed(self, deadline: Deadline) -> Sequence[inf.ServedModel]:
        loop = asyncio.get_running_loop()
        if loop.time() >= self._fresh_until:
            async with self._asking:
                if loop.time() >= self._fresh_until:
                    self._models = await self._inference.list_models(deadline)
                    self._fresh_until = loop.time() + self._fresh_s
        return self._models

    async def resolve(self, principal: Principal, name: str, deadline: Deadline) -> str:
        """Return the model that a request means: the name, or the only usable one.

        Raises InvalidField when there are several, ModelNotFound when there is none, InferenceUnavailable. A name is not looked
        up here: the tokenizer and the engine know best what they serve.
        """
        if name:
            return name
        names = [model.identity.model for model in await self.usable_by(principal, deadline)]
        if not names:
            raise errors.ModelNotFound("no model is served that the caller may use")
        if len(names) > 1:
            raise InvalidField("which model?", field_violations=[("model", f"one of: {', '.join(names[:16])}")])
        return names[0]
