"""Which models the engines serve, as lately seen: what an empty model name means, and what ListModels shows.

Knows names and placements; does not decide who may use them, but that a model of one tenant is nothing to another. The list is
asked for at most once a `fresh_s`, or when routes have changed, by one request at a time, so that a crowd of callers costs the
engines one call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from lionrock.chassis.errors import InvalidField
from lionrock.gateway import errors
from lionrock.gateway.access_policies import AccessPolicies
from lionrock.gateway.authorization import AccessRequest
from lionrock.gateway.engines import Engines, no_such_model
from lionrock.gateway.peers import Deadline
from lionrock.gateway.tenants import Principal
from lionrock.inference.v1 import inference_pb2 as inf


class ServedModels:
    """A short memory of the engines' ListModels."""

    def __init__(self, engines: Engines, fresh_s: float) -> None:
        """`fresh_s`: seconds for which an answer is believed."""
        self._engines = engines
        self._version = engines.version
        self._fresh_s = fresh_s
        self._models: Sequence[inf.ServedModel] = ()
        self._fresh_until = float("-inf")
        self._asking = asyncio.Lock()

    async def usable_by(
        self, policies: AccessPolicies, principal: Principal, asked: AccessRequest, deadline: Deadline
    ) -> Sequence[inf.ServedModel]:
        """Return the models that are served to the tenant and for which the question is permitted, by name.

        Raises InferenceUnavailable, DecisionFailedError.
        """
        share, table = principal.tenant.share, self._engines.table
        return [
            model
            for model in await self._listed(deadline)
            if table.route(model.identity.model, share) is not None
            and policies.decide(principal, replace(asked, model=model.identity.model)).allowed
        ]

    async def offers(self, name: str, option: str, deadline: Deadline) -> bool:
        """Whether a model's engine lately said that it offers a sampling option. Raises InferenceUnavailable."""
        models = await self._listed(deadline)
        return any(model.identity.model == name and option in model.sampling_options for model in models)

    async def _listed(self, deadline: Deadline) -> Sequence[inf.ServedModel]:
        if self._stale():
            async with self._asking:
                if self._stale():
                    version = self._engines.version
                    self._models = await self._engines.list_models(deadline)
                    self._version, self._fresh_until = version, asyncio.get_running_loop().time() + self._fresh_s
        return self._models

    def _stale(self) -> bool:
        return asyncio.get_running_loop().time() >= self._fresh_until or self._version != self._engines.version

    async def resolve(self, policies: AccessPolicies, principal: Principal, asked: AccessRequest, deadline: Deadline) -> str:
        """Return the model that a permitted question means: the one that it names, or the only one for which it is permitted.

        Raises InvalidField when there are several, ModelNotFound when there is none, InferenceUnavailable. A name is looked up in
        the routes only: the tokenizer and the engines know best what they serve.
        """
        name = asked.model
        if name is not None:
            if self._engines.table.route(name, principal.tenant.share) is None:
                raise no_such_model()
            return name
        names = [model.identity.model for model in await self.usable_by(policies, principal, asked, deadline)]
        if not names:
            raise errors.ModelNotFound("no model is served that the caller may use")
        if len(names) > 1:
            raise InvalidField("which model?", field_violations=[("model", f"one of: {', '.join(names[:16])}")])
        return names[0]
