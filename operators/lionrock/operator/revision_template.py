"""Everything that makes a new pod of a model: the template of a revision, and the digest that names it.

It is kept, as JSON, in the revision's ConfigMap, so that an old revision can be corrected, scaled and returned to when the object
that it came from says something else already. What is not in it (replicas, tenancy, weights, sizes that the operator's settings
state) changes no pod that runs. Does not know manifests.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from typing import Any, Final

from lionrock.operator.fields import Fields, Malformed
from lionrock.operator.pools import ResolvedPool
from lionrock.operator.resources import (
    ClaimSource,
    ImageSource,
    ModelDeployment,
    ModelFiles,
    ObjectSource,
    PoolName,
    Revision,
)
from lionrock.planner.replica import ReplicaPlan

TEMPLATE_VERSION: Final = 1
"""Raised when the same template makes other pods that must replace those that run."""
REVISION_DIGITS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class PodBasis:
    """What a pod of a model needs, whether it has chips or not."""

    source: ModelFiles
    image: str
    territory: str
    territory_key: str
    territory_values: tuple[str, ...]
    node_selector: Mapping[str, str]
    tolerations: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RevisionTemplate:
    """What a revision is made of. Mappings have sorted keys when written, so equal templates have equal digests."""

    served_name: str
    source: ModelFiles
    tokenizer_digest: str | None
    dtype: str
    weight_quantisation: str | None
    concurrency: int
    territory: str
    territory_key: str
    territory_values: tuple[str, ...]
    pool: PoolName
    node_selector: Mapping[str, str]
    tolerations: tuple[Mapping[str, Any], ...]
    image: str
    backend: str
    chip: str
    chip_description: Mapping[str, Any] | None
    """Where the chip table has no such row, or not with this memory and these chips a node."""
    resource: str
    ray_resource: str
    on_cpu: bool
    """Whether the chip's memory is the host's."""
    tensor_parallel: int
    pipeline_parallel: int
    chips_per_pod: int
    pods_per_replica: int
    kv_cache_bytes: int
    rank_bytes: int
    """Memory of the largest rank."""
    digest: Revision = field(init=False, compare=False, default=Revision(""))
    """Name of the revision."""

    def __post_init__(self) -> None:
        digest = hashlib.sha256(self.to_json().encode()).hexdigest()[:REVISION_DIGITS]
        object.__setattr__(self, "digest", Revision(digest))

    @property
    def basis(self) -> PodBasis:
        """What its pods need without their chips."""
        return PodBasis(
            source=self.source,
            image=self.image,
            territory=self.territory,
            territory_key=self.territory_key,
            territory_values=self.territory_values,
            node_selector=self.node_selector,
            tolerations=self.tolerations,
        )

    @property
    def model_digest(self) -> str:
        """Digest of what the object's owner decides. Revisions that agree in it differ in where they run alone."""
        ours = {name: getattr(self, name) for name in _OWNERS} | {"source": _source_value(self.source)}
        return hashlib.sha256(_canonical(ours).encode()).hexdigest()

    @property
    def stages_per_pod(self) -> int:
        """Pipeline stages whose chips are in one pod."""
        return self.chips_per_pod // self.tensor_parallel

    def to_json(self) -> str:
        """Text that `template_from_json` reads, the same for equal templates."""
        stated = {each.name: getattr(self, each.name) for each in fields(self) if each.init}
        return _canonical(stated | {"source": _source_value(self.source), "version": TEMPLATE_VERSION})


_OWNERS: Final = frozenset(
    {"served_name", "source", "tokenizer_digest", "dtype", "weight_quantisation", "concurrency", "territory"}
)


def template_of(model: ModelDeployment, pool: ResolvedPool, plan: ReplicaPlan) -> RevisionTemplate:
    """Template of a model on a pool, cut by that plan. The pool has an engine image."""
    basis, chip, spec = basis_of(model.spec.source, pool), pool.chip, model.spec
    return RevisionTemplate(
        served_name=model.served_name,
        source=basis.source,
        tokenizer_digest=spec.tokenizer_digest,
        dtype=spec.dtype,
        weight_quantisation=spec.weight_quantisation,
        concurrency=spec.workload.concurrency,
        territory=basis.territory,
        territory_key=basis.territory_key,
        territory_values=basis.territory_values,
        pool=pool.name,
        node_selector=basis.node_selector,
        tolerations=basis.tolerations,
        image=basis.image,
        backend=pool.pool.engine_backend,
        chip=chip.name,
        chip_description=_description(pool),
        resource=pool.resource,
        ray_resource=chip.ray_resource,
        on_cpu=chip.torch_device == "cpu",
        tensor_parallel=plan.shards.tensor_parallel,
        pipeline_parallel=plan.shards.pipeline_parallel,
        chips_per_pod=plan.chips_per_pod,
        pods_per_replica=plan.pods,
        kv_cache_bytes=plan.kv_cache_bytes,
        rank_bytes=max(memory.total for memory in plan.memory),
    )


def basis_of(source: ModelFiles, pool: ResolvedPool) -> PodBasis:
    """Basis of pods with those files on a pool, which has an engine image."""
    assert pool.image is not None, "a pool without image takes no models"
    return PodBasis(
        source=source,
        image=pool.image,
        territory=pool.pool.territory,
        territory_key=pool.territory.key,
        territory_values=tuple(sorted(pool.territory.values)),
        node_selector=dict(sorted(pool.pool.node_selector.items())),
        tolerations=_tolerations(pool),
    )


@lru_cache(maxsize=4096)
def template_from_json(text: str) -> RevisionTemplate:
    """Read what `to_json` wrote. Raises Malformed for anything else, also for what a later version wrote."""
    try:
        found = Fields.of(json.loads(text), "revision.json")
    except ValueError:
        raise Malformed("revision.json is not JSON") from None
    if found.count("version") != TEMPLATE_VERSION:
        raise Malformed(f"revision.json is of version {found.count('version')}, not {TEMPLATE_VERSION}")
    values = found.values.get("territory_values")
    if not isinstance(values, list):
        raise Malformed("revision.json.territory_values is not a list")
    description = found.values.get("chip_description")
    return RevisionTemplate(
        served_name=found.text("served_name"),
        source=_source(found.under("source")),
        tokenizer_digest=found.optional_text("tokenizer_digest"),
        dtype=found.text("dtype"),
        weight_quantisation=found.optional_text("weight_quantisation"),
        concurrency=found.count("concurrency", least=1),
        territory=found.text("territory"),
        territory_key=found.text("territory_key"),
        territory_values=tuple(str(value) for value in values),
        pool=PoolName(found.text("pool")),
        node_selector=found.texts("node_selector"),
        tolerations=tuple(dict(each.values) for each in found.each("tolerations")),
        image=found.text("image"),
        backend=found.text("backend"),
        chip=found.text("chip"),
        chip_description=None if description is None else dict(Fields.of(description, "revision.json.chip_description").values),
        resource=found.text("resource"),
        ray_resource=found.text("ray_resource"),
        on_cpu=found.flag("on_cpu"),
        tensor_parallel=found.count("tensor_parallel", least=1),
        pipeline_parallel=found.count("pipeline_parallel", least=1),
        chips_per_pod=found.count("chips_per_pod", least=1),
        pods_per_replica=found.count("pods_per_replica", least=1),
        kv_cache_bytes=found.count("kv_cache_bytes", least=1),
        rank_bytes=found.count("rank_bytes", least=1),
    )


_SOURCES: Final[Mapping[str, type[ClaimSource] | type[ImageSource] | type[ObjectSource]]] = {
    "persistentVolumeClaim": ClaimSource,
    "image": ImageSource,
    "object": ObjectSource,
}


def _source_value(source: ModelFiles) -> dict[str, Any]:
    kind = next(name for name, form in _SOURCES.items() if isinstance(source, form))
    return {"kind": kind, **asdict(source)}


def _source(fields: Fields) -> ModelFiles:
    form = _SOURCES.get(fields.text("kind"))
    if form is None:
        raise Malformed(f"{fields.at('kind')} is not one of {', '.join(_SOURCES)}")
    return form(**{name: fields.text(name) for name in form.__slots__})


def _tolerations(pool: ResolvedPool) -> tuple[Mapping[str, Any], ...]:
    """Tolerations of the pool's pods: of the taint named like its resource, and those that the pool states."""
    found: list[dict[str, Any]] = [{"key": pool.resource, "operator": "Exists"}]
    for each in pool.pool.tolerations:
        stated = {
            "key": each.key,
            "operator": each.operator,
            "value": each.value,
            "effect": each.effect,
            "tolerationSeconds": each.toleration_seconds,
        }
        found.append({name: value for name, value in stated.items() if value is not None})
    return tuple(each for index, each in enumerate(found) if each not in found[:index])


def _description(pool: ResolvedPool) -> Mapping[str, Any] | None:
    """Describe the pool's chip in the words of the resource definition, which the engine reads too."""
    described = pool.pool.description
    if described is None:
        return None
    assert pool.chip.memory_bytes is not None, "a described chip has its memory"
    stated = {
        "product": described.product,
        "extendedResource": described.extended_resource,
        "torchDevice": described.torch_device,
        "torchModule": described.torch_module,
        "collective": described.collective,
        "rayResource": described.ray_resource,
        "visibleDevices": described.visible_devices,
        "memory": str(pool.chip.memory_bytes),
        "chipsPerNode": pool.chip.chips_per_node,
        "evenCountsOnly": described.even_counts_only or None,
    }
    return {name: value for name, value in sorted(stated.items()) if value is not None}


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
