"""What a model would be on each pool that it may run on: plan and template, or why it cannot be.

Pools in the owner's order of preference, else every pool of the territory by name. Plans do not depend on which nodes are there at
the moment, so that nodes which come and go change no revision. Does not know free chips.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, get_args

from lionrock.operator.conditions import Reason
from lionrock.operator.placement import Candidate
from lionrock.operator.pools import PoolProblem, ResolvedPool
from lionrock.operator.resources import ChipPool, ModelDeployment, ObjectKey, PoolName
from lionrock.operator.revision_template import RevisionTemplate, template_of
from lionrock.operator.world import World
from lionrock.planner.chips import Chip
from lionrock.planner.fitting import Workload
from lionrock.planner.memory import ModelShape, UnsupportedArchitecture
from lionrock.planner.model_config import shape_of_config, weight_dtype_of_config
from lionrock.planner.replica import Backend, Chips, Parallelism, PlanError, ReplicaPlan, held_weights, plan_replica

_BACKENDS: Final[Mapping[str, Backend]] = {name: name for name in get_args(Backend)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A pool that the model can run on, and as what."""

    pool: ResolvedPool
    plan: ReplicaPlan
    template: RevisionTemplate

    @property
    def candidate(self) -> Candidate:
        """What placing must know of it."""
        return candidate_of(self.template)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A pool that it cannot run on."""

    pool: PoolName
    reason: Reason
    message: str


def candidate_of(template: RevisionTemplate) -> Candidate:
    """Say what placing must know of a revision."""
    return Candidate(
        pool=template.pool,
        revision=template.digest,
        chips_per_pod=template.chips_per_pod,
        pods_per_replica=template.pods_per_replica,
    )


def pools_of(world: World, model: ModelDeployment) -> tuple[PoolName, ...]:
    """Pools that the model may use, those that it prefers first."""
    if model.spec.pools:
        return tuple(dict.fromkeys(model.spec.pools))
    return tuple(
        sorted(name for name, pool in world.pools.items() if isinstance(pool, ChipPool) and pool.territory == model.spec.territory)
    )


def options_of(world: World, model: ModelDeployment, config: Mapping[str, Any]) -> list[Option | Refused]:
    """Plan the model for each of its pools. Raises UnsupportedArchitecture for one that is not served."""
    shape, written = shape_of_config(config), weight_dtype_of_config(config)
    return [_option(world, model, pool, shape, written) for pool in pools_of(world, model)]


def _option(world: World, model: ModelDeployment, name: PoolName, shape: ModelShape, written: str | None) -> Option | Refused:
    pool = world.resolved(name)
    if pool is None:
        return Refused(pool=name, reason=Reason.NO_POOL, message="there is no such pool")
    if isinstance(pool, PoolProblem):
        return Refused(pool=name, reason=pool.reason, message=pool.message)
    if pool.pool.territory != model.spec.territory:
        told = f"it stands in {pool.pool.territory}, the model stays in {model.spec.territory}"
        return Refused(pool=name, reason=Reason.NO_POOL, message=told)
    if pool.problem is not None:
        return Refused(pool=name, reason=pool.problem.reason, message=pool.problem.message)
    if (elsewhere := _kept(world, model, name)) is not None:
        return Refused(pool=name, reason=Reason.NO_POOL, message=elsewhere)
    spec = model.spec
    given = None if spec.parallelism is None else (spec.parallelism.tensor, spec.parallelism.pipeline)
    asked = (spec.workload.concurrency, spec.workload.context_tokens, spec.dtype, spec.weight_quantisation, written, given)
    plan = _plan(shape, pool.chip, pool.pool.engine_backend, *asked)
    if isinstance(plan, str):
        return Refused(pool=name, reason=Reason.DOES_NOT_FIT, message=plan)
    return Option(pool=pool, plan=plan, template=template_of(model, pool, plan))


def _kept(world: World, model: ModelDeployment, pool: PoolName) -> str | None:
    """Why tenants keep the model off a pool: it is another one's, or not among those that the model's own tenant keeps to."""
    tenant = None if model.spec.tenant is None else ObjectKey(model.key.namespace, model.spec.tenant)
    keepers = world.keepers_of(pool)
    if strangers := [keeper for keeper in keepers if keeper != tenant]:
        return f"it is kept for tenant {strangers[0]}"
    if tenant is not None and tenant not in keepers and (own := world.pools_kept_for(tenant)):
        return f"tenant {tenant.name} keeps to {', '.join(own)}"
    return None


@lru_cache(maxsize=8192)
def _plan(
    shape: ModelShape,
    chip: Chip,
    engine: str,
    concurrency: int,
    context_tokens: int,
    dtype: str,
    asked: str | None,
    written: str | None,
    given: tuple[int, int] | None,
) -> ReplicaPlan | str:
    """Plan, or why there is none. The same models are planned for the same chips at every decision."""
    backend = _BACKENDS[engine]
    try:
        return plan_replica(
            shape,
            Chips(chip=chip),
            workload=Workload(sequences=concurrency, tokens_per_sequence=context_tokens),
            dtype=dtype,
            weight_dtype=held_weights(written, asked, backend),
            parallelism=None if given is None else Parallelism(*given),
            backend=backend,
        )
    except PlanError as error:
        return str(error)


__all__ = ["Option", "Refused", "UnsupportedArchitecture", "candidate_of", "options_of", "pools_of"]
